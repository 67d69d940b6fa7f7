"""Memory of a training process's index of pairs, and time of their order: python -m benchmarks.index_scale.

Simulates a split of many pairs without tokens (ids and lengths as in training, where token ids stay on disk), one
epoch of shuffled global batches of 64, and the division of 2,000 of them among several numbers of processes. The
order must not depend on the number of processes.
"""

import hashlib
import resource
import time
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import numpy as np

from sams.data.tokens import TokenLists
from sams.runtime.files import write_json
from sams.training.batches import deal, rounds
from sams.training.tasks.pairs import PairTask

BATCH = 64


def resident_mb() -> float:
    """Return the peak resident memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def column(pairs: int, mean: int, seed: int) -> TokenLists:
    """Return a column with lengths and without token ids."""
    lengths = np.random.default_rng(seed).poisson(mean, pairs) + 1
    return TokenLists([(np.zeros(0, dtype=np.int32), np.concatenate([[0], lengths.cumsum()]))])


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
    print(figures)
    write_json(chosen.out, figures)


if __name__ == "__main__":
    main()
