"""Batches: the order of the data, how a selection is dealt to the processes, how rows become tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sams.errors import UserError
from sams.training.distribution import seeded

if TYPE_CHECKING:
    from sams.settings import Training


@dataclass
class Rows:
    """Padded token ids of R sequences, each tensor [R, T] int64; the sequences of one item stand apart.

    A batch of B pairs has R = 2 B rows: the chosen responses first, then the rejected ones.
    """

    input_ids: Tensor
    attention_mask: Tensor
    completion_mask: Tensor

    def to(self, device: torch.device) -> Rows:
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


def count_rounds(items: Sequence[object], training: Training, where: str, batch: int | None = None) -> int:
    """Number of optimiser steps of a run.

    Args:
        items: what is trained on.
        training: batch size, epochs and limit.
        where: config key of the batch size, for the message.
        batch: the batch size, where it is not the settings'.

    Raises:
        UserError: when the data does not fill one batch.
    """
    batch = batch or training.batch_size
    if len(items) < batch:
        raise UserError(
            f"{len(items)} examples do not fill one global batch of {batch}",
            where=where,
            remedy="give more data or a smaller batch_size",
        )
    steps = len(items) // batch * training.epochs
    return steps if training.max_steps is None else min(steps, training.max_steps)


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
