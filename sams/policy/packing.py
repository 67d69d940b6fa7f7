"""Layout of a packed row: items one after the other, each a prompt followed by its completions.

A completion attends to its prompt and to itself, never to the other completion or another item. A *segment* is a run
of queries with the keys that they attend to: prompt and first completion are one segment, each further completion is
another, whose keys include the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Branches:
    """Layout of a packed row of T tokens: B items of C completions each, N = B C segments with K keys.

    Kernels use these tensors only, so that no value of a batch is compiled into them.

    Attributes:
        lengths: [B, 1 + C] int64, on the CPU: tokens of each prompt and of its completions.
        most_queries, most_keys: largest numbers of a segment.
        keys: [K] int64, indices in the row of the segments' keys; the queries are in the order of the row.
        query_ends, key_ends: [N + 1] int32, ends of the segments' queries and keys, from 0.
        parts: [3, T] int32, of each token: its item, its completion (0 in a prompt, else from 1), and its position in
            its own sequence.
        block_masks: for FlexAttention, by sliding window.
    """

    lengths: Tensor
    most_queries: int
    most_keys: int
    keys: Tensor
    query_ends: Tensor
    key_ends: Tensor
    parts: Tensor
    block_masks: dict[int | None, Any] = field(default_factory=dict, repr=False)
    _kept: dict[Any, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, lengths: Sequence[Sequence[int]]) -> Branches:
        """Compute the layout of items with these lengths: of each item, of its prompt and of its completions."""
        table = torch.tensor(lengths)
        runs, completions = table.flatten(), table.shape[1] - 1
        starts = (runs.cumsum(0) - runs).view_as(table)
        run = torch.arange(len(runs)).repeat_interleave(runs)
        item, completion = run // (completions + 1), run % (completions + 1)
        offset = torch.arange(len(run)) - starts.flatten()[run]
        position = offset + torch.where(completion > 0, table[item, 0], 0)

        queries = table[:, 1:].clone()
        queries[:, 0] += table[:, 0]
        seen = (table[:, :1] + table[:, 1:]).flatten()
        segment = torch.arange(len(seen)).repeat_interleave(seen)
        stem, prompt = (part[:, 0].repeat_interleave(completions)[segment] for part in (starts, table))
        # Keys of a segment: those of the prompt, then those of its completion.
        number = torch.arange(len(segment)) - (seen.cumsum(0) - seen)[segment]
        own = starts[:, 1:].flatten()[segment] + number - prompt
        return cls(
            table,
            int(queries.max()),
            int(seen.max()),
            torch.where(number < prompt, stem + number, own),
            _ends(queries.flatten()),
            _ends(seen),
            torch.stack([item, completion, position]).to(torch.int32),
        )

    def to(self, device: torch.device) -> Branches:
        """Return the same layout with the kernels' tensors on another device."""
        names = ("keys", "query_ends", "key_ends", "parts")
        moved: dict[str, Any] = {name: getattr(self, name).to(device, non_blocking=True) for name in names}
        return replace(self, **moved, block_masks={}, _kept={})

    def once(self, key: Any, compute: Any) -> Any:
        """Return `compute()`, computed once for all layers."""
        if key not in self._kept:
            self._kept[key] = compute()
        return self._kept[key]


def _ends(lengths: Tensor) -> Tensor:
    return nn.functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
