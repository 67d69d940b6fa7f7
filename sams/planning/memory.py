"""Peak memory of a training process, from a run of its passes on tensors that have a shape and no data.

torch's memory trackers count every storage while the study's own policy, sharded or not as the trainer does it, takes
its step on the longest rows there can be. They do not see the CUDA context, NCCL's buffers and fragmentation: RESERVE
and SPARE stand for these.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.distributed._tools.mem_tracker import MemTracker
from torch.distributed.device_mesh import DeviceMesh

from sams.planning.models import build
from sams.policy.model import checkpoint_activations
from sams.policy.packing import SEGMENTS
from sams.policy.policy import Policy
from sams.policy.rows import Item, Rows, pack_rows, pad_rows
from sams.training.distribution import mesh_of, shard

if TYPE_CHECKING:
    from sams.study.settings import Model

RESERVE = 2 * 2**30
"""Bytes of a GPU taken by its context and by NCCL. An assumption."""
SPARE = 1.1
"""What is allocated, over what tensors hold: fragmentation. An assumption."""


@dataclass(frozen=True)
class Passes:
    """The passes of one kind between two steps of the optimiser, on one process.

    Attributes:
        items: of a micro-batch.
        completions: of an item: 2 of a pair, 1 of an example.
        micro_batches: more than one are added up before gradients are exchanged.
        trained: whether gradients are computed.
        checkpointing: whether blocks are computed again in the backward pass.
    """

    items: int
    completions: int = 2
    micro_batches: int = 1
    trained: bool = True
    checkpointing: bool = False


@dataclass(frozen=True)
class Simulation:
    """How a study runs its policy.

    Attributes:
        config: transformers config.
        model: settings of the policy.
        world: processes.
        sharded: FSDP2; otherwise each process holds the policy whole, as alone or with DDP.
        max_length: longest prompt and completion in tokens.
        replicas: of the policy, each sharded over a part of the processes (HSDP).
    """

    config: dict[str, Any]
    model: Model
    world: int
    sharded: bool
    max_length: int
    replicas: int = 1

    def peak(self, passes: Passes, watched: contextlib.AbstractContextManager[Any] | None = None) -> int:
        """Run one step of one or two micro-batches, or one scoring pass, and return the peak of one process in bytes.

        The peak holds the weights, and for a trained policy its gradients and AdamW's moments.

        Args:
            passes: the passes of the step.
            watched: context that is active during the passes (`benchmarks.traffic` counts collectives by one).
        """
        rows = longest_rows(passes, self.max_length, packed=self.model.packing)
        world = self.world if self.sharded else 1
        with fake_processes(world, self.replicas) as mesh, FakeTensorMode(allow_non_fake_inputs=True):
            policy = on_cpu(build(self.config, self.model.attention))
            policy.pack(SEGMENTS if self.model.packing else None)
            if passes.checkpointing:
                checkpoint_activations(policy.model)
            if self.sharded and self.world > 1:
                shard(policy, mesh, self.model.precision)
            return self._run(policy, rows, passes, watched or contextlib.nullcontext())

    def _run(
        self, policy: Policy, rows: Rows, passes: Passes, watched: contextlib.AbstractContextManager[Any]
    ) -> int:
        optimiser = _with_moments(policy) if passes.trained else None
        sharded = self.sharded and self.world > 1
        tracker: Any = FSDPMemTracker(policy, optimiser) if sharded else MemTracker()  # type: ignore[arg-type]
        if not sharded:
            tracker.track_external(*([policy] if optimiser is None else [policy, optimiser]))
        compute = partial(
            torch.autocast, "cpu", torch.bfloat16, enabled=not sharded and self.model.precision == "bfloat16"
        )
        with tracker, watched, torch.set_grad_enabled(passes.trained):
            # What a second micro-batch adds, further ones do not.
            for left in reversed(range(min(2, passes.micro_batches))):
                tracker.reset_mod_stats()  # each pass is the tracker's first
                if sharded:
                    policy.set_requires_gradient_sync(left == 0)  # type: ignore[operator]
                with compute():
                    logps = policy(rows).logps
                if optimiser is not None:
                    logps.mean().backward()
            if optimiser is not None:
                optimiser.step()
        return max(int(total["Total"]) for total in tracker.get_tracker_snapshot("peak").values())


def longest_rows(passes: Passes, max_length: int, *, packed: bool) -> Rows:
    """Rows of items as long as they can be: a prompt of one token, and completions up to the limit."""
    item: Item = ([1], [[1] * (max_length - 1)] * passes.completions)
    if packed:
        return pack_rows([item] * passes.items)
    rows = pad_rows([item] * passes.items)
    # All rows are of one length: nothing is masked, and transformers would look into the mask.
    return Rows(rows.input_ids, rows.sequence, rows.answers, rows.predicts, rows.counts)


def on_cpu(policy: Policy) -> Policy:
    """Make a meta policy's weights tensors of the CPU, which a fake tensor mode gives no data either."""
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
    """The trainer's optimiser as it is after its first step, moments included."""
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, fused=True)
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step()
    optimiser.zero_grad()
    return optimiser


@contextlib.contextmanager
def fake_processes(world: int, replicas: int = 1) -> Iterator[DeviceMesh]:
    """A process group of which this is rank 0. The others are not there, and nothing is waited for."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world)
    try:
        yield mesh_of("cpu", world, world // replicas)
    finally:
        dist.destroy_process_group()
