"""The processes of a training job: rank, collective calls, and the replicated or sharded policy.

accelerate sets up devices, process group and DDP. FSDP2 is applied with torch directly, because accelerate supports
it on GPUs only, and the tests run it on CPU processes. A policy that is trained in bfloat16 is always an FSDP2
module: its weights are float32 masters, from which FSDP2 makes the bfloat16 weights that compute.
"""

import hashlib
import os
import resource
import shutil
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from sams.policy.attention import disable_cudnn_attention
from sams.policy.blocks import blocks
from sams.policy.policy import Policy
from sams.runtime.errors import UserError
from sams.runtime.watch import Watch

T = TypeVar("T")


class Workers:
    """The processes that torchrun started, or a single process.

    Args:
        device: auto, cpu or cuda.
        strategy: ddp or fsdp2.
        shard_over: FSDP2 shards over `all` processes, or over the processes of each `node`; nodes are then replicas
            (HSDP).
        precision: float32 or bfloat16, the compute type.
        threads: CPU threads of each process.
        timeout_minutes: a watched job (`begin_watch`) ends after this time without progress.
        deterministic: use deterministic kernels only; slower, and bitwise reproducible on a GPU.

    Raises:
        UserError: when the machine has fewer GPUs than processes.
    """

    def __init__(
        self,
        *,
        device: str,
        strategy: str,
        precision: str,
        threads: int,
        timeout_minutes: float,
        shard_over: str = "all",
        deterministic: bool = False,
    ) -> None:
        torch.set_num_threads(threads)
        disable_cudnn_attention()
        if deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
        if precision == "bfloat16":
            # Only the scheduler computes in float32, and TensorFloat-32 is precise enough for it.
            torch.set_float32_matmul_precision("high")
        local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        gpus = 0 if device == "cpu" else torch.cuda.device_count()
        if (gpus and local > gpus) or (device == "cuda" and not gpus):
            raise UserError(
                f"{local} processes on this machine, but {gpus} GPUs",
                where="launch.nproc_per_node",
                remedy=f"set it to {gpus or 'auto'} or less, or launch.device: cpu",
            )
        self.accelerator = Accelerator(
            cpu=not gpus,
            kwargs_handlers=[
                # Later than the watch, which reports the position of every process.
                InitProcessGroupKwargs(timeout=timedelta(minutes=timeout_minutes + 1)),
                # Without dropout and batch norm there are no buffers to keep equal.
                DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True),
            ],
        )
        self.strategy = strategy
        self.precision = precision
        self.rank: int = self.accelerator.process_index
        self.world: int = self.accelerator.num_processes
        self.device: torch.device = self.accelerator.device
        self.watch = Watch(self.rank, self.world, 60 * timeout_minutes)
        self.shards = 0
        if strategy == "fsdp2" and self.world > 1:
            self.shards = local if shard_over == "node" else self.world

        if self.shards and self.world % self.shards:
            raise UserError(
                f"{self.world} processes cannot be split into nodes of {self.shards}",
                where="launch.shard_over",
                remedy="start the same number of processes on every node, or set it to all",
            )

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def begin_watch(self, folder: Path) -> None:
        """Start to watch the job: without progress, it ends and reports the position of every process.

        `self.watch.stop` ends the watch.

        Args:
            folder: folder in which the processes write their positions; its content is deleted.
        """
        if self.is_main:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        self.barrier()
        self.watch.start(folder)

    def wrap(self, policy: Policy, *, trained: bool = True) -> nn.Module:
        """Move the policy to the device and replicate or shard it.

        FSDP2 shards it, and also replicates it for training in bfloat16, as shards of size 1. DDP replicates it for
        training in float32. A policy that is only scored needs no wrapper without shards. A policy that is sharded
        may be on the meta device, and stays there.
        """
        if not any(parameter.is_meta for parameter in policy.parameters()):
            policy.to(self.device)
        if not trained:
            policy.requires_grad_(False)
        if self.shards or (trained and self.precision == "bfloat16"):
            self._init_process_group()
            return shard(policy, mesh_of(self.device.type, self.world, self.shards or 1), self.precision)
        if not trained:
            return policy  # DDP refuses a module without gradients
        wrapped: nn.Module = self.accelerator.prepare_model(policy)
        return wrapped

    def _init_process_group(self) -> None:
        """Make the process group that FSDP2 needs where torchrun has not started the process."""
        if not dist.is_initialized():
            backend = "cpu:gloo,cuda:nccl" if self.device.type == "cuda" else "gloo"
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)

    def exchange_gradients(self, policy: nn.Module, last: bool, *, each: bool = False) -> None:
        """Set, *before* a forward pass, whether its backward pass ends with an exchange of gradients.

        DDP prepares the exchange in the forward pass. If set between the two passes, the wrong micro-batch would be
        exchanged, and the replicas would drift apart.

        Args:
            policy: wrapped by the workers.
            last: whether this is the last micro-batch before the optimiser's step.
            each: let FSDP2 exchange in every micro-batch, so that no process keeps unsharded gradients. Nodes that
                are replicas still exchange in the last one only.
        """
        if isinstance(policy, nn.parallel.DistributedDataParallel):
            policy.require_backward_grad_sync = last
        elif isinstance(policy, FSDPModule):
            policy.set_requires_gradient_sync(last or each)
            policy.set_requires_all_reduce(last)

    def refuse_drift(self, policy: nn.Module) -> None:
        """Check that the replicas of a policy are equal.

        Raises:
            RuntimeError: with the checksum of each process.
        """
        # Process r holds the shard of process r % shards; unsharded, all hold the same.
        shards = self.shards or 1
        if self.world == shards:
            return
        reshard(policy)
        parts = (local_part(parameter.detach()) for parameter in policy.parameters())
        checksum = sum(part.double().sum() for part in parts)
        sums = [part.item() for part in self.all_gather(torch.as_tensor(checksum, device=self.device))]
        if any(checksum != sums[rank % shards] for rank, checksum in enumerate(sums)):
            raise RuntimeError(f"the processes' replicas of the policy have drifted apart: {sums}")

    def clip(self, policy: nn.Module, max_norm: float, optimiser: torch.optim.Optimizer) -> Tensor:
        """Clip the gradient and return its norm over all processes before clipping, [] on the device.

        The step of a fused optimiser scales the gradients itself, by `grad_scale` as under torch's GradScaler: there
        is no other pass over them.
        """
        reshard(policy)
        if not optimiser.defaults["fused"]:
            return whole(nn.utils.clip_grad_norm_(policy.parameters(), max_norm))
        gradients = [weight.grad for weight in policy.parameters() if weight.grad is not None]
        if self.shards <= 1:
            gradients = [local_part(gradient) for gradient in gradients]
        norm = whole(nn.utils.get_total_norm(gradients))
        optimiser.grad_scale = ((norm + 1e-6) / max_norm).clamp(min=1.0)  # type: ignore[attr-defined]
        return norm

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum of the processes' tensors, on every process; the given tensor is overwritten."""
        if self.world > 1:
            with self.watch.waiting("all_reduce"):
                dist.all_reduce(tensor)
        return tensor

    def sum_on_cpu(self, tensor: Tensor) -> Tensor:
        """Return the sum of the processes' CPU tensors, on the CPU of every process."""
        return self.sum(tensor.to(self.device)).cpu() if self.world > 1 else tensor

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        """Return a tensor of the same shape from every process, in order of rank."""
        if self.world == 1:
            return [tensor]
        parts = [torch.empty_like(tensor) for _ in range(self.world)]
        with self.watch.waiting("all_gather"):
            dist.all_gather(parts, tensor.contiguous())
        return parts

    def gather(self, value: T) -> list[T]:
        """Return a small picklable value of every process, in order of rank."""
        if self.world == 1:
            return [value]
        parts: list[Any] = [None] * self.world
        dist.all_gather_object(parts, value)
        return parts

    def broadcast(self, tensor: Tensor) -> Tensor:
        """Return rank 0's tensor on every process."""
        if self.world > 1:
            tensor = tensor.to(self.device).contiguous()
            with self.watch.waiting("broadcast"):
                dist.broadcast(tensor, src=0)
        return tensor

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on any process."""
        if self.world == 1:
            return flag
        return any(int(part) for part in self.all_gather(torch.tensor([int(flag)], device=self.device)))

    def largest(self, value: float) -> float:
        """Return the largest of the processes' values."""
        if self.world == 1:
            return value
        return max(float(part) for part in self.all_gather(torch.tensor([value], device=self.device)))

    def peak_memory_mb(self) -> float:
        """Peak memory of the busiest process: allocated on its GPU, or resident where there is none."""
        if self.device.type == "cuda":
            return self.largest(torch.cuda.max_memory_allocated(self.device) / 2**20)
        return self.largest(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)

    def barrier(self) -> None:
        """Wait for all processes."""
        with self.watch.waiting("barrier"):
            self.accelerator.wait_for_everyone()

    def leave(self) -> None:
        """End this worker once all workers have called this; a single process continues.

        Results are written and the metric log is closed before. The interpreter would tear down the process group
        next, and has been seen to wait forever for a peer that had already ended.
        """
        self.barrier()
        if self.world > 1:
            end_worker(0)


