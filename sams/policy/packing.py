"""Attention in a packed row: items one after the other, each a prompt followed by its completions.

A completion attends to its prompt and to itself, never to the other completion or another item. transformers gives
queries, keys and values of the complete row to one of the functions here; all other layers of a model work token by
token, given the position of each token in its own sequence. No mask over the complete row is built, and no kernel
computes padding.
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
    """Lengths of the items of a packed row: for each item, of its prompt and of its completions.

    A *segment* is a run of queries with the keys that they attend to: prompt and first completion are one segment,
    each further completion is another, whose keys include the prompt.
    """

    items: tuple[tuple[int, tuple[int, ...]], ...]
    _kept: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def totals(self) -> list[int]:
        """Tokens of each item."""
        return [prompt + sum(completions) for prompt, completions in self.items]

    def mask(self, queries: int, keys: int, window: int | None, like: Tensor) -> Tensor:
        """Additive mask [queries, keys] of the last queries of a causal sequence, cached for all layers.

        Args:
            queries: number of queries.
            keys: number of keys, including those before the first query.
            window: number of keys that a query attends to, its own included; None for all before it.
            like: tensor with dtype and device of the mask.
        """
        key = (queries, keys, window, like.dtype, like.device)
        if key not in self._kept:
            own = torch.arange(keys - queries, keys, device=like.device)[:, None]
            other = torch.arange(keys, device=like.device)
            hidden = other > own if window is None else (other > own) | (other <= own - window)
            mask = torch.zeros(queries, keys, dtype=like.dtype, device=like.device)
            self._kept[key] = mask.masked_fill_(hidden, torch.finfo(like.dtype).min)
        kept: Tensor = self._kept[key]
        return kept

    def segments(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor, int, int]:
        """Arguments of a variable-length kernel for N segments.

        Returns:
            Indices of the keys in the row [K], segment by segment (queries are in the order of the row); ends of the
            segments' queries and of their keys, int32 [N + 1] each, from 0; most queries and most keys of a segment.
        """
        if device not in self._kept:
            indices, queries, keys = [], [], []
            start = 0
            for prompt, completions in self.items:
                stem = torch.arange(start, start + prompt)
                end = start + prompt
                for number, count in enumerate(completions):
                    indices += [stem, torch.arange(end, end + count)]
                    queries.append(count + (prompt if number == 0 else 0))
                    keys.append(prompt + count)
                    end += count
                start = end
            ends = [
                torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32).to(device)
                for lengths in (queries, keys)
            ]
            self._kept[device] = (torch.cat(indices).to(device), *ends, max(queries), max(keys))
        kept: tuple[Tensor, Tensor, Tensor, int, int] = self._kept[device]
        return kept


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
        branches: lengths of the items of the row.
        scaling: factor of the scores; None for 1 / sqrt(width).
        sliding_window: number of keys that a query attends to, its own included.
        softcap: c in c tanh(score / c) (Gemma 2).

    Returns:
        [1, T, heads, width], the layout that transformers expects.
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
    """Attention of all segments in one call of torch's variable-length FlashAttention, on GPUs and in 16-bit types.

    Raises:
        NotImplementedError: for capped scores, which the kernel does not support.
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
        # FlashAttention aligns the last query with the last key, as a branch requires.
        window_size=(-1 if sliding_window is None else sliding_window - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out[None], None


# transformers builds no mask for kernels without a registered mask function.
AttentionInterface.register(SEGMENTS, segment_attention)
AttentionInterface.register(VARLEN, varlen_attention)
