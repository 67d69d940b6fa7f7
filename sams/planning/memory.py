"""Peak memory of a training process, simulated on tensors without data.

torch's memory trackers count every storage while the study's policy, sharded as in training, takes a step on the
longest possible rows. They do not see the CUDA context, NCCL's buffers and fragmentation, for which RESERVE and
SPARE allow.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.distributed._tools.mem_tracker import MemTracker
from torch.distributed.device_mesh import DeviceMesh

from sams.planning.models import build
from sams.policy.attention import SEGMENTS
from sams.policy.blocks import Checkpointing
from sams.policy.policy import Policy
from sams.policy.rows import Item, Rows, pack_rows, pad_rows
from sams.training.distribution import mesh_of, reshard, shard

if TYPE_CHECKING:
    from sams.study.settings import Lora, Model

log = logging.getLogger(__name__)

RESERVE = 2 * 2**30
"""Bytes of GPU memory taken by the CUDA context and NCCL. An assumption."""
SPARE = 1.1
"""Allocated memory over the memory of tensors (fragmentation). An assumption."""


@dataclass(frozen=True)
class Passes:
    """Passes of one process between two optimiser steps.

    Attributes:
        items: items of a micro-batch.
        completions: completions of an item: 2 for a pair, 1 for an example.
        micro_batches: micro-batches whose gradients are accumulated before they are reduced.
        trained: whether gradients are computed.
        checkpointing: what the backward pass recomputes of each block.
        sync_each: whether gradients are exchanged in every micro-batch, not only in the last.
    """

    items: int
    completions: int = 2
    micro_batches: int = 1
    trained: bool = True
    checkpointing: Checkpointing = "none"
    sync_each: bool = False


@dataclass(frozen=True)
class Simulation:
    """A policy and the way a study distributes it.

    Attributes:
        config: transformers config.
        model: settings of the policy.
        world: number of processes.
        sharded: whether FSDP2 shards the policy; otherwise each process holds all of it.
        max_length: longest prompt with completion, in tokens.
        replicas: replicas of the policy, each sharded over a part of the processes (HSDP).
        lora: adapters that are trained; None trains all weights.
    """

    config: dict[str, Any]
    model: Model
    world: int
    sharded: bool
    max_length: int
    replicas: int = 1
    lora: Lora | None = None

    def peak(self, passes: Passes, watched: contextlib.AbstractContextManager[Any] | None = None) -> int:
        """Run one step of one or two micro-batches, or one scoring pass, and return the peak of one process in bytes.

        The peak includes the weights and, if `passes.trained`, gradients and AdamW's moments.

        Args:
            passes: the passes of the step.
            watched: context manager that is active during the passes, such as `benchmarks.traffic.CountTraffic`.
        """
        watched = watched or contextlib.nullcontext()
        if self.model.packing:
            try:
                return self._peak(passes, watched, packed=True)
            except Exception as error:  # models raise any type; such a job pads, too
                log.info("packed rows: %r", error)
        return self._peak(passes, watched, packed=False)

    def _peak(self, passes: Passes, watched: contextlib.AbstractContextManager[Any], *, packed: bool) -> int:
        rows = longest_rows(passes, self.max_length, packed=packed)
        sharded, low = self.sharded and self.world > 1, self.model.precision == "bfloat16"
        lora = self.lora if passes.trained else None
        policy = build(self.config, self.model.attention, lora)
        policy.model.config.pad_token_id = (
            None  # some classes look for it among the ids, which have no values
        )
        for weight in policy.parameters():
            if low and not (passes.trained and weight.requires_grad):  # no optimiser needs it in float32
                weight.data = weight.data.to(torch.bfloat16)
        # FSDP2's tracker, unlike the other, accepts frozen weights; without shards, wrapping float32 adds no memory.
        wrapped = sharded or (passes.trained and (low or lora is not None))
        processes = self.world if sharded else 1
        with fake_processes(processes, self.replicas) as mesh, FakeTensorMode(allow_non_fake_inputs=True):
            policy = on_cpu(policy)
            policy.pack(SEGMENTS if packed else None)
            policy.prepare(compiled=False, checkpointing=passes.checkpointing)
            if wrapped:
                shard(policy, mesh, self.model.precision)
            return self._run(policy, rows, passes, watched, wrapped=wrapped)

    def _run(
        self,
        policy: Policy,
        rows: Rows,
        passes: Passes,
        watched: contextlib.AbstractContextManager[Any],
        *,
        wrapped: bool,
    ) -> int:
        optimiser = _with_moments(policy) if passes.trained else None
        tracker: Any = FSDPMemTracker(policy, optimiser) if wrapped else MemTracker()  # type: ignore[arg-type]
        if not wrapped:
            tracker.track_external(*([policy] if optimiser is None else [policy, optimiser]))
        with tracker, watched, torch.set_grad_enabled(passes.trained):
            # More than two micro-batches take no more memory than two.
            for left in reversed(range(min(2, passes.micro_batches))):
                tracker.reset_mod_stats()  # the tracker expects one pass
                if wrapped:
                    policy.set_requires_gradient_sync(passes.sync_each or left == 0)  # type: ignore[operator]
                logps = policy(rows).logps
                if optimiser is not None:
                    logps.mean().backward()
            if optimiser is not None:
                reshard(policy)
                optimiser.step()
        return max(int(total["Total"]) for total in tracker.get_tracker_snapshot("peak").values())


def longest_rows(passes: Passes, max_length: int, *, packed: bool) -> Rows:
    """Return rows of the longest possible items: a prompt of one token, and completions up to the limit."""
    item: Item = ([1], [[1] * (max_length - 1)] * passes.completions)
    if packed:
        return pack_rows([item] * passes.items)
    rows = pad_rows([item] * passes.items)
    # All rows have the same length, so there is no mask; transformers would read its values.
    return Rows(rows.input_ids, rows.sequence, rows.answers, rows.predicts, rows.counts)


def on_cpu(policy: Policy) -> Policy:
    """Replace a policy's meta tensors by CPU tensors, which have no data under a fake tensor mode."""
    made: dict[Any, Any] = {}
    for module in policy.modules():
        for name, weight in module.named_parameters(recurse=False):
            if weight not in made:  # tied weights stay tied
                made[weight] = nn.Parameter(torch.empty_like(weight, device="cpu"), weight.requires_grad)
            setattr(module, name, made[weight])
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty_like(buffer, device="cpu"))
    return policy


def _with_moments(policy: Policy) -> torch.optim.Optimizer:
    """Return the trainer's optimiser in the state after its first step, with moments."""
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, fused=True)
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step()
    optimiser.zero_grad()
    return optimiser


@contextlib.contextmanager
def fake_processes(world: int, replicas: int = 1) -> Iterator[DeviceMesh]:
    """Yield a device mesh of a fake process group: this process is rank 0, and collectives return at once."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world)
    try:
        yield mesh_of("cpu", world, world // replicas)
    finally:
        dist.destroy_process_group()
