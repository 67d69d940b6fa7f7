"""Batches: the order of the data, and how a selection is dealt to the processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from sams.training.distribution import seeded


def rounds(items: int | Sequence[int], batch: int, epochs: int, seed: int) -> Iterator[tuple[int, list[int]]]:
    """The global batches of a run: (round from 1, item indices); the incomplete last batch of an epoch is dropped.

    Args:
        items: how many there are, shuffled anew in each epoch; or the items in an order that each epoch keeps.
        batch: size of a global batch.
        epochs: passes over the items.
        seed: of the shuffling.
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

    Unequal numbers of forward and backward calls would hang FSDP2: a process that is short of items gets
    empty micro-batches, which the passes fill with a row of weight 0.

    Args:
        lengths: tokens of each item.
        world: number of processes.
        micro_batch: most items in one micro-batch.
        packed: whether rows are packed. Padded rows want similar lengths in one micro-batch, packed ones want
            micro-batches of the same size.

    Returns:
        For each process its micro-batches: places in `lengths`.
    """
    hands = balanced(range(len(lengths)), lengths, world)
    count = max(1, -(-max(map(len, hands)) // micro_batch))
    if packed:
        return [balanced(hand, lengths, count) for hand in hands]
    return [
        [hand[start * len(hand) // count : (start + 1) * len(hand) // count] for start in range(count)]
        for hand in hands
    ]


def balanced(places: Sequence[int], lengths: Sequence[int], parts: int) -> list[list[int]]:
    """Split places into parts of at most equal number and nearly equal tokens, longest first in each."""
    share = -(-len(places) // parts)
    hands: list[list[int]] = [[] for _ in range(parts)]
    weights = [0] * parts
    for place in sorted(places, key=lambda place: (-lengths[place], place)):
        hand = min((weights[part], part) for part in range(parts) if len(hands[part]) < share)[1]
        hands[hand].append(place)
        weights[hand] += lengths[place]
    return hands
