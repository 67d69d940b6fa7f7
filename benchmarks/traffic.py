"""What a process sends over its links in a step, counted from a run on tensors that have a shape and no data."""

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
    """Bytes that one process sends, by collective; ring algorithms, which no other sends less than.

    Attributes:
        sent: kind of collective -> bytes: (n - 1) / n of the whole tensor for an all-gather or a reduce-scatter over
            n processes, twice that for an all-reduce.
        calls: kind -> how many.
    """

    sent: dict[str, float] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)

    def add(self, kind: str, whole: float, processes: int) -> None:
        """One collective on a tensor of so many bytes."""
        times = 2 if kind == "all_reduce" else 1
        self.sent[kind] = self.sent.get(kind, 0.0) + times * whole * (processes - 1) / processes
        self.calls[kind] = self.calls.get(kind, 0) + 1


class CountTraffic(TorchDispatchMode):
    """Counts the collectives of what runs inside it."""

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
                whole = sum(map(_bytes, args[0]))
            else:
                whole = max(_bytes(output), _bytes(given))
            self.traffic.add(KINDS[name], whole, ProcessGroup.unbox(group).size())
        return func(*args, **(kwargs or {}))


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def expected(
    blocks: int, others: int, *, processes: int, replicas: int, compute: torch.dtype, micro_batches: int = 1
) -> Traffic:
    """The same for a step by hand, of the trainer's FSDP2.

    For each micro-batch weights are gathered in the compute type, those of the blocks once more for the backward
    pass; after the last one gradients are reduced in float32, and what is left of them on a process once more over
    the replicas.

    Args:
        blocks: weights in the blocks.
        others: all others.
        processes: that a replica is sharded over.
        replicas: of the policy.
        compute: compute type.
        micro_batches: of a step.
    """
    found = Traffic()
    found.add("all_gather", micro_batches * compute.itemsize * (2 * blocks + others), processes)
    found.add("reduce_scatter", 4 * (blocks + others), processes)
    if replicas > 1:
        found.add("all_reduce", 4 * (blocks + others) / processes, replicas)
    return found
