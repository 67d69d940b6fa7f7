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
from torch import Tensor


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
        keys, queries_of, keys_of, parts = [], [], [], []
        start = 0
        for item, (prompt, *completions) in enumerate(lengths):
            stem = torch.arange(start, start + prompt)
            end = start + prompt
            parts.append(_parts(item, 0, 0, prompt))
            for number, count in enumerate(completions):
                keys += [stem, torch.arange(end, end + count)]
                queries_of.append(count + (prompt if number == 0 else 0))
                keys_of.append(prompt + count)
                parts.append(_parts(item, number + 1, prompt, count))
                end += count
            start = end
        query_ends, key_ends = (
            torch.tensor([0, *counts]).cumsum(0).to(torch.int32) for counts in (queries_of, keys_of)
        )
        return cls(
            torch.tensor(lengths),
            max(queries_of),
            max(keys_of),
            torch.cat(keys),
            query_ends,
            key_ends,
            torch.cat(parts, dim=1),
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


def _parts(item: int, completion: int, position: int, count: int) -> Tensor:
    """Columns of `Branches.parts` for a run of tokens."""
    positions = torch.arange(position, position + count, dtype=torch.int32)
    return torch.stack([torch.full_like(positions, item), torch.full_like(positions, completion), positions])
