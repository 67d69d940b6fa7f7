"""Tune a job before its first step: row layout, sizes of micro-batches, activation checkpointing.

Tuning changes results by rounding only. It runs once per run: checkpoints and the result's recipe.json hold the
tuned values, which a resumed run reuses, to be bitwise equal to an uninterrupted run.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

from sams.policy.blocks import Checkpointing, blocks
from sams.policy.policy import bare
from sams.runtime.errors import UserError, first_line
from sams.training.agreement import rows_of
from sams.training.distribution import Workers
from sams.training.layout import choose_layout
from sams.training.memory import (
    ADAM_BYTES,
    MEMORY_SHARE,
    activation_bytes,
    clear,
    free_bytes,
    is_sharded,
    items_within,
    kept_bytes,
    local_weights,
    row_tokens,
    run_pass,
)
from sams.training.tasks.base import Scored

if TYPE_CHECKING:
    from sams.study.settings import MicroBatch, Model, Training

log = logging.getLogger(__name__)

COMPILED_FROM = 300
"""Least number of steps, or of micro-batches of a stage that only scores, for which `compile: auto` compiles.

Compiling takes one to two minutes and makes a step 10 to 30 % shorter: at 2 s a step, 300 steps win it back."""
GOOD_ENOUGH = 1.05
"""A larger micro-batch must be faster by this factor, because timings are noisy and memory is not free."""
LONG = 1.0
"""Seconds of a pass on CPUs from which the planning of kernels does not count, so that the first pass is timed."""


MODES: dict[bool | str, tuple[Checkpointing, ...]] = {
    False: ("none",),
    True: ("full",),
    "selective": ("selective",),
    "auto": ("none", "selective", "full"),
}
"""Values of `model.activation_checkpointing`, with what is tried, the fastest first."""


@dataclass
class Tuning:
    """Layout and sizes of the passes of a job.

    Attributes:
        packed: attention of packed rows; None for padded rows.
        micro_batch: items of one forward and backward pass, per process.
        scoring_micro_batch: items of one pass without gradients.
        checkpointing: what the backward pass recomputes of each block.
        sync_each_micro_batch: whether FSDP2 exchanges gradients in every micro-batch, not only in the last of a step.
        compiled: whether blocks and log-probs are compiled.
        fallbacks: a sentence for each setting, layout or kernel that could not be used, with its cause.
    """

    packed: str | None
    micro_batch: int
    scoring_micro_batch: int
    checkpointing: Checkpointing
    sync_each_micro_batch: bool = False
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
    passes: int = 0,
    sync_each_micro_batch: bool | Literal["auto"] = False,
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
        passes: number of steps of the job, or of micro-batches of a job that only scores.
        sync_each_micro_batch: whether FSDP2 exchanges gradients in every micro-batch; `auto`: if memory requires it.
        other_weights: number of other weights that are trained on every process.

    Raises:
        UserError: when the longest item alone does not fit in memory, or `model.compile: true` is impossible.
    """
    packed, fallbacks = choose_layout(policy, task, workers, model)
    for sentence in fallbacks:
        log.warning(sentence)
    modes = MODES[model.activation_checkpointing]
    syncs = (
        [sync_each_micro_batch]
        if sync_each_micro_batch != "auto"
        else [False, True][: 1 + is_sharded(policy)]
    )
    compiled = pays_to_compile(model.compile, workers.device, passes)
    tuning = Tuning(packed, 1, 1, modes[0], syncs[0], compiled, fallbacks)
    tuning.apply(policy)
    if compiled and (cause := compile_error(policy, task, workers, gradients=items > 0)):
        if model.compile is True:
            raise UserError(
                f"the model cannot be compiled: {cause}",
                where="model.compile",
                remedy="set it to auto or false, or mend what the message names",
            )
        fallbacks.append(f"blocks are not compiled, which is slower ({cause})")
        log.warning(fallbacks[-1])
        tuning.compiled = False
        tuning.apply(policy)
    shares = [max(1, -(-count // workers.world)) for count in (items, scored_items)]
    if items and (micro_batch == "auto" or len(modes) * len(syncs) > 1):
        least = 1 if micro_batch == "auto" else min(micro_batch, shares[0])
        room = fit(
            policy,
            task,
            workers,
            tuning,
            modes=modes,
            syncs=syncs,
            least=least,
            other_weights=other_weights,
        )
        shares[0] = min(shares[0], room)
    if micro_batch != "auto":
        tuning.micro_batch = micro_batch
    elif items:
        log.info("timing sizes of micro-batches ...")
        tuning.micro_batch = fastest(policy, task, workers, shares[0], gradients=True)
    if scoring_micro_batch != "auto":
        tuning.scoring_micro_batch = scoring_micro_batch
    else:
        tuning.scoring_micro_batch = fastest(policy, task, workers, shares[1], gradients=False)
    if workers.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(workers.device)
    log.info(
        "rows are %s; micro-batches of %d (scoring: %d) per process; activation checkpointing: %s; gradients are "
        "exchanged in %s micro-batch; blocks are %s",
        "padded" if packed is None else f"packed ({packed.removeprefix('sams_')})",
        tuning.micro_batch,
        tuning.scoring_micro_batch,
        tuning.checkpointing,
        "every" if tuning.sync_each_micro_batch else "the last",
        "compiled" if tuning.compiled else "not compiled",
    )
    return tuning


def fit(
    policy: nn.Module,
    task: Scored,
    workers: Workers,
    tuning: Tuning,
    *,
    modes: Sequence[Checkpointing],
    syncs: Sequence[bool],
    least: int = 1,
    other_weights: int = 0,
) -> int:
    """Set how to save memory, and return how many of the longest items then fit in a micro-batch.

    It is the first combination with which `least` of the longest items fit, else the last one with which one fits.
    An exchange of gradients in every micro-batch costs less than recomputation, so it is tried first. Memory for
    gradients and the optimiser's state is reserved. The sizes are predicted and not tried: a process that runs out of
    memory would leave the others waiting.

    Args:
        policy: wrapped by the workers.
        task: task of the items.
        workers: the processes.
        tuning: gets the values of `checkpointing` and `sync_each_micro_batch`.
        modes: values of `checkpointing` to try, the fastest first.
        syncs: values of `sync_each_micro_batch` to try, the fastest first.
        least: number of items that should fit.
        other_weights: number of other weights that are trained on every process.

    Raises:
        UserError: when the longest item does not fit with any combination.
    """

    @cache
    def per_token_of(mode: Checkpointing) -> float:
        bare(policy).prepare(compiled=tuning.compiled, checkpointing=mode)
        return activation_bytes(policy, task, workers)

    state = ADAM_BYTES * (local_weights(policy) + other_weights)
    found: tuple[Checkpointing, bool, int] | None = None
    count = len(blocks(bare(policy).model))
    for mode in modes:
        per_token = per_token_of("none")
        if mode != "none":  # the backward pass computes all activations of one block at a time
            kept = per_token_of(mode)
            per_token = kept + max(0.0, per_token - kept) / count
        for each in syncs:
            room = MEMORY_SHARE * (free_bytes(workers.device) - state - kept_bytes(policy, each=each))
            fitting = int(-workers.largest(-items_within(policy, task, room / per_token)))
            if fitting:
                found = mode, each, fitting
            if fitting >= least:
                break
        if found and found[2] >= least:
            break
    if found is None:
        raise UserError(
            f"activations of the longest item take {per_token * row_tokens(policy, task)[0] / 2**30:.1f} GiB, "
            f"of {room / 2**30:.1f} GiB available",
            where="model.activation_checkpointing",
            remedy="set it to auto, shard the policy (launch.strategy: fsdp2), or lower data.max_length",
        )
    tuning.checkpointing, tuning.sync_each_micro_batch, fitting = found
    tuning.apply(policy)
    return fitting


def pays_to_compile(setting: bool | Literal["auto"], device: torch.device, passes: int) -> bool:
    """Return whether to compile: `auto` does so on a GPU in a long job, unless its kernels must be deterministic."""
    if setting != "auto":
        return setting
    return (
        device.type == "cuda" and passes >= COMPILED_FROM and not torch.are_deterministic_algorithms_enabled()
    )


def compile_error(policy: nn.Module, task: Scored, workers: Workers, *, gradients: bool) -> str:
    """Return why a compiled policy cannot compute on one of the processes; empty if it can on all.

    Compilers need more than torch: the GPU's generated kernels are built with a C compiler, which a machine may lack.
    """
    cause = ""
    try:
        run_pass(
            policy, rows_of(policy, task.sequences([0])).to(workers.device), workers, gradients=gradients
        )
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # dynamo, inductor and Triton raise any type
        cause = first_line(error)
    clear(policy)
    return next(filter(None, workers.gather(cause)), "")


# --- speed ----------------------------------------------------------------------------------------


def fastest(policy: nn.Module, task: Scored, workers: Workers, most: int, *, gradients: bool) -> int:
    """Return the smallest size of a micro-batch, up to `most` items, that is about as fast as the next larger one.

    Sizes are tried upward until one is not faster by GOOD_ENOUGH: memory for still larger ones is never allocated.
    """
    order = sorted(range(len(task.ids)), key=lambda item: task.packed_lengths[item])
    chosen, least = 1, math.inf
    for size in sorted({min(most, 2**power) for power in range(most.bit_length() + 1)}):
        # A short first pass is not timed: kernels are planned for shapes that they have not seen.
        for draw in range(2):
            # Items with the same distribution of lengths as all items, other ones in each pass.
            items = [
                order[((2 * number + 1) * len(order) // (2 * size) + draw) % len(order)]
                for number in range(size)
            ]
            rows = rows_of(policy, task.sequences(items)).to(workers.device)
            started = time.perf_counter()
            run_pass(policy, rows, workers, gradients=gradients)
            if workers.device.type == "cuda":
                torch.cuda.synchronize()
            elapsed = time.perf_counter() - started
            seconds = workers.largest(elapsed / rows.tokens)
            # The first pass of all allocates memory, and GPUs may compile kernels in the first one of each size.
            if size > 1 and workers.device.type == "cpu" and workers.largest(elapsed) >= LONG:
                break
        if GOOD_ENOUGH * seconds > least:
            break
        chosen, least = size, seconds
    clear(policy)
    return chosen
