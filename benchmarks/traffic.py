"""Count the bytes that a process sends in a step, simulated on tensors without data or computed by formula."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.utils._python_dispatch import TorchDispatchMode

KINDS = {
    "_allgather_base_": "all_gather",
    "_reduce_scatter_base_": "reduce_scatter",
    "allreduce_": "all_reduce",
}


@dataclass
class Traffic:
    """Bytes that one process sends, by collective, with ring algorithms (which send the minimum).

    Attributes:
        sent: kind of collective -> bytes: (n - 1) / n of the full tensor for an all-gather or a reduce-scatter over n
            processes, twice that for an all-reduce.
        calls: kind of collective -> number of calls.
    """

    sent: dict[str, float] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)

    def add(self, kind: str, size: float, processes: int) -> None:
        """Add one collective on a tensor of `size` bytes."""
        times = 2 if kind == "all_reduce" else 1
        self.sent[kind] = self.sent.get(kind, 0.0) + times * size * (processes - 1) / processes
        self.calls[kind] = self.calls.get(kind, 0) + 1


class CountTraffic(TorchDispatchMode):
    """Context manager that counts collectives."""

    def __init__(self) -> None:
        super().__init__()
        self.traffic = Traffic()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            name = func._schema.name.removeprefix("c10d::")
            if name not in KINDS:
                raise NotImplementedError(f"bytes of the collective {name}")
            output, given, group = args[0], args[1], args[2]
            if name == "allreduce_":
                output, group = None, args[1]
                size = sum(map(_bytes, args[0]))
            else:
                size = max(_bytes(output), _bytes(given))
            self.traffic.add(KINDS[name], size, ProcessGroup.unbox(group).size())
        return func(*args, **(kwargs or {}))


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def expected(
    blocks: int, others: int, *, processes: int, replicas: int, compute: torch.dtype, micro_batches: int = 1
) -> Traffic:
    """Return the traffic of a step with the trainer's FSDP2, by formula.

    For each micro-batch the weights are gathered in the compute type, those of the blocks again for the backward
    pass. After the last micro-batch the gradients are reduced in float32, and their shards over the replicas.

    Args:
        blocks: number of weights in the blocks.
        others: number of all other weights.
        processes: number of processes that a replica is sharded over.
        replicas: number of replicas of the policy.
        compute: compute type.
        micro_batches: number of micro-batches of a step.
    """
    traffic = Traffic()
    traffic.add("all_gather", micro_batches * compute.itemsize * (2 * blocks + others), processes)
    traffic.add("reduce_scatter", 4 * (blocks + others), processes)
    if replicas > 1:
        traffic.add("all_reduce", 4 * (blocks + others) / processes, replicas)
    return traffic
