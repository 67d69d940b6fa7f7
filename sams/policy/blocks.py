"""The transformer blocks of a model: compiled as wholes, and computed again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
import transformers
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from sams.policy import compiling
from sams.runtime.errors import UserError

Checkpointing = Literal["none", "full", "selective"]


def blocks(model: transformers.PreTrainedModel) -> nn.ModuleList:
    """Return the transformer blocks of a model, in order.

    Raises:
        UserError: when the architecture has no list of blocks.
    """
    parts = [*model.base_model.children()]
    inner = [child for part in parts for child in part.children()]  # OPT's are one level below
    for module in parts + inner:
        if isinstance(module, nn.ModuleList):
            return module
    raise UserError(f"no list of transformer blocks found in {type(model).__name__}", where="model")


def prepare_blocks(
    model: transformers.PreTrainedModel,
    *,
    compiled: bool,
    checkpointing: Checkpointing,
    fullgraph: bool = False,
    backend: Any = "inductor",
) -> None:
    """Set how the blocks compute. Called after the model is wrapped or sharded; a later call replaces an earlier.

    Hooks of a block, those of FSDP2 and of the contexts, stay outside of what is compiled and recomputed.

    Args:
        model: the model.
        compiled: compile each block, for rows of any length. The attention of packed rows is one opaque operation.
        checkpointing: what the backward pass recomputes: `none`, the `full` block, or `selective`: all except matrix
            products and attention, whose results are kept.
        fullgraph: raise an error where a block cannot be compiled as a whole.
        backend: backend of torch.compile.
    """
    functions: dict[type, Callable[..., Any]] = {}
    for block in blocks(model):
        kind = type(block)
        if kind not in functions:
            functions[kind] = kind.forward
            if checkpointing != "none":
                functions[kind] = partial(_checkpointed, kind.forward, checkpointing)
            if compiled:
                functions[kind] = compiling.compiled(functions[kind], fullgraph=fullgraph, backend=backend)
        block.forward = partial(functions[kind], block)


def _checkpointed(forward: Callable[..., Any], kind: Checkpointing, *args: Any, **kwargs: Any) -> Any:
    """Call `forward` so that its backward pass computes it again."""
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    selective: dict[str, Any] = {"context_fn": _contexts} if kind == "selective" else {}
    # Without dropout there is no random state to restore.
    return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **selective, **kwargs)


def _contexts() -> Any:
    return create_selective_checkpoint_contexts(_keep)


def _keep(_context: Any, operation: Any, *_args: Any, **_kwargs: Any) -> CheckpointPolicy:
    kept = operation in KEPT
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


aten = torch.ops.aten
KEPT = {
    aten.mm.default,
    aten.addmm.default,
    aten.bmm.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.torch_attn._varlen_attn.default,
    torch.ops.higher_order.flex_attention,
    torch.ops.sams.segments.default,
}
"""Operations whose results selective checkpointing keeps."""
