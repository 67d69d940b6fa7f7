"""Peak memory of the processes of each stage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import psutil

from sams.planning.memory import RESERVE, SPARE, Passes, Simulation
from sams.planning.models import Sizes, build, cut
from sams.planning.work import SchedulerCosts
from sams.policy.blocks import Checkpointing
from sams.runtime.gpus import Gpu
from sams.training.memory import ADAM_BYTES, COPY_BYTES, MEMORY_SHARE, WAITING_BYTES
from sams.training.tuning import MODES

if TYPE_CHECKING:
    from sams.study.settings import Lora, MicroBatch, Training
    from sams.study.study import Study

DEPTHS = (4, 8)
"""Numbers of blocks that are simulated. Deeper models are extrapolated: each block adds the same memory."""


@dataclass(frozen=True)
class Memory:
    """Peak memory of one process of a stage, in bytes.

    Attributes:
        stages: stages with the same passes.
        passes: largest passes: `4 x 1` are four micro-batches of one item.
        checkpointing: what the backward pass recomputes of each block.
        sync_each: whether gradients are exchanged in every micro-batch, not only in the last.
        policy: weights, gradients, moments and activations, as torch's tracker counts them.
        scheduler: weights, gradients and moments.
        taken: estimate of the complete peak, with memory that the tracker does not see.
        fits: whether the GPU, or the process's share of this machine, holds it; None if unknown.
        accumulated: part that is unsharded gradients, accumulated until the last micro-batch.
    """

    stages: str
    passes: str
    checkpointing: Checkpointing
    sync_each: bool
    policy: float
    scheduler: float
    taken: float
    fits: bool | None
    accumulated: float = 0.0


class Peaks:
    """Computes the peak memory of a study's stages on one kind of machine.

    Args:
        study: the study.
        config: transformers config of its policy.
        sizes: numbers of weights of the policy.
        gpu: GPU of each process; None for processes on the CPUs of this machine.
        world: number of processes of a training job.
        sharded: whether they shard the policy.
    """

    def __init__(
        self,
        study: Study,
        config: dict[str, Any],
        sizes: Sizes,
        *,
        gpu: Gpu | None,
        world: int,
        sharded: bool,
    ) -> None:
        self.study, self.config, self.sizes = study, config, sizes
        self.gpu, self.world, self.sharded = gpu, world, sharded
        self._adapters: dict[str, int] = {}
        self._peaks: dict[tuple[Passes, int, str], int] = {}

    def trained(
        self,
        stage: str,
        training: Training,
        items: int,
        completions: int,
        scheduler: SchedulerCosts | None = None,
    ) -> Memory:
        """Return the peak of a stage that trains on `items` items of a global batch."""
        share = max(1, -(-items // self.world))
        scheduler_bytes = 0 if scheduler is None else scheduler.bytes
        lora, weights = training.lora, self.trained_weights(training.lora)
        checkpointing, sync_each, size = self._choice(training, completions, scheduler_bytes, share)
        size = max(1, min(share, size))
        batches = -(-share // size)
        several = self.sharded and batches > 1
        passes = Passes(
            -(-share // batches), completions, 2 if several else 1, True, checkpointing, several and sync_each
        )
        peak = self.peak(passes, lora)
        accumulated = float(WAITING_BYTES * weights) if several and not sync_each else 0.0
        label = f"{batches} x {passes.items}"
        # Masters, gradients and moments stay in memory during scoring passes.
        scoring = training.scoring_micro_batch_size
        most = -(-training.batch_size // self.world)
        scoring_passes = Passes(most if scoring == "auto" else scoring, completions, trained=False)
        scored = self.peak(scoring_passes) - self.in_4_bits(lora)
        scored += (ADAM_BYTES * weights + self._masters(weights)) / self.shards
        if scored > peak:
            peak, label, accumulated = scored, f"scoring {scoring_passes.items}", 0.0
        # These processes load all weights before they shard them.
        complete = lora is not None or (stage == "train_sft" and self.study.model.path is None)
        loaded = (self.bytes if lora is not None else 4) * self.sizes.total if complete else 0
        return self.row(
            stage,
            label,
            checkpointing,
            peak,
            scheduler_bytes,
            accumulated,
            sync_each=sync_each,
            loaded=loaded,
        )

    @property
    def bytes(self) -> int:
        """Bytes of a weight that is not trained."""
        return 2 if self.study.model.precision == "bfloat16" else 4

    def in_4_bits(self, lora: Lora | None) -> float:
        """Return the bytes that 4-bit weights save: the blocks' linear layers, nearly all that every token passes."""
        if lora is None:
            return 0.0
        return (self.bytes - lora.bytes_of_base(self.study.model.precision)) * self.sizes.body

    @property
    def shards(self) -> int:
        """Number of processes that share a policy."""
        return self.world if self.sharded else 1

    def trained_weights(self, lora: Lora | None) -> int:
        """Return the number of weights that are trained."""
        if lora is None:
            return self.sizes.total
        key = lora.model_dump_json()
        if key not in self._adapters:
            parameters = build(self.config, "eager", lora).parameters()
            self._adapters[key] = sum(part.numel() for part in parameters if part.requires_grad)
        return self._adapters[key]

    def _masters(self, weights: int) -> float:
        """Return the bytes of the masters of trained weights that a policy which is only scored has not."""
        if self.bytes == 4:
            return 0.0
        # Unsharded, the weights in bfloat16 are in memory next to the masters.
        return float((2 if self.sharded else 4) * weights)

    def scored(
        self,
        stage: str,
        micro_batch: MicroBatch,
        most: int,
        completions: int,
        scheduler: SchedulerCosts | None = None,
        lora: Lora | None = None,
    ) -> Memory:
        """Return the peak of a stage that has scoring passes only, with the base of adapters if `lora` is given."""
        items = most if micro_batch == "auto" else micro_batch
        peak = self.peak(Passes(items, completions, trained=False)) - self.in_4_bits(lora)
        scheduler_bytes = 0 if scheduler is None else scheduler.bytes
        return self.row(stage, f"scoring {items}", "none", peak, scheduler_bytes)

    def row(
        self,
        stage: str,
        passes: str,
        checkpointing: Checkpointing,
        policy: float,
        scheduler: float,
        accumulated: float = 0.0,
        *,
        sync_each: bool = False,
        loaded: float = 0.0,
    ) -> Memory:
        """Return the peak of a process, which loads so many bytes of weights before it shards them."""
        start = loaded * (1 + 1 / self.world) if self.sharded else 0.0
        if start > policy + scheduler:
            passes, policy, scheduler, accumulated = "before sharding", start, 0.0, 0.0
        taken = self._taken(policy + scheduler)
        fits = taken <= self.room
        return Memory(stage, passes, checkpointing, sync_each, policy, scheduler, taken, fits, accumulated)

    def _taken(self, tensors: float) -> float:
        return SPARE * tensors + (RESERVE if self.gpu is not None else 0)

    @cached_property
    def room(self) -> float:
        """Bytes of the GPU, or of a process's share of this machine."""
        return self.gpu.memory if self.gpu is not None else psutil.virtual_memory().total / self.world

    def peak(self, passes: Passes, lora: Lora | None = None) -> float:
        """Return the tracked peak of a process in bytes."""
        peak = self._extrapolated(lambda depth: self._peak_at(passes, depth, lora))
        return peak - self.in_4_bits(lora)

    def _peak_at(self, passes: Passes, depth: int, lora: Lora | None) -> int:
        """Return the tracked peak with the model cut to `depth` blocks."""
        if not passes.trained and passes.items > 2:  # linear: no activations are stored
            one, two = (self._peak_at(replace(passes, items=items), depth, lora) for items in (1, 2))
            return one + (passes.items - 1) * (two - one)
        key = passes, depth, "" if lora is None else lora.model_dump_json()
        if key not in self._peaks:
            study = self.study
            simulation = Simulation(
                cut(self.config, depth),
                study.model,
                self.world,
                self.sharded,
                study.data.max_length,
                lora=lora,
            )
            self._peaks[key] = simulation.peak(passes)
        return self._peaks[key]

    def _extrapolated(self, at: Callable[[int], float]) -> float:
        """Extrapolate a value from two depths to the model's depth; shallow models need no extrapolation."""
        depth, (few, more) = self.sizes.layers, DEPTHS
        if depth <= more:
            return at(depth)
        return at(few) + (depth - few) / (more - few) * (at(more) - at(few))

    def _added(self, completions: int, checkpointing: Checkpointing, lora: Lora | None) -> float:
        """Return the bytes that one more of the longest items adds to the peak."""
        one, two = (Passes(items, completions, 1, True, checkpointing) for items in (1, 2))
        added = self._extrapolated(
            lambda depth: self._peak_at(two, depth, lora) - self._peak_at(one, depth, lora)
        )
        return max(1.0, added)

    def _choice(
        self, training: Training, completions: int, scheduler: int, share: int
    ) -> tuple[Checkpointing, bool, int]:
        """Return what is recomputed, whether every micro-batch exchanges gradients, and the size of a micro-batch.

        As in training: the first that holds the longest items (`sams.training.tuning.fit`).
        """
        setting, sync = training.micro_batch_size, self.study.launch.sync_each_micro_batch
        modes = MODES[self.study.model.activation_checkpointing]
        one_batch = setting != "auto" and share <= setting
        syncs = [False, True] if sync == "auto" and self.sharded and not one_batch else [sync is True]
        if setting != "auto" and len(modes) * len(syncs) == 1:
            return modes[0], syncs[0], setting
        least = 1 if setting == "auto" else min(setting, share)
        lora, weights = training.lora, self.trained_weights(training.lora)
        fixed = scheduler + (RESERVE if self.gpu is not None else 0)
        state = (4 + ADAM_BYTES) * weights + (
            0 if lora is None else self.bytes * self.sizes.total - self.in_4_bits(lora)
        )
        if self.bytes == 2 and not self.sharded:
            state += COPY_BYTES * weights
        chosen: tuple[Checkpointing, bool, int] | None = None
        for mode in modes:
            added = self._added(completions, mode, lora)
            for each in syncs:
                waiting = WAITING_BYTES * weights if self.sharded and not each else 0
                room = MEMORY_SHARE * (self.room - fixed - state / self.shards - waiting)
                fitting = int(room / added)
                if fitting >= least:
                    return mode, each, fitting if setting == "auto" else setting
                if fitting > 0 or chosen is None or not chosen[2]:
                    chosen = mode, each, max(0, fitting)
        assert chosen is not None
        return chosen if setting == "auto" else (*chosen[:2], setting)


def together(rows: list[Memory]) -> list[Memory]:
    """Merge rows that differ only in their stage."""
    grouped: dict[Any, list[str]] = {}
    for row in rows:
        key = tuple(value for name, value in vars(row).items() if name != "stages")
        grouped.setdefault(key, []).append(row.stages)
    return [Memory(", ".join(names), *key) for key, names in grouped.items()]
