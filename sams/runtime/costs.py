"""Cost log of a training run: time, tokens, FLOPs, padding, balance and memory of its steps.

These figures differ between machines and between starts. They are not in the metric log, which a resumed run
repeats bit by bit.
"""

from __future__ import annotations

import json
import os
import time
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from sams.runtime.gpus import peak_flops

MEDIANS = {"tokens_per_second", "padding_share", "busiest_over_mean", "mfu"}


class Processes(Protocol):
    """The part of a job's processes that the cost log uses."""

    device: torch.device
    world: int

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0."""

    def all_gather(self, values: torch.Tensor) -> list[torch.Tensor]:
        """Return the tensors of all processes."""

    def peak_memory_mb(self) -> float:
        """Peak memory of all processes."""


@dataclass
class Tally:
    """Work of one process since the last step.

    Attributes:
        tokens: computed tokens without padding; a packed prompt counts once.
        positions: computed tokens with padding.
        units: token passes; a forward pass is 1, a backward pass 2 more.
        predicted: token passes of the completion tokens, which alone reach the output layer.
    """

    tokens: int = 0
    positions: int = 0
    units: int = 0
    predicted: int = 0

    def add(self, tokens: int, positions: int, predicted: int, *, trained: bool) -> None:
        """Count one micro-batch. Recomputed activations are not counted.

        Args:
            tokens: tokens without padding.
            positions: tokens with padding.
            predicted: completion tokens.
            trained: whether there is a backward pass.
        """
        passes = 3 if trained else 1
        self.tokens += tokens
        self.positions += positions
        self.units += passes * tokens
        self.predicted += passes * predicted


@dataclass
class Costs:
    """The cost log of a run on rank 0, one JSON line per logged step.

    Attributes:
        file: the log; steps that a resumed run repeats have two lines.
        workers: the processes of the job.
        body: weights that every token passes, N.
        head: weights of the output layer, N_h.
        tally: work of the current step, counted by the passes.
        steps: steps of this start.
        waiting: work and seconds of the steps since the last logged one, which processes exchange together.
        figures: figures of all steps of this start, for the medians of `summary`: 8 bytes each.
    """

    file: Path
    workers: Processes
    body: int
    head: int
    tally: Tally = field(default_factory=Tally)
    steps: int = 0
    waiting: list[tuple[Tally, float]] = field(default_factory=list)
    figures: dict[str, array[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # A full disk may have cut the last line; the next line must begin on its own.
        if self.workers.is_main and self.file.is_file():
            os.truncate(self.file, self.file.read_bytes().rfind(b"\n") + 1)

    def step(self, step: int, *, seconds: float, data_seconds: float, log: bool) -> None:
        """Close a step and reset the tally. A collective call if `log` is set, on all processes alike."""
        self.waiting.append((self.tally, seconds))
        self.tally = Tally()
        self.steps += 1
        if not log:
            return
        figures = self._exchange()
        figures |= {"data_seconds": data_seconds, "peak_memory_mb": self.workers.peak_memory_mb()}
        if self.workers.is_main:
            with self.file.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps({"step": step, "time": time.time(), **figures}) + "\n")

    def _exchange(self) -> dict[str, float]:
        """Add the figures of the waiting steps to `figures`; return those of the last. A collective call.

        FLOPs are 2 N per scored token and 6 N per trained one, and 2 N_h or 6 N_h more per completion token.
        MFU is their share of the peak (PaLM, appendix B, without its attention term).
        """
        waiting, self.waiting = self.waiting, []
        device = self.workers.device
        cuda = device.type == "cuda"
        peak = peak_flops(torch.cuda.get_device_name(device)) if cuda else None
        counts = torch.tensor(
            [(tally.tokens, tally.positions, tally.units, tally.predicted) for tally, _ in waiting],
            device=device if self.workers.world > 1 else None,
        )
        parts = torch.stack(self.workers.all_gather(counts), dim=1).double().cpu()
        figures: dict[str, float] = {}
        for (_, seconds), of_step in zip(waiting, parts, strict=True):
            tokens, positions = of_step[:, :2].sum(dim=0).tolist()
            work = 2 * (self.body * of_step[:, 2] + self.head * of_step[:, 3])
            per_second = work.sum().item() / seconds / self.workers.world
            figures = {
                "seconds": seconds,
                "tokens_per_second": tokens / seconds,
                "tflops_per_process": per_second / 1e12,
                "padding_share": 1 - tokens / max(1.0, positions),
                "busiest_over_mean": (work.max() / work.mean()).item() if work.sum() else 1.0,
            }
            if peak:
                figures["mfu"] = per_second / peak
            for name in MEDIANS & figures.keys():
                self.figures.setdefault(name, array("d")).append(figures[name])
        return figures

    def summary(self) -> dict[str, Any]:
        """Return the medians over the steps of this start. A collective call."""
        if self.waiting:
            self._exchange()
        return {name: torch.tensor(values).median().item() for name, values in sorted(self.figures.items())}
