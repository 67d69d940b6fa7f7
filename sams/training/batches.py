"""Batches: the order of the data, how a selection is dealt to the processes, how rows become tensors."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sams.errors import UserError
from sams.training.distribution import seeded


@dataclass
class Rows:
    """Padded token ids of R sequences, each tensor [R, T] int64; the sequences of one item stand apart.

    A batch of B pairs has R = 2 B rows: the chosen responses first, then the rejected ones.
    """

    input_ids: Tensor
    attention_mask: Tensor
    completion_mask: Tensor

    def to(self, device: torch.device) -> "Rows":
        """The same rows on another device."""
        return Rows(
            self.input_ids.to(device), self.attention_mask.to(device), self.completion_mask.to(device)
        )


def pad_rows(sequences: Sequence[tuple[Sequence[int], Sequence[int]]], pad: int) -> Rows:
    """Join prompts and completions and pad them on the right.

    Args:
        sequences: (prompt ids, completion ids) of each row.
        pad: id of the padding token; it is masked, so any will do.
    """
    longest = max(len(prompt) + len(completion) for prompt, completion in sequences)
    input_ids = torch.full((len(sequences), longest), pad)
    attention_mask = torch.zeros(len(sequences), longest, dtype=torch.int64)
    completion_mask = torch.zeros(len(sequences), longest, dtype=torch.int64)
    for row, (prompt, completion) in enumerate(sequences):
        end = len(prompt) + len(completion)
        input_ids[row, :end] = torch.tensor([*prompt, *completion])
        attention_mask[row, :end] = 1
        completion_mask[row, len(prompt) : end] = 1
    return Rows(input_ids, attention_mask, completion_mask)


def rounds(items: int, batch: int, epochs: int, seed: int) -> Iterator[tuple[int, list[int]]]:
    """The global batches of a run: (round from 1, item indices), each epoch in an order of its own.

    The incomplete last batch of an epoch is dropped.
    """
    number = 0
    for epoch in range(epochs):
        order = torch.randperm(items, generator=seeded("order", seed, epoch)).tolist()
        for start in range(0, items - batch + 1, batch):
            number += 1
            yield number, order[start : start + batch]


def count_rounds(items: int, batch: int, epochs: int, max_steps: int | None, where: str) -> int:
    """Number of optimiser steps of a run.

    Raises:
        UserError: when the data does not fill one batch.
    """
    if items < batch:
        raise UserError(
            f"{items} examples do not fill one global batch of {batch}",
            where=where,
            remedy="give more data or a smaller batch_size",
        )
    steps = items // batch * epochs
    return steps if max_steps is None else min(steps, max_steps)


def deal(lengths: Sequence[int], world: int, micro_batch: int) -> list[list[list[int]]]:
    """Deal items to the processes, balanced by tokens, with the same number of micro-batches on each.

    Unequal numbers of forward and backward calls would hang FSDP2: a process that is short of items gets
    empty micro-batches, which the passes fill with a row of weight 0.

    Args:
        lengths: tokens of each item.
        world: number of processes.
        micro_batch: most items in one micro-batch.

    Returns:
        For each process its micro-batches: places in `lengths`, similar lengths together.
    """
    share = -(-len(lengths) // world)
    hands: list[list[int]] = [[] for _ in range(world)]
    weights = [0] * world
    for place in sorted(range(len(lengths)), key=lambda place: (-lengths[place], place)):
        hand = min((weights[rank], rank) for rank in range(world) if len(hands[rank]) < share)[1]
        hands[hand].append(place)
        weights[hand] += lengths[place]
    count = max(1, -(-share // micro_batch))
    return [
        [hand[start * len(hand) // count : (start + 1) * len(hand) // count] for start in range(count)]
        for hand in hands
    ]
