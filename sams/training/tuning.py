"""Tune a job before its first step: row layout, sizes of micro-batches, activation checkpointing.

Tuning changes results by rounding only. It runs once per run: checkpoints and the result's recipe.json hold the
tuned values, which a resumed run reuses, to be bitwise equal to an uninterrupted run.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import psutil
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from sams.policy.blocks import Checkpointing, blocks
from sams.policy.policy import Scores, bare
from sams.policy.rows import Rows, pad_rows
from sams.runtime.errors import UserError
from sams.training.distribution import Workers, local_part, reshard
from sams.training.layout import choose_layout, rows_of
from sams.training.tasks.base import Scored

if TYPE_CHECKING:
    from sams.study.settings import MicroBatch, Model, Training

log = logging.getLogger(__name__)

MEMORY_SHARE = 0.8
"""Share of the free memory that activations may take: the prediction omits fragmentation and temporary tensors."""
ADAM_BYTES = 12
"""Bytes per trained weight on the process that holds it: gradient and two moments in float32."""
WAITING_BYTES = 4
"""Bytes per trained weight on every process: FSDP2 keeps unsharded float32 gradients until the last micro-batch."""
COPY_BYTES = 2
"""Bytes per trained weight of its bfloat16 copy, where FSDP2 has shards of size 1."""
GOOD_ENOUGH = 1.05
"""A larger micro-batch must be faster by this factor, because timings are noisy and memory is not free."""


@dataclass
class Tuning:
    """Layout and sizes of the passes of a job.

    Attributes:
        packed: attention of packed rows; None for padded rows.
        micro_batch: items of one forward and backward pass, per process.
        scoring_micro_batch: items of one pass without gradients.
        checkpointing: what the backward pass recomputes of each block.
        compiled: whether blocks and log-probs are compiled.
        fallbacks: a sentence for each setting, layout or kernel that could not be used, with its cause.
    """

    packed: str | None
    micro_batch: int
    scoring_micro_batch: int
    checkpointing: Checkpointing
    compiled: bool = False
    fallbacks: list[str] = field(default_factory=list)

    def as_set(self, training: Training) -> Tuning:
        """Take micro-batches from the settings, which may have been lowered since the last start; return self."""
        if training.micro_batch_size != "auto":
            self.micro_batch = training.micro_batch_size
        if training.scoring_micro_batch_size != "auto":
            self.scoring_micro_batch = training.scoring_micro_batch_size
        return self

    def apply(self, policy: nn.Module) -> None:
        """Set the policy's row layout, and how its blocks compute."""
        bare(policy).pack(self.packed)
        bare(policy).prepare(compiled=self.compiled, checkpointing=self.checkpointing)


