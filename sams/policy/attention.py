"""Attention of packed rows, as kernels that transformers calls by name.

All other layers of a model work token by token, given the position of each token in its own sequence. No kernel
computes padding; none but the segments on GPUs without another kernel builds a mask.

- `VARLEN`: one call of torch's variable-length FlashAttention, on GPUs and in 16-bit types.
- `FLEX`: one call of FlexAttention, on GPUs; for models with capped scores (Gemma 2).
- `SEGMENTS`: `scaled_dot_product_attention` segment by segment, on any device and in any type.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface

from sams.policy.compiling import compiled
from sams.policy.packing import Branches

SEGMENTS, FLEX, VARLEN = "sams_segments", "sams_flex", "sams_varlen"

HARMLESS = {
    "cache_position",
    "is_causal",
    "logits_to_keep",
    "max_length_k",
    "max_length_q",
    "num_items_in_batch",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "position_ids",
    "return_dict",
    "use_cache",
}
"""Arguments of transformers that do not change the attention of a packed row. Any other must be None."""


def takes_groups(function: Callable[..., Any]) -> bool:
    """Return whether `varlen_attn` has an argument for grouped heads; that of torch 2.11 groups without one."""
    return "enable_gqa" in inspect.signature(function).parameters


GROUPED = takes_groups(varlen_attn)


def disable_cudnn_attention() -> None:
    """Exclude cuDNN from the kernels of `scaled_dot_product_attention`, in this process.

    cuDNN builds a plan for every new shape, some 100 ms each on Hopper GPUs, and every batch has new shapes.
    FlashAttention and the memory-efficient kernel have no plans.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)


def kernels(device: str, precision: str, *, capped: bool) -> list[str]:
    """Return the kernels for packed rows, the preferred one first.

    Args:
        device: cpu or cuda.
        precision: float32 or bfloat16, the type of queries, keys and values.
        capped: whether the model caps its scores.
    """
    if device == "cpu" or precision == "float32":
        return [SEGMENTS]
    return [FLEX if capped else VARLEN, SEGMENTS]


def _check(mask: Tensor | None, dropout: float, others: dict[str, Any]) -> None:
    """Refuse arguments that would change the attention and are not computed here.

    Raises:
        NotImplementedError: with the names of these arguments.
    """
    unknown = [name for name, value in others.items() if value is not None and name not in HARMLESS]
    unknown += ["attention_mask"] * (mask is not None) + ["dropout"] * bool(dropout)
    unknown += ["is_causal=False"] * (others.get("is_causal") is False)
    if unknown:
        raise NotImplementedError(f"attention of packed rows has no {', '.join(unknown)}")


