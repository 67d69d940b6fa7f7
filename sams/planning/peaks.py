"""Peak memory of the processes of each stage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import psutil

from sams.planning.memory import RESERVE, SPARE, Passes, Simulation
from sams.planning.models import Sizes
from sams.planning.work import SchedulerCosts
from sams.runtime.gpus import Gpu
from sams.training.memory import ADAM_BYTES, MEMORY_SHARE, WAITING_BYTES

if TYPE_CHECKING:
    from sams.study.settings import MicroBatch, Training
    from sams.study.study import Study

DEPTHS = (4, 8)
"""Numbers of blocks that are simulated. Deeper models are extrapolated: each block adds the same memory."""


@dataclass(frozen=True)
class Memory:
    """Peak memory of one process of a stage, in bytes.

    Attributes:
        stages: stages with the same passes.
        passes: largest passes: `4 x 1` are four micro-batches of one item.
        checkpointing: whether activations are recomputed.
        policy: weights, gradients, moments and activations, as torch's tracker counts them.
        scheduler: weights, gradients and moments.
        taken: estimate of the complete peak, with memory that the tracker does not see.
        fits: whether the GPU, or the process's share of this machine, holds it; None if unknown.
        accumulated: part that is unsharded gradients, accumulated until the last micro-batch.
    """

    stages: str
    passes: str
    checkpointing: bool
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
        self._peaks: dict[tuple[Passes, int], int] = {}

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
        # Frozen weights have no gradients and moments; the adapters themselves are small.
        frozen = 0.0 if training.lora is None else self._state
        checkpointing = self._checkpointing(completions, scheduler, frozen)
        setting = training.micro_batch_size
        size = self._fitting(completions, checkpointing, scheduler, frozen) if setting == "auto" else setting
        size = max(1, min(share, size))
        batches = -(-share // size)
        waiting = self.sharded and batches > 1 and training.lora is None
        passes = Passes(-(-share // batches), completions, 2 if waiting else 1, True, checkpointing)
        peak = self.peak(passes) - frozen
        accumulated = 4.0 * self.sizes.total if waiting else 0.0
        label = f"{batches} x {passes.items}"
        # Gradients and moments stay in memory during scoring passes.
        scoring = training.scoring_micro_batch_size
        most = -(-training.batch_size // self.world)
        scoring_passes = Passes(most if scoring == "auto" else scoring, completions, trained=False)
        if (scored := self.peak(scoring_passes) + self._state - frozen) > peak:
            peak, label, accumulated = scored, f"scoring {scoring_passes.items}", 0.0
        # These processes load all weights before they shard them.
        complete = training.lora is not None or (stage == "train_sft" and self.study.model.path is None)
        return self.row(stage, label, checkpointing, peak, scheduler_bytes, accumulated, complete=complete)

    @property
    def _state(self) -> float:
        """Bytes of gradients and two moments of all weights on one process."""
        return float(ADAM_BYTES * self.sizes.total) / (self.world if self.sharded else 1)

    def scored(
        self,
        stage: str,
        micro_batch: MicroBatch,
        most: int,
        completions: int,
        scheduler: SchedulerCosts | None = None,
    ) -> Memory:
        """Return the peak of a stage that has scoring passes only."""
        items = most if micro_batch == "auto" else micro_batch
        peak = self.peak(Passes(items, completions, trained=False))
        scheduler_bytes = 0 if scheduler is None else scheduler.bytes
        return self.row(stage, f"scoring {items}", False, peak, scheduler_bytes)

    def row(
        self,
        stage: str,
        passes: str,
        checkpointing: bool,
        policy: float,
        scheduler: float,
        accumulated: float = 0.0,
        *,
        complete: bool = False,
    ) -> Memory:
        """Return the peak of a process; with `complete` it loads the complete policy before it is sharded."""
        start = 4.0 * self.sizes.total * (1 + 1 / self.world) if self.sharded and complete else 0.0
        if start > policy + scheduler:
            passes, policy, scheduler, accumulated = "before sharding", start, 0.0, 0.0
        taken = self._taken(policy + scheduler)
        return Memory(stage, passes, checkpointing, policy, scheduler, taken, taken <= self.room, accumulated)

    def _taken(self, tensors: float) -> float:
        return SPARE * tensors + (RESERVE if self.gpu is not None else 0)

    @cached_property
    def room(self) -> float:
        """Bytes of the GPU, or of a process's share of this machine."""
        return self.gpu.memory if self.gpu is not None else psutil.virtual_memory().total / self.world

    def peak(self, passes: Passes) -> float:
        """Return the tracked peak of a process in bytes."""
        return self._extrapolated(lambda depth: self._peak_at(passes, depth))

    def _peak_at(self, passes: Passes, depth: int) -> int:
        """Return the tracked peak with the model cut to `depth` blocks."""
        if not passes.trained and passes.items > 2:  # linear: no activations are stored
            one, two = (self._peak_at(replace(passes, items=items), depth) for items in (1, 2))
            return one + (passes.items - 1) * (two - one)
        if (passes, depth) not in self._peaks:
            study = self.study
            config = self.config | {"num_hidden_layers": depth}
            simulation = Simulation(config, study.model, self.world, self.sharded, study.data.max_length)
            self._peaks[passes, depth] = simulation.peak(passes)
        return self._peaks[passes, depth]

    def _extrapolated(self, at: Callable[[int], float]) -> float:
        """Extrapolate a value from two depths to the model's depth; shallow models need no extrapolation."""
        depth, (few, more) = self.config["num_hidden_layers"], DEPTHS
        if depth <= more:
            return at(depth)
        return at(few) + (depth - few) / (more - few) * (at(more) - at(few))

    def _added(self, completions: int, checkpointing: bool) -> float:
        """Return the bytes that one more of the longest items adds to the peak."""
        one, two = (Passes(items, completions, 1, True, checkpointing) for items in (1, 2))
        return max(
            1.0, self._extrapolated(lambda depth: self._peak_at(two, depth) - self._peak_at(one, depth))
        )

    def _checkpointing(self, completions: int, scheduler: SchedulerCosts | None, frozen: float) -> bool:
        """Return the setting; `auto` means only if the longest item does not fit otherwise."""
        setting = self.study.model.activation_checkpointing
        return setting if setting != "auto" else not self._fitting(completions, False, scheduler, frozen)

    def _fitting(
        self, completions: int, checkpointing: bool, scheduler: SchedulerCosts | None, frozen: float
    ) -> int:
        """Return how many of the longest items fit in a micro-batch, by the rule of `sams.training.tuning`."""
        shards = self.world if self.sharded else 1
        free = self.room - (RESERVE if self.gpu is not None else 0) - 4.0 * self.sizes.total / shards
        free -= 0 if scheduler is None else scheduler.bytes
        waiting = WAITING_BYTES * self.sizes.total if self.sharded and not frozen else 0
        return int(
            MEMORY_SHARE * (free - (self._state - frozen) - waiting) / self._added(completions, checkpointing)
        )


def together(rows: list[Memory]) -> list[Memory]:
    """Merge rows that differ only in their stage."""
    grouped: dict[Any, list[str]] = {}
    for row in rows:
        key = (row.passes, row.checkpointing, row.policy, row.scheduler, row.taken, row.fits, row.accumulated)
        grouped.setdefault(key, []).append(row.stages)
    return [Memory(", ".join(names), *key) for key, names in grouped.items()]
