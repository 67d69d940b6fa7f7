"""A CPU kernel for torch's variable-length attention, with the contract of FlashAttention's GPU kernels.

Importing this module registers it below torch's own function, whose checks, autograd formula and tracing stay real.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import varlen

from sams.policy.attention import takes_groups

CALLS: list[torch.dtype] = []
"""The type of the queries of every call."""


def _segments(
    q: Tensor, k: Tensor, v: Tensor, q_ends: Tensor, k_ends: Tensor, scale: Any, left: int
) -> Tensor:
    """Attention of each segment in float32; the last query is aligned with the last key."""
    outputs = []
    for number in range(len(q_ends) - 1):
        queries = q[q_ends[number] : q_ends[number + 1]].transpose(0, 1).float()
        keys, values = (part[k_ends[number] : k_ends[number + 1]].transpose(0, 1).float() for part in (k, v))
        count, seen = queries.shape[1], keys.shape[1]
        distance = torch.arange(seen - count, seen)[:, None] - torch.arange(seen)
        mask = (distance >= 0) & ((distance <= left) | (left < 0))
        grouped = queries.shape[0] != keys.shape[0]
        out = torch.nn.functional.scaled_dot_product_attention(
            queries, keys, values, attn_mask=mask, scale=scale, enable_gqa=grouped
        )
        outputs.append(out.transpose(0, 1))
    return torch.cat(outputs).to(q.dtype)


def _refuse(
    q: Tensor, k: Tensor, v: Tensor, q_ends: Tensor, k_ends: Tensor, most_q: int, most_k: int
) -> None:
    if {q.dtype, k.dtype, v.dtype} not in ({torch.bfloat16}, {torch.float16}):
        raise RuntimeError("FlashAttention only support fp16 and bf16 data type")
    if q_ends.dtype != torch.int32 or k_ends.dtype != torch.int32:
        raise RuntimeError("cu_seqlens must have dtype int32")
    if (q_ends.diff().max(), k_ends.diff().max()) != (most_q, most_k):
        raise RuntimeError("maximal lengths are not those of the segments")
    if (q_ends[-1], k_ends[-1]) != (len(q), len(k)):
        raise RuntimeError("the last end is not the number of tokens")


@varlen._varlen_attn.register_kernel("cpu")
def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_ends: Tensor,
    k_ends: Tensor,
    most_q: int,
    most_k: int,
    is_causal: bool = False,
    scale: float | None = None,
    window_size: Any = (-1, -1),
    *_: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    _refuse(q, k, v, q_ends, k_ends, most_q, most_k)
    assert window_size[1] == 0
    CALLS.append(q.dtype)
    out = _segments(q, k, v, q_ends, k_ends, scale, window_size[0])
    return out, torch.zeros(q.shape[1], len(q)), torch.zeros(2, dtype=torch.uint64)


@varlen._varlen_attn_backward.register_kernel("cpu")
def _backward(
    gradient: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    q_ends: Tensor,
    k_ends: Tensor,
    most_q: int,
    most_k: int,
    is_causal: bool,
    rng_state: Tensor,
    scale: float | None = None,
    window_size: Any = (-1, -1),
) -> tuple[Tensor, Tensor, Tensor]:
    _refuse(q, k, v, q_ends, k_ends, most_q, most_k)
    autograd = torch._C._SetExcludeDispatchKeyGuard(torch._C.DispatchKey.AutogradFunctionality, False)
    with autograd, torch.enable_grad():
        inputs = [part.detach().requires_grad_() for part in (q, k, v)]
        again = _segments(*inputs, q_ends, k_ends, scale, window_size[0])
        found = torch.autograd.grad(again, inputs, gradient)
    return found[0], found[1], found[2]


def of_torch_2_11(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_ends: Tensor,
    k_ends: Tensor,
    most_q: int,
    most_k: int,
    *,
    return_aux: Any = None,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
) -> Any:
    """The function with the arguments that it has in torch 2.11; heads are grouped without being asked to."""
    grouped = {"enable_gqa": True} if takes_groups(varlen.varlen_attn) else {}
    return varlen.varlen_attn(
        q, k, v, q_ends, k_ends, most_q, most_k, scale=scale, window_size=window_size, **grouped
    )