def tune(
    policy: nn.Module,
    task: Scored,
    workers: Workers,
    model: Model,
    *,
    micro_batch: MicroBatch,
    scoring_micro_batch: MicroBatch,
    items: int,
    scored_items: int,
    other_weights: int = 0,
) -> Tuning:
    """Tune row layout and sizes of the passes. A collective call, made once the optimiser exists.

    Args:
        policy: wrapped by the workers.
        task: task whose items are tried; labels are not used.
        workers: the processes.
        model: settings of the policy.
        micro_batch: set number of items per process and backward pass; `auto` searches.
        scoring_micro_batch: the same for passes without gradients.
        items: most items of a global batch that are trained on; 0 if the policy is not trained.
        scored_items: items of a global batch that are scored.
        other_weights: number of other weights that are trained on every process.

    Raises:
        UserError: when the longest item alone does not fit in memory.
    """
    packed, fallbacks = choose_layout(policy, task, workers, model) if model.packing else (None, [])
    checkpointing = model.activation_checkpointing
    tuning = Tuning(
        packed, 1, 1, "full" if checkpointing is True else "none", model.compile and items > 0, fallbacks
    )
    tuning.apply(policy)
    shares = [max(1, -(-count // workers.world)) for count in (items, scored_items)]
    if items and "auto" in (micro_batch, checkpointing):
        recompute, room = fit(policy, task, workers, checkpointing, other_weights)
        tuning.checkpointing = "full" if recompute else "none"
        shares[0] = min(shares[0], room)
        tuning.apply(policy)
    if micro_batch != "auto":
        tuning.micro_batch = micro_batch
    elif items:
        tuning.micro_batch = fastest(policy, task, workers, shares[0], gradients=True)
    if scoring_micro_batch != "auto":
        tuning.scoring_micro_batch = scoring_micro_batch
    else:
        tuning.scoring_micro_batch = fastest(policy, task, workers, shares[1], gradients=False)
    tuning.apply(policy)
    log.info(
        "rows are %s; micro-batches of %d (scoring: %d) per process; activation checkpointing: %s",
        "padded" if packed is None else f"packed ({packed.removeprefix('sams_')})",
        tuning.micro_batch,
        tuning.scoring_micro_batch,
        tuning.checkpointing,
    )
    return tuning


# --- memory ---------------------------------------------------------------------------------------


def activation_bytes(policy: nn.Module, task: Scored, workers: Workers) -> float:
    """Return the bytes that a forward pass keeps for the backward pass, per token of a row, padding included.

    Measured as the difference between two items and one, to exclude what does not grow with the tokens.
    """
    order = sorted(range(len(task.ids)), key=lambda item: task.packed_lengths[item])
    middle = order[len(order) // 2]
    counted = []
    for items in ([middle], [middle, middle]):
        rows = rows_of(policy, task.sequences(items)).to(workers.device)
        with saved_bytes() as kept:
            policy(rows)
        counted.append((sum(kept.values()), rows.input_ids.numel()))
    reshard(policy)
    (first, short), (second, long) = counted
    return (second - first) / (long - short)


@contextmanager
def saved_bytes() -> Iterator[dict[int, int]]:
    """Count the bytes of every storage that autograd keeps, except weights, by address."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if not (tensor.is_leaf and tensor.requires_grad):
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept


def fit(
    policy: nn.Module,
    task: Scored,
    workers: Workers,
    checkpointing: bool | Literal["auto"],
    other_weights: int,
) -> tuple[bool, int]:
    """Return whether activations must be checkpointed, and how many of the longest items then fit in a micro-batch.

    Memory for gradients and the optimiser's state is reserved. The sizes are predicted and not tried: a process that
    runs out of memory would leave the others waiting.

    Raises:
        UserError: when the longest item does not fit even with checkpointing.
    """
    bytes_per_token = activation_bytes(policy, task, workers)
    state = ADAM_BYTES * (local_weights(policy) + other_weights) + waiting_bytes(policy)
    room = MEMORY_SHARE * (free_bytes(workers.device) - state)
    # A checkpointed model keeps the inputs of all blocks, and all activations of one block at a time.
    count = len(blocks(bare(policy).model))
    inputs = count * bare(policy).model.config.hidden_size * 4
    for checkpointed in (False, True) if checkpointing == "auto" else (bool(checkpointing),):
        each = bytes_per_token / count + inputs if checkpointed else bytes_per_token
        fitting = int(-workers.largest(-items_within(policy, task, room / each)))
        if fitting:
            return checkpointed, fitting
    raise UserError(
        f"activations of the longest item take {each * row_tokens(policy, task)[0] / 2**30:.1f} GiB, "
        f"of {room / 2**30:.1f} GiB available",
        where="model.activation_checkpointing",
        remedy="set it to auto, shard the policy (launch.strategy: fsdp2), or lower data.max_length",
    )


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


def local_weights(policy: nn.Module) -> int:
    """Return the number of trained weights that this process holds."""
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    return sum(local_part(part).numel() for part in trained)


def waiting_bytes(policy: nn.Module) -> int:
    """Return the bytes that FSDP2 keeps between micro-batches, in addition to `ADAM_BYTES`.

    Gradients of unsharded weights, or for shards of size 1 the weights in bfloat16.
    """
    if not isinstance(policy, FSDPModule):
        return 0
    weights = sum(part.numel() for part in policy.parameters() if part.requires_grad)
    return (WAITING_BYTES if local_weights(policy) < weights else COPY_BYTES) * weights


def free_bytes(device: torch.device) -> int:
    """Free memory for this process: of its GPU, or its share of the machine's memory."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


# --- speed ----------------------------------------------------------------------------------------


def fastest(policy: nn.Module, task: Scored, workers: Workers, most: int, *, gradients: bool) -> int:
    """Return the smallest size of a micro-batch, up to `most` items, that is about as fast as the next larger one.

    Sizes are tried upward until one is not faster by GOOD_ENOUGH: memory for still larger ones is never allocated.
    """
    order = sorted(range(len(task.ids)), key=lambda item: task.packed_lengths[item])
    chosen, least = 1, math.inf
    for size in sorted({min(most, 2**power) for power in range(most.bit_length() + 1)}):
        # The first pass is not timed: kernels are planned for shapes that they have not seen.
        for draw in range(2):
            # Items with the same distribution of lengths as all items, other ones in each pass.
            items = [
                order[((2 * number + 1) * len(order) // (2 * size) + draw) % len(order)]
                for number in range(size)
            ]
            rows = rows_of(policy, task.sequences(items)).to(workers.device)
            started = time.perf_counter()
            _pass(policy, rows, workers, gradients=gradients)
            if workers.device.type == "cuda":
                torch.cuda.synchronize()
            seconds = (time.perf_counter() - started) / rows.tokens
        seconds = workers.largest(seconds)
        if GOOD_ENOUGH * seconds > least:
            break
        chosen, least = size, seconds
    return chosen


def _pass(policy: nn.Module, rows: Rows, workers: Workers, *, gradients: bool) -> None:
    """Run a pass over rows, without and with a backward pass; no gradient is left."""
    workers.exchange_gradients(policy, True)
    with torch.set_grad_enabled(gradients):
        scores: Scores = policy(rows)
    if gradients:
        workers.accelerator.backward(scores.logps.mean() * 0)
        reshard(policy)
        policy.zero_grad()
