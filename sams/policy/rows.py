"""Token ids for the policy: prompts and completions in padded rows, or packed into one row.

An *item* is a prompt with its completions: two for a preference pair, one for a supervised example. Both layouts
give the same log-probs. A packed row has no padding, and the prompt of a pair is computed once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sams.policy.packing import Branches

Ids = Sequence[int]
Item = tuple[Ids, Sequence[Ids]]
"""Token ids of a prompt and of its completions; all items of a batch have the same number of completions."""


@dataclass(frozen=True)
class Rows:
    """Token ids of B items with C completions each: S = B C sequences, the first completions of all items first.

    Attributes:
        input_ids: [R, T] int64. Padded: one row per sequence. Packed: R = 1, items one after the other.
        sequence: [M] int64, index of the sequence of each completion token, ascending.
        answers: [M] int64, indices of the completion tokens in the flattened rows.
        predicts: [M] int64, indices of the tokens before them, whose states predict them.
        counts: [S] int64, completion tokens of each sequence.
        attention_mask: [R, T] int64, padded rows only: 1 for tokens and 0 for padding.
        position_ids: [1, T] int64, packed row only: positions in the item's own sequences.
        branches: packed row only: lengths of prompts and completions.
    """

    input_ids: Tensor
    sequence: Tensor
    answers: Tensor
    predicts: Tensor
    counts: Tensor
    attention_mask: Tensor | None = None
    position_ids: Tensor | None = None
    branches: Branches | None = None

    @property
    def tokens(self) -> int:
        """Number of tokens without padding."""
        return self.input_ids.numel() if self.attention_mask is None else int(self.attention_mask.sum())

    def to(self, device: torch.device) -> Rows:
        """Return the same rows on another device."""
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=True)
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return replace(self, **moved, branches=self.branches and self.branches.to(device))


def pad_rows(items: Sequence[Item]) -> Rows:
    """Build one row per completion, with its prompt before it, padded on the right with token 0, which is masked."""
    sequences = [(prompt, answer) for answers in zip_completions(items) for prompt, answer in answers]
    longest = max(len(prompt) + len(answer) for prompt, answer in sequences)
    input_ids = torch.zeros(len(sequences), longest, dtype=torch.int64)
    attention_mask = torch.zeros(len(sequences), longest, dtype=torch.int64)
    indices = []
    for row, (prompt, answer) in enumerate(sequences):
        end = len(prompt) + len(answer)
        input_ids[row, :end] = torch.tensor([*prompt, *answer])
        attention_mask[row, :end] = 1
        indices.append(torch.arange(row * longest + len(prompt), row * longest + end))
    answers = torch.cat(indices)
    counts = torch.tensor([len(answer) for _, answer in sequences])
    return Rows(
        input_ids,
        torch.arange(len(sequences)).repeat_interleave(counts),
        answers,
        answers - 1,
        counts,
        attention_mask=attention_mask,
    )


def pack_rows(items: Sequence[Item]) -> Rows:
    """Build one row for all items: [prompt | completion | completion | next prompt | ...]."""
    lengths = [[len(prompt), *map(len, completions)] for prompt, completions in items]
    _, *columns = zip(*lengths, strict=True)
    counts = torch.tensor([count for column in columns for count in column])
    branches = Branches.of(lengths)
    tokens = [token for prompt, completions in items for part in (prompt, *completions) for token in part]
    item, completion, position = branches.parts.long()
    sequences = (completion - 1) * len(items) + item
    # Stable, so that the tokens of a completion stay in order.
    order = sequences.argsort(stable=True)
    answers = order[len(order) - int(counts.sum()) :]
    # The prompt's last token predicts the first one of every completion.
    last = branches.lengths[:, 0] + branches.lengths.sum(dim=1).cumsum(0) - branches.lengths.sum(dim=1) - 1
    first = position[answers] == branches.lengths[item[answers], 0]
    return Rows(
        torch.from_numpy(np.array([tokens], dtype=np.int64)),  # twice as fast as torch.tensor
        sequences[answers],
        answers,
        torch.where(first, last[item[answers]], answers - 1),
        counts,
        position_ids=position[None],
        branches=branches,
    )


def zip_completions(items: Sequence[Item]) -> list[list[tuple[Ids, Ids]]]:
    """Sequences of the items as (prompt, completion): all first completions, then all second ones."""
    return [
        [(prompt, answer) for (prompt, _), answer in zip(items, column, strict=True)]
        for column in zip(*(answers for _, answers in items), strict=True)
    ]
