"""Predict the memory of training passes, and measure what is free."""

from __future__ import annotations

import os
import weakref
from typing import TYPE_CHECKING, Any

import psutil
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sams.policy.policy import Scores, bare
from sams.policy.rows import Rows, pad_rows
from sams.training.agreement import rows_of
from sams.training.distribution import Workers, local_part, reshard
from sams.training.tasks.base import Scored

if TYPE_CHECKING:
    from torch import UntypedStorage

MEMORY_SHARE = 0.8
"""Share of the free memory that activations may take: the prediction omits fragmentation."""
ADAM_BYTES = 12
"""Bytes per trained weight on the process that holds it: gradient and two moments in float32."""
WAITING_BYTES = 4
"""Bytes per trained weight on every process: FSDP2 keeps unsharded float32 gradients until the last micro-batch."""
COPY_BYTES = 2
"""Bytes per trained weight of its bfloat16 copy, where FSDP2 has shards of size 1."""


def activation_bytes(policy: nn.Module, task: Scored, workers: Workers) -> float:
    """Return the bytes that a forward pass keeps for the backward pass, per token of a row, padding included.

    Measured as the difference between two items and one, to exclude what does not grow with the tokens; the pass
    before them compiles, and casts or gathers weights.
    """
    order = sorted(range(len(task.ids)), key=lambda item: task.packed_lengths[item])
    middle = order[len(order) // 2]
    measured = []
    for items in ([middle], [middle], [middle, middle]):
        rows = rows_of(policy, task.sequences(items)).to(workers.device)
        with Allocated(workers.device) as kept:
            scores = policy(rows)
        measured.append((kept.bytes, rows.input_ids.numel()))
        del scores
    clear(policy)
    _, (first, short), (second, long) = measured
    return max(1.0, (second - first) / (long - short))


def run_pass(policy: nn.Module, rows: Rows, workers: Workers, *, gradients: bool) -> None:
    """Run a pass over rows, without or with a backward pass, which adds 0 to the gradients."""
    workers.exchange_gradients(policy, True)
    with torch.set_grad_enabled(gradients):
        scores: Scores = policy(rows)
    if gradients:
        workers.accelerator.backward(scores.logps.mean() * 0)


def clear(policy: nn.Module) -> None:
    """Delete the gradients, and FSDP2's copies of the weights."""
    reshard(policy)
    policy.zero_grad()


class Allocated(TorchDispatchMode):
    """Measures the memory that a block allocates and does not free, in `bytes`.

    CUDA's allocator counts it; on a CPU the storages of all results are counted until they are freed.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device
        self.bytes = 0
        self._alive: dict[int, weakref.ref[UntypedStorage]] = {}

    def __enter__(self) -> Allocated:
        if self.device.type != "cuda":
            return super().__enter__()  # type: ignore[no-any-return]
        self.bytes = -torch.cuda.memory_allocated(self.device)
        return self

    def __exit__(self, *error: Any) -> None:
        if self.device.type != "cuda":
            super().__exit__(*error)
            self._alive.clear()  # what is freed after the block is not subtracted
        else:
            self.bytes += torch.cuda.memory_allocated(self.device)

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operation(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and not isinstance(tensor, DTensor):
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive:
            return

        def free(_: Any) -> None:
            del self._alive[key]
            self.bytes -= size

        self._alive[key] = weakref.ref(storage, free)
        self.bytes += size


def row_tokens(policy: nn.Module, task: Scored) -> list[int]:
    """Tokens of the items in a row, longest first; in padded rows each item has the length of the longest."""
    if bare(policy).packed is not None:
        return sorted(task.packed_lengths, reverse=True)
    longest = max(range(len(task.ids)), key=lambda item: task.lengths[item])
    return [pad_rows(task.sequences([longest])).input_ids.numel()] * len(task.ids)


def items_within(policy: nn.Module, task: Scored, tokens: float) -> int:
    """Return the number of the longest items that together have at most this many tokens."""
    for count, length in enumerate(row_tokens(policy, task)):
        tokens -= length
        if tokens < 0:
            return count
    return len(task.ids)


def trained_weights(policy: nn.Module) -> int:
    """Return the number of trained weights of the complete policy."""
    return sum(part.numel() for part in policy.parameters() if part.requires_grad)


def local_weights(policy: nn.Module) -> int:
    """Return the number of trained weights that this process holds."""
    return sum(local_part(part).numel() for part in policy.parameters() if part.requires_grad)


def is_sharded(policy: nn.Module) -> bool:
    """Return whether FSDP2 shards the policy, so that gradients may wait unsharded for their exchange."""
    return isinstance(policy, FSDPModule) and local_weights(policy) < trained_weights(policy)


def kept_bytes(policy: nn.Module, *, each: bool) -> int:
    """Return the bytes that FSDP2 keeps between micro-batches, in addition to `ADAM_BYTES`.

    Those of unsharded gradients, unless they are exchanged in each micro-batch; for shards of size 1 those of the
    weights in bfloat16.
    """
    if not isinstance(policy, FSDPModule):
        return 0
    if is_sharded(policy):
        return 0 if each else WAITING_BYTES * trained_weights(policy)
    return COPY_BYTES * trained_weights(policy)


def free_bytes(device: torch.device) -> int:
    """Free memory for this process: of its GPU, or its share of the machine's memory."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    return psutil.virtual_memory().available // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