def mesh_of(device: str, world: int, shards: int) -> DeviceMesh:
    """Return the device mesh for FSDP2: one row of processes, or rows of `shards` processes that are replicas."""
    if shards == world:
        return dist.init_device_mesh(device, (world,))
    names = ("replicate", "shard")
    return dist.init_device_mesh(device, (world // shards, shards), mesh_dim_names=names)


def local_part(tensor: Tensor) -> Tensor:
    """Return this process's part of a tensor that may be sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor that may be sharded as one tensor, on every process. A collective call if it is sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard(policy: Policy, mesh: DeviceMesh, precision: str) -> Policy:
    """Shard a policy with FSDP2, one group per block: float32 master weights, computed in `precision`.

    With shards of size 1, nothing is gathered: the weights are cast to `precision` before the first pass of a step
    and kept until `reshard`, and frozen weights are computed with as they are.
    """
    alone = mesh.size(mesh.ndim - 1) == 1
    options: dict[str, Any] = {
        "mesh": mesh,
        # Inputs of blocks have the type of the embeddings; casting them would copy `Rows` in every block.
        "mp_policy": MixedPrecisionPolicy(
            getattr(torch, precision), torch.float32, cast_forward_inputs=False
        ),
    }
    if alone:
        options["reshard_after_forward"] = False
        options["ignored_params"] = {weight for weight in policy.parameters() if not weight.requires_grad}
    for block in blocks(policy.model):
        fully_shard(block, **options)
    fully_shard(policy, **options)
    if alone:
        policy.set_reshard_after_backward(False)  # type: ignore[operator]
    return policy


def reshard(policy: nn.Module) -> None:
    """Free the weights that FSDP2 gathered or cast; `policy.parameters()` are the master weights until the next pass.

    Needed before the master weights are read or changed: FSDP2 would compute with the old ones.
    """
    for module in policy.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def end_worker(status: int) -> None:
    """End this process without cleaning up."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def seeded(*parts: Any) -> torch.Generator:
    """Return a random generator for one purpose, from a seed and the name of the purpose."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
