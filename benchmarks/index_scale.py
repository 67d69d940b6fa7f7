"""Memory of a training process's index of pairs, and time of their order: python -m benchmarks.index_scale.

Simulates a split of many pairs without tokens (ids and lengths as in training, where token ids stay on disk), one
epoch of shuffled global batches of 64, and the division of 2,000 of them among several numbers of processes. The
order must not depend on the number of processes. Then the state that a selector keeps of each pair: counts of the
loop, and the averages of `small_loss`.
"""

import hashlib
import resource
import time
from argparse import ArgumentParser
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from sams.data.tokens import TokenLists
from sams.runtime.files import write_json
from sams.scheduling.selection import Selection
from sams.scheduling.selectors.base import Setup, View, checked
from sams.scheduling.selectors.small_loss import SmallLoss
from sams.training.batches import deal, rounds
from sams.training.loop import Selecting
from sams.training.tasks.pairs import PairTask
from sams.training.updates import Step

BATCH = 64


def resident_mb() -> float:
    """Return the peak resident memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def column(pairs: int, mean: int, seed: int) -> TokenLists:
    """Return a column with lengths and without token ids."""
    lengths = np.random.default_rng(seed).poisson(mean, pairs) + 1
    return TokenLists([(np.zeros(0, dtype=np.int32), np.concatenate([[0], lengths.cumsum()]))])


def selector_state(pairs: int) -> dict[str, Any]:
    """Return size and times of the state of each pair: counts, and the averages and counts of `small_loss`."""
    number_of_rounds = 2000
    task: Any = SimpleNamespace(ids=range(pairs))
    selector = SmallLoss(Setup(pairs=pairs), warmup_epochs=0)
    selector.needs_counts = True
    selecting = Selecting(
        selector, task, Selection(BATCH, number_of_rounds, (0.5,)), per_epoch=pairs // BATCH
    )
    generator = torch.Generator().manual_seed(0)
    batches = torch.randint(pairs, (number_of_rounds, BATCH), generator=generator)
    started = time.process_time()
    for number, batch in enumerate(batches, start=1):
        view = View(numbers=batch, margins=torch.randn(BATCH, generator=generator), losses=torch.zeros(BATCH))
        selector.observe(view)
        items = batch.tolist()
        step = Step(
            number, items, None, chosen=checked(selector.choose(view, 32), BATCH, 32).indices.tolist()
        )
        step.trained = step.chosen_items
        selecting.count(step)
    figures: dict[str, Any] = {
        "round_microseconds": round(1e6 * (time.process_time() - started) / number_of_rounds)
    }
    with TemporaryDirectory() as folder:
        file = Path(folder) / "loop.pt"
        started = time.process_time()
        torch.save({"selector": selector.state_dict(), "counts": selecting.counts}, file)
        figures["save_seconds"] = round(time.process_time() - started, 2)
        figures["checkpoint_mb"] = round(file.stat().st_size / 1e6, 1)
        started = time.process_time()
        selector.load_state_dict(torch.load(file, weights_only=True)["selector"])
        figures["load_seconds"] = round(time.process_time() - started, 2)
    return figures


def measure(pairs: int, worlds: list[int]) -> dict[str, Any]:
    """Return memory and CPU seconds for a split of `pairs` pairs."""
    before, started = resident_mb(), time.process_time()
    data: dict[str, Any] = {"id": [f"{number:016x}" for number in range(pairs)], "flipped": [None] * pairs}
    for seed, (name, mean) in enumerate({"prompt": 200, "chosen": 250, "rejected": 240}.items()):
        data[f"{name}_ids"] = column(pairs, mean, seed)
    task = PairTask(data)
    figures: dict[str, Any] = {"pairs": pairs, "index_seconds": round(time.process_time() - started, 2)}
    figures["index_mb"] = round(resident_mb() - before, 1)
    started, order = time.process_time(), hashlib.sha256()
    for _, batch in rounds(len(task.ids), BATCH, 1, 0):
        order.update(np.array(batch).tobytes())
    figures["order_seconds"] = round(time.process_time() - started, 2)
    figures["order"] = order.hexdigest()[:16]
    figures["with_order_mb"] = round(resident_mb() - before, 1)
    figures["deal_microseconds"] = {}
    for world in worlds:
        dealt = hashlib.sha256()
        started, steps = time.process_time(), 0
        for steps, batch in rounds(len(task.ids), BATCH, 1, 0):
            shares = deal([task.packed_lengths[item] for item in batch], world, 1, packed=True)
            assert sorted(item for share in shares for part in share for item in part) == list(range(BATCH))
            dealt.update(np.array(batch).tobytes())
            if steps == 2000:
                break
        each = (time.process_time() - started) / steps
        figures["deal_microseconds"][str(world)] = round(1e6 * each)
        figures.setdefault("dealt_order", dealt.hexdigest()[:16])
        assert figures["dealt_order"] == dealt.hexdigest()[:16], (
            "the order depends on the number of processes"
        )
    return figures


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=3_000_000)
    parser.add_argument("--worlds", type=int, nargs="*", default=[1, 8, 64])
    parser.add_argument("--out", type=Path, default=Path("results/bench/index_scale.json"))
    chosen = parser.parse_args()
    figures = measure(chosen.pairs, chosen.worlds)
    figures["selector_state"] = selector_state(chosen.pairs)
    print(figures)
    write_json(chosen.out, figures)


if __name__ == "__main__":
    main()