def _in_one_type(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cast to autocast's type where it is on: it does not know the kernels, and rotary embeddings are float32."""
    kind = query.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else value.dtype
    return query.to(dtype), key.to(dtype), value.to(dtype)


# --- segments -------------------------------------------------------------------------------------


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
    dropout: float = 0.0,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention segment by segment, on any device.

    Args:
        query: [1, heads, T, width].
        key: [1, key-value heads, T, width]; value too.
        branches: layout of the row.
        scaling: factor of the scores; None for 1 / sqrt(width).
        sliding_window: number of keys that a query attends to, its own included.
        softcap: c in c tanh(score / c) (Gemma 2).

    Returns:
        [1, T, heads, width], the layout that transformers expects.
    """
    _check(attention_mask, dropout, others)
    query, key, value = _in_one_type(query, key, value)
    if torch.compiler.is_compiling():
        return _segments_op(query, key, value, branches.lengths, scaling, sliding_window, softcap), None
    return _segments(
        query, key, value, branches.lengths, scaling, sliding_window, softcap, branches.once
    ), None


def _segments(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Tensor,
    scale: float | None,
    window: int | None,
    softcap: float | None,
    once: Callable[[Any, Callable[[], Tensor]], Tensor] = lambda _, compute: compute(),
) -> Tensor:
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        queries, keys = q.shape[2], k.shape[2]
        own = window if window is not None and window < keys else None
        if softcap is None and own is None and queries == keys:
            return nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
        mask = once((queries, keys, own, q.dtype), lambda: causal_mask(queries, keys, own, q))
        if softcap is None:
            return nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
        scores = q @ k.transpose(2, 3) * (q.shape[3] ** -0.5 if scale is None else scale)
        scores = torch.tanh(scores / softcap) * softcap + mask
        return scores.softmax(dim=3, dtype=torch.float32).to(q.dtype) @ v

    outputs = []
    items = lengths.tolist()
    rows = (tensor.split([sum(item) for item in items], dim=2) for tensor in (query, key, value))
    for (prompt, *completions), q, k, v in zip(items, *rows, strict=True):
        runs = [prompt + completions[0], *completions[1:]]
        parts = zip(*(tensor.split(runs, dim=2) for tensor in (q, k, v)), strict=True)
        stems = k[:, :, :prompt], v[:, :, :prompt]
        for number, (q_own, k_own, v_own) in enumerate(parts):
            if number == 0:
                outputs.append(attend(q_own, k_own, v_own))
            else:
                seen = (
                    torch.cat([stem, part], dim=2) for stem, part in zip(stems, (k_own, v_own), strict=True)
                )
                outputs.append(attend(q_own, *seen))
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous()


def causal_mask(queries: int, keys: int, window: int | None, like: Tensor) -> Tensor:
    """Additive mask [queries, keys] of the last queries of a causal sequence.

    Args:
        queries: number of queries.
        keys: number of keys, including those before the first query.
        window: number of keys that a query attends to, its own included; None for all before it.
        like: tensor with dtype and device of the mask.
    """
    own = torch.arange(keys - queries, keys, device=like.device)[:, None]
    other = torch.arange(keys, device=like.device)
    hidden = other > own if window is None else (other > own) | (other <= own - window)
    mask = torch.zeros(queries, keys, dtype=like.dtype, device=like.device)
    return mask.masked_fill_(hidden, torch.finfo(like.dtype).min)


@torch.library.custom_op("sams::segments", mutates_args=())
def _segments_op(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Tensor,
    scale: float | None,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """`_segments` as one opaque operation of a compiled block: its loop depends on the lengths of the batch."""
    return _segments(query, key, value, lengths, scale, window, softcap)


@_segments_op.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(query.transpose(1, 2), memory_format=torch.contiguous_format)


@torch.library.custom_op("sams::segments_backward", mutates_args=())
def _segments_backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Tensor,
    scale: float | None,
    window: int | None,
    softcap: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    # Autograd is switched off within an operation, and needed to differentiate the segments.
    autograd = torch._C._SetExcludeDispatchKeyGuard(torch._C.DispatchKey.AutogradFunctionality, False)
    with autograd, torch.enable_grad():
        inputs = [tensor.detach().requires_grad_() for tensor in (query, key, value)]
        out = _segments(inputs[0], inputs[1], inputs[2], lengths, scale, window, softcap)
        found = torch.autograd.grad(out, inputs, gradient)
    return found[0].contiguous(), found[1].contiguous(), found[2].contiguous()


@_segments_backward.register_fake
def _(gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    dense = torch.contiguous_format
    return (
        torch.empty_like(query, memory_format=dense),
        torch.empty_like(key, memory_format=dense),
        torch.empty_like(value, memory_format=dense),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.settings = inputs[4:]


def _differentiate(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    return (*_segments_backward(gradient, *ctx.saved_tensors, *ctx.settings), None, None, None, None)


_segments_op.register_autograd(_differentiate, setup_context=_save)


# --- variable-length FlashAttention -----------------------------------------------------------------


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
    dropout: float = 0.0,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention of all segments in one call of torch's variable-length FlashAttention; see `segment_attention`.

    Raises:
        NotImplementedError: for capped scores, which the kernel does not support.
    """
    _check(attention_mask, dropout, others | {"softcap": softcap})
    query, key, value = (part[0].transpose(0, 1) for part in _in_one_type(query, key, value))
    grouped: dict[str, Any] = {"enable_gqa": query.shape[1] != key.shape[1]} if GROUPED else {}
    out: Any = varlen_attn(
        query.contiguous(),
        # The backward pass of advanced indexing sorts its indices; that of index_select does not.
        key.index_select(0, branches.keys),
        value.index_select(0, branches.keys),
        branches.query_ends,
        branches.key_ends,
        branches.most_queries,
        branches.most_keys,
        scale=scaling,
        # FlashAttention aligns the last query with the last key, as a branch requires.
        window_size=(-1 if sliding_window is None else sliding_window - 1, 0),
        **grouped,
    )
    return out[None], None


# --- FlexAttention --------------------------------------------------------------------------------


def flexible_attention(
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
    dropout: float = 0.0,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention of the row in one call of FlexAttention; see `segment_attention`.

    The kernel is compiled on GPUs. On a CPU it builds all scores, for tests.
    """
    _check(attention_mask, dropout, others)
    query, key, value = _in_one_type(query, key, value)
    attend = (
        _compiled(flex_attention) if query.is_cuda and not torch.compiler.is_compiling() else flex_attention
    )

    cap: Any = softcap

    def capped(score: Tensor, *_: Tensor) -> Tensor:
        return cap * torch.tanh(score / cap)

    out: Any = attend(
        query,
        key,
        value,
        score_mod=None if softcap is None else capped,
        block_mask=branches.block_masks[sliding_window],
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out.transpose(1, 2).contiguous(), None


def block_mask(parts: Tensor, window: int | None) -> BlockMask:
    """Blocks of 128 queries by 128 keys that have a visible pair, and the rule within them.

    A token attends to those before it of its own item, in the prompt or in its own completion.

    Args:
        parts: as in `Branches`.
        window: number of keys that a query attends to, its own included; None for all before it.
    """
    return (_compiled(_block_mask) if parts.is_cuda else _block_mask)(parts, window)


def _block_mask(parts: Tensor, window: int | None) -> BlockMask:
    item, completion, position = parts
    first = torch.zeros_like(position) if window is None else position - (window - 1)

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        own = (completion[key] == 0) | (completion[key] == completion[query])
        return (item[key] == item[query]) & own & (key <= query) & (position[key] >= first[query])

    tokens = parts.shape[1]
    return create_block_mask(visible, None, None, tokens, tokens, device=parts.device)


@cache
def _compiled(function: Any) -> Any:
    return compiled(function)


# transformers builds no mask for kernels without a registered mask function.
AttentionInterface.register(SEGMENTS, segment_attention)
AttentionInterface.register(FLEX, flexible_attention)
AttentionInterface.register(VARLEN, varlen_attention)
