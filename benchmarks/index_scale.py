"""What a training process keeps of its pairs and how long their order takes: python -m benchmarks.index_scale.

Simulated: a split of so many pairs without a token in it (ids and lengths as the trainer keeps them, token ids stay
on disk anyway), one epoch of shuffled global batches of 64, and 2,000 of them dealt to several numbers of processes.
The order is compared: it must not depend on how many there are.
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
    """Peak resident memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def column(pairs: int, mean: int, seed: int) -> TokenLists:
    """Lengths of a column; there are no values behind them."""
    lengths = np.random.default_rng(seed).poisson(mean, pairs) + 1
    return TokenLists([(np.zeros(0, dtype=np.int32), np.concatenate([[0], lengths.cumsum()]))])


def measure(pairs: int, worlds: list[int]) -> dict[str, Any]:
    """Memory and CPU seconds of a split of so many pairs."""
    before, started = resident_mb(), time.process_time()
    data: dict[str, Any] = {"id": [f"{number:016x}" for number in range(pairs)], "flipped": [None] * pairs}
    for seed, (name, mean) in enumerate({"prompt": 200, "chosen": 250, "rejected": 240}.items()):
        data[f"{name}_ids"] = column(pairs, mean, seed)
    task = PairTask(data)
    found: dict[str, Any] = {"pairs": pairs, "index_seconds": round(time.process_time() - started, 2)}
    found["index_mb"] = round(resident_mb() - before, 1)
    started, order = time.process_time(), hashlib.sha256()
    for _, batch in rounds(len(task.ids), BATCH, 1, 0):
        order.update(np.array(batch).tobytes())
    found["order_seconds"] = round(time.process_time() - started, 2)
    found["order"] = order.hexdigest()[:16]
    found["with_order_mb"] = round(resident_mb() - before, 1)
    found["deal_microseconds"] = {}
    for world in worlds:
        dealt = hashlib.sha256()
        started, steps = time.process_time(), 0
        for steps, batch in rounds(len(task.ids), BATCH, 1, 0):
            hands = deal([task.packed_lengths[item] for item in batch], world, 1, packed=True)
            assert sorted(place for hand in hands for part in hand for place in part) == list(range(BATCH))
            dealt.update(np.array(batch).tobytes())
            if steps == 2000:
                break
        each = (time.process_time() - started) / steps
        found["deal_microseconds"][str(world)] = round(1e6 * each)
        found.setdefault("dealt_order", dealt.hexdigest()[:16])
        assert found["dealt_order"] == dealt.hexdigest()[:16], "the order depends on the number of processes"
    return found


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=3_000_000)
    parser.add_argument("--worlds", type=int, nargs="*", default=[1, 8, 64])
    parser.add_argument("--out", type=Path, default=Path("results/bench/index_scale.json"))
    chosen = parser.parse_args()
    found = measure(chosen.pairs, chosen.worlds)
    print(found)
    write_json(chosen.out, found)


if __name__ == "__main__":
    main()
