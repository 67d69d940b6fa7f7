"""Token ids as the policy reads them: prompts and completions in padded rows, or packed into one row.

An *item* is a prompt with its completions: two for a preference pair, one for a supervised example. Both layouts
give the same log-probs. Packed, there is no padding, and the prompt of a pair is computed once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from sams.policy.packing import Branches

Ids = Sequence[int]
Item = tuple[Ids, Sequence[Ids]]
"""Token ids of a prompt and of its completions, as many for each item of a batch."""


@dataclass(frozen=True)
class Rows:
    """Token ids of B items with C completions each: S = B C sequences, the first completions of all items first.

    Attributes:
        input_ids: [R, T] int64. Padded: one row per sequence. Packed: R = 1, items one after the other.
        sequence: [M] int64, to which of the S sequences each completion token belongs; in ascending order.
        answers: [M] int64, where the completion tokens lie in the flattened rows.
        predicts: [M] int64, the places before them, whose states predict them.
        counts: [S] int64, completion tokens of each sequence.
        attention_mask: [R, T] int64, padded rows only: 1 for tokens and 0 for padding.
        position_ids: [1, T] int64, packed row only: places in the item's own sequence.
        branches: packed row only: where prompts and completions lie.
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
        """Tokens that are computed, without padding."""
        return self.input_ids.numel() if self.attention_mask is None else int(self.attention_mask.sum())

    def to(self, device: torch.device) -> Rows:
        """The same rows on another device."""
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=True)
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return replace(self, **moved)


def pad_rows(items: Sequence[Item]) -> Rows:
    """A row for each completion, with its prompt before it, padded on the right.

    Padding is masked, so that any token will do: it is 0.
    """
    sequences = [(prompt, answer) for answers in zip_completions(items) for prompt, answer in answers]
    longest = max(len(prompt) + len(answer) for prompt, answer in sequences)
    input_ids = torch.zeros(len(sequences), longest, dtype=torch.int64)
    attention_mask = torch.zeros(len(sequences), longest, dtype=torch.int64)
    places = []
    for row, (prompt, answer) in enumerate(sequences):
        end = len(prompt) + len(answer)
        input_ids[row, :end] = torch.tensor([*prompt, *answer])
        attention_mask[row, :end] = 1
        places.append(torch.arange(row * longest + len(prompt), row * longest + end))
    answers = torch.cat(places)
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
    """One row for all items: [prompt | completion | completion | next prompt | ...]."""
    branches = Branches(
        tuple((len(prompt), tuple(len(answer) for answer in answers)) for prompt, answers in items)
    )
    row = [token for prompt, answers in items for part in (prompt, *answers) for token in part]
    positions, answers, predicts = [], [], []
    start = 0
    for prompt, completions in branches.items:
        positions.append(torch.arange(prompt))
        before, found = start + prompt - 1, start + prompt
        places: list[Tensor] = []
        heads: list[Tensor] = []
        for count in completions:
            positions.append(torch.arange(prompt, prompt + count))
            places.append(torch.arange(found, found + count))
            # The prompt's last token predicts the first one of every completion.
            heads.append(torch.cat([torch.tensor([before]), places[-1][:-1]]))
            found += count
        answers.append(places)
        predicts.append(heads)
        start = found
    counts = torch.tensor(
        [count for column in zip(*(counts for _, counts in branches.items), strict=True) for count in column]
    )
    return Rows(
        torch.tensor([row]),
        torch.arange(len(counts)).repeat_interleave(counts),
        torch.cat(list(chain.from_iterable(zip(*answers, strict=True)))),
        torch.cat(list(chain.from_iterable(zip(*predicts, strict=True)))),
        counts,
        position_ids=torch.cat(positions)[None],
        branches=branches,
    )


def zip_completions(items: Sequence[Item]) -> list[list[tuple[Ids, Ids]]]:
    """The items' sequences as (prompt, completion): all first completions, then all second ones."""
    return [
        [(prompt, answer) for (prompt, _), answer in zip(items, column, strict=True)]
        for column in zip(*(answers for _, answers in items), strict=True)
    ]
