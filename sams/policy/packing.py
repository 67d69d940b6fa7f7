"""Attention in a packed row: items one after the other, each a prompt with completions that branch off it.

A completion sees its prompt and itself, never its sibling or another item. transformers hands queries, keys and
values of the whole row to one of the functions here; everything else in a model works token by token, given the
position of each token in its own sequence. No mask over the whole row is built, and no kernel sees padding.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

SEGMENTS, VARLEN = "sams_segments", "sams_varlen"


@dataclass(frozen=True)
class Branches:
    """Where the items of a packed row lie: for each the length of its prompt and those of its completions.

    A *segment* is a run of queries with the keys they may see: prompt and first completion are one, each further
    completion is another, which sees the prompt too.
    """

    items: tuple[tuple[int, tuple[int, ...]], ...]
    _kept: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def totals(self) -> list[int]:
        """Tokens of each item."""
        return [prompt + sum(completions) for prompt, completions in self.items]

    def mask(self, queries: int, keys: int, window: int | None, like: Tensor) -> Tensor:
        """Additive mask [queries, keys] of the last queries of a causal sequence; one for all layers.

        Args:
            queries: how many.
            keys: how many, those before the first query included.
            window: keys that a query sees, its own included; None for all before it.
            like: dtype and device.
        """
        key = (queries, keys, window, like.dtype, like.device)
        if key not in self._kept:
            own = torch.arange(keys - queries, keys, device=like.device)[:, None]
            other = torch.arange(keys, device=like.device)
            hidden = other > own if window is None else (other > own) | (other <= own - window)
            mask = torch.zeros(queries, keys, dtype=like.dtype, device=like.device)
            self._kept[key] = mask.masked_fill_(hidden, torch.finfo(like.dtype).min)
        found: Tensor = self._kept[key]
        return found

    def segments(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor, int, int]:
        """What a variable-length kernel needs of N segments.

        Returns:
            Keys [K], as places in the row, segment by segment (queries are in the row's own order); ends of the
            segments' queries and of their keys, int32 [N + 1] each, from 0; most queries and most keys of a segment.
        """
        if device not in self._kept:
            places, queries, keys = [], [], []
            start = 0
            for prompt, completions in self.items:
                stem = torch.arange(start, start + prompt)
                end = start + prompt
                for number, count in enumerate(completions):
                    places += [stem, torch.arange(end, end + count)]
                    queries.append(count + (prompt if number == 0 else 0))
                    keys.append(prompt + count)
                    end += count
                start = end
            ends = [
                torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32).to(device)
                for lengths in (queries, keys)
            ]
            self._kept[device] = (torch.cat(places).to(device), *ends, max(queries), max(keys))
        found: tuple[Tensor, Tensor, Tensor, int, int] = self._kept[device]
        return found


def segment_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    branches: Branches,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention segment by segment, on any device.

    Args:
        query: [1, heads, T, width].
        key: [1, key-value heads, T, width]; value too.
        branches: of the row.
        scaling: of the scores; None for 1 / sqrt(width).
        sliding_window: keys that a query sees, its own included.
        softcap: c in c tanh(score / c) (Gemma 2).

    Returns:
        [1, T, heads, width], as transformers expects it.
    """
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        queries, keys = q.shape[2], k.shape[2]
        window = sliding_window if sliding_window is not None and sliding_window < keys else None
        if softcap is None and window is None and queries == keys:
            return nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling)
        mask = branches.mask(queries, keys, window, q)
        if softcap is None:
            return nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scaling)
        scores = q @ k.transpose(2, 3) * (q.shape[3] ** -0.5 if scaling is None else scaling)
        scores = torch.tanh(scores / softcap) * softcap + mask
        return scores.softmax(dim=3, dtype=torch.float32).to(q.dtype) @ v

    outputs = []
    totals = branches.totals
    parts = (tensor.split(totals, dim=2) for tensor in (query, key, value))
    for (prompt, completions), q, k, v in zip(branches.items, *parts, strict=True):
        lengths = [prompt + completions[0], *completions[1:]]
        own = zip(*(tensor.split(lengths, dim=2) for tensor in (q, k, v)), strict=True)
        stems = k[:, :, :prompt], v[:, :, :prompt]
        for number, (q_own, k_own, v_own) in enumerate(own):
            if number == 0:
                outputs.append(attend(q_own, k_own, v_own))
            else:
                seen = (
                    torch.cat([stem, part], dim=2) for stem, part in zip(stems, (k_own, v_own), strict=True)
                )
                outputs.append(attend(q_own, *seen))
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def varlen_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    branches: Branches,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """The same in one call of torch's variable-length FlashAttention, on GPUs that have it, in 16-bit types.

    Raises:
        NotImplementedError: for capped scores, which the kernel does not know.
    """
    if softcap is not None:
        raise NotImplementedError("no capped scores in variable-length attention")
    from torch.nn.attention.varlen import varlen_attn

    keys, query_ends, key_ends, most_queries, most_keys = branches.segments(query.device)
    out: Any = varlen_attn(
        query[0].transpose(0, 1).contiguous(),
        key[0].transpose(0, 1)[keys],
        value[0].transpose(0, 1)[keys],
        query_ends,
        key_ends,
        most_queries,
        most_keys,
        scale=scaling,
        # Flash-attention lines up the last query with the last key, which is what a branch needs.
        window_size=(-1 if sliding_window is None else sliding_window - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out[None], None


# transformers makes no mask of its own for kernels that it has no mask function for.
AttentionInterface.register(SEGMENTS, segment_attention)
AttentionInterface.register(VARLEN, varlen_attention)
