"""What a step costs: time, tokens, arithmetic, padding, balance, memory.

These figures differ from machine to machine and from start to start, so they are kept apart from the metric
log, which a resumed run repeats bit by bit.
"""

from __future__ import annotations

import json
import os
import time
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sams.policy.rows import Rows
from sams.training.distribution import Workers

# Dense bfloat16 peak of one GPU in FLOP/s, by a part of its name (vendors' data sheets).
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "B200": 2250e12}

MEDIANS = {"tokens_per_second", "padding_share", "busiest_over_mean", "mfu"}


@dataclass
class Tally:
    """What one process has run since the last step.

    Attributes:
        tokens: computed, padding left out; a packed prompt counts once.
        places: the same with padding.
        units: token passes, a forward pass being 1 and a backward pass 2 more.
        predicted: the same of the completion tokens, which alone meet the vocabulary.
    """

    tokens: int = 0
    places: int = 0
    units: int = 0
    predicted: int = 0

    def add(self, rows: Rows, *, trained: bool) -> None:
        """Count one micro-batch. Recomputed activations are no work done."""
        passes = 3 if trained else 1
        self.tokens += rows.tokens
        self.places += rows.input_ids.numel()
        self.units += passes * rows.tokens
        self.predicted += passes * len(rows.answers)


@dataclass
class Costs:
    """The cost log of a run, one JSON line per logged step, on rank 0.

    Attributes:
        file: the log; lines of steps that a killed run repeats are there twice.
        body: weights that every token meets, N.
        head: weights of the output layer, N_h.
        tally: of the current step, filled by the passes.
        steps: steps of this start.
        told: figures of these steps of which the summary has medians: 8 bytes each, for as many steps as there are.
    """

    file: Path
    workers: Workers
    body: int
    head: int
    tally: Tally = field(default_factory=Tally)
    steps: int = 0
    told: dict[str, array[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # A full disk may have torn the last line; what is appended must begin a line of its own.
        if self.workers.is_main and self.file.is_file():
            whole = self.file.read_bytes().rfind(b"\n") + 1
            os.truncate(self.file, whole)

    def step(self, step: int, *, seconds: float, data_seconds: float, log: bool) -> None:
        """Close a step and count anew. A collective call.

        FLOPs are 2 N per scored token and 6 N per trained one, and 2 N_h or 6 N_h more per completion token:
        MFU is the share of the peak that does useful work (PaLM, appendix B, without its attention term).
        """
        mine, self.tally = self.tally, Tally()
        counts = torch.tensor(
            [mine.tokens, mine.places, mine.units, mine.predicted], device=self.workers.device
        )
        parts = torch.stack(self.workers.all_gather(counts)).double().cpu()
        tokens, places = parts[:, :2].sum(dim=0).tolist()
        work = 2 * (self.body * parts[:, 2] + self.head * parts[:, 3])
        per_second = work.sum().item() / seconds / self.workers.world
        found = {
            "seconds": seconds,
            "data_seconds": data_seconds,
            "tokens_per_second": tokens / seconds,
            "tflops_per_process": per_second / 1e12,
            "padding_share": 1 - tokens / max(1.0, places),
            "busiest_over_mean": (work.max() / work.mean()).item() if work.sum() else 1.0,
            "peak_memory_mb": self.workers.peak_memory_mb(),
        }
        if peak := peak_flops(self.workers.device):
            found["mfu"] = per_second / peak
        self.steps += 1
        for name in MEDIANS & found.keys():
            self.told.setdefault(name, array("d")).append(found[name])
        if log and self.workers.is_main:
            with self.file.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps({"step": step, "time": time.time(), **found}) + "\n")

    def summary(self) -> dict[str, Any]:
        """Medians over the steps of this start, for the job's figures."""
        return {name: torch.tensor(values).median().item() for name, values in sorted(self.told.items())}


def peak_flops(device: torch.device) -> float | None:
    """Peak of a GPU; None for a CPU or an unknown GPU, for which no MFU is told."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_FLOPS.items() if part in name), None)
