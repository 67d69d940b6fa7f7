"""Global batches of a run, and how the items of a pass are dealt to the processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch

from sams.training.distribution import seeded


@dataclass(frozen=True)
class Batches:
    """The global batches of a run.

    Attributes:
        items: number of items, shuffled again in each epoch; or the items in an order that every epoch keeps.
        size: items of a global batch.
        epochs: passes over the items.
        steps: number of batches of the run.
        seed: seed of the shuffling.
    """

    items: int | Sequence[int]
    size: int
    epochs: int
    steps: int
    seed: int

    @property
    def per_epoch(self) -> int:
        """Batches of an epoch."""
        return (self.items if isinstance(self.items, int) else len(self.items)) // self.size

    def after(self, step: int) -> Iterator[tuple[int, list[int]]]:
        """Return the batches after a step: (step from 1, item indices)."""
        return islice(rounds(self.items, self.size, self.epochs, self.seed), step, self.steps)


def rounds(items: int | Sequence[int], batch: int, epochs: int, seed: int) -> Iterator[tuple[int, list[int]]]:
    """Yield (round from 1, item indices) of all epochs; the incomplete last batch of an epoch is dropped.

    Args:
        items: number of items, shuffled again in each epoch; or the items in an order that every epoch keeps.
        batch: items of a global batch.
        epochs: passes over the items.
        seed: seed of the shuffling.
    """
    number = 0
    for epoch in range(epochs):
        if isinstance(items, int):
            order = torch.randperm(items, generator=seeded("order", seed, epoch)).tolist()
        else:
            order = list(items)
        for start in range(0, len(order) - batch + 1, batch):
            number += 1
            yield number, order[start : start + batch]


def deal(
    lengths: Sequence[int], world: int, micro_batch: int, *, packed: bool = False
) -> list[list[list[int]]]:
    """Deal items to the processes, balanced by tokens, with the same number of micro-batches on each.

    Unequal numbers of forward and backward calls would hang FSDP2: a process with fewer items gets empty
    micro-batches, which the passes fill with a row of weight 0.

    Args:
        lengths: tokens of each item.
        world: number of processes.
        micro_batch: most items in one micro-batch.
        packed: whether rows are packed. Padded rows need similar lengths in one micro-batch, packed rows need
            micro-batches of equal size.

    Returns:
        Micro-batches of each process: indices in `lengths`.
    """
    shares = balanced(range(len(lengths)), lengths, world)
    count = max(1, -(-max(map(len, shares)) // micro_batch))
    if packed:
        return [balanced(share, lengths, count) for share in shares]
    return [
        [share[number * len(share) // count : (number + 1) * len(share) // count] for number in range(count)]
        for share in shares
    ]


def balanced(items: Sequence[int], lengths: Sequence[int], parts: int) -> list[list[int]]:
    """Split items into parts of at most equal number and nearly equal tokens, longest first in each part."""
    most = -(-len(items) // parts)
    shares: list[list[int]] = [[] for _ in range(parts)]
    tokens = [0] * parts
    for item in sorted(items, key=lambda item: (-lengths[item], item)):
        part = min((tokens[part], part) for part in range(parts) if len(shares[part]) < most)[1]
        shares[part].append(item)
        tokens[part] += lengths[item]
    return shares
