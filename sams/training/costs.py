"""What a step costs: time, tokens, arithmetic, padding, balance, memory.

These figures differ from machine to machine and from start to start, so they are kept apart from the metric
log, which a resumed run repeats bit by bit.
"""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sams.training.distribution import Workers

# Dense bfloat16 peak of one GPU in FLOP/s, by a part of its name (vendors' data sheets).
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "B200": 2250e12}


@dataclass
class Tally:
    """What one process has run since the last step: tokens of passes, and the places that padding took."""

    scored: int = 0
    trained: int = 0
    places: int = 0

    def add(self, tokens: int, places: int, *, trained: bool) -> None:
        """Count one micro-batch of `places` = rows x longest row."""
        if trained:
            self.trained += tokens
        else:
            self.scored += tokens
        self.places += places


@dataclass
class Costs:
    """The cost log of a run, one JSON line per logged step, on rank 0.

    Attributes:
        file: the log; lines of steps that a killed run repeats are there twice.
        parameters: of the policy, N.
        tally: of the current step, filled by the passes.
    """

    file: Path
    workers: Workers
    parameters: int
    tally: Tally = field(default_factory=Tally)
    steps: list[dict[str, float]] = field(default_factory=list)

    def step(self, step: int, *, seconds: float, data_seconds: float, log: bool) -> None:
        """Close a step and count anew. A collective call.

        FLOPs are 2 N per scored token and 6 N per trained one, recomputation not counted: MFU is the share of
        the peak that does useful work (PaLM, appendix B, without its attention term).
        """
        mine, self.tally = self.tally, Tally()
        counts = torch.tensor([mine.scored, mine.trained, mine.places], device=self.workers.device)
        parts = torch.stack(self.workers.all_gather(counts)).double().cpu()
        scored, trained, places = parts.sum(dim=0).tolist()
        work = 2 * parts[:, 0] + 6 * parts[:, 1]
        per_second = self.parameters * work.sum().item() / seconds / self.workers.world
        found = {
            "seconds": seconds,
            "data_seconds": data_seconds,
            "tokens_per_second": (scored + trained) / seconds,
            "tflops_per_process": per_second / 1e12,
            "padding_share": 1 - (scored + trained) / max(1.0, places),
            "busiest_over_mean": (work.max() / work.mean()).item() if work.sum() else 1.0,
            "peak_memory_mb": self.workers.peak_memory_mb(),
        }
        if peak := peak_flops(self.workers.device):
            found["mfu"] = per_second / peak
        self.steps.append(found)
        if log and self.workers.is_main:
            with self.file.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps({"step": step, "time": time.time(), **found}) + "\n")

    def summary(self) -> dict[str, Any]:
        """Medians over the steps of this start, for the job's figures."""
        names = ("tokens_per_second", "padding_share", "busiest_over_mean", "mfu")
        return {
            name: torch.tensor([found[name] for found in self.steps]).median().item()
            for name in names
            if self.steps and name in self.steps[0]
        }


def parameter_count(policy: nn.Module) -> int:
    """Weights that a token meets: all but the input embedding, which is only looked up (tied or not)."""
    total = sum(parameter.numel() for parameter in policy.parameters())
    model: Any = getattr(policy, "module", policy)
    embedding = model.model.get_input_embeddings().weight
    tied = embedding is model.model.get_output_embeddings().weight
    return total if tied else total - embedding.numel()


def peak_flops(device: torch.device) -> float | None:
    """Peak of a GPU; None for a CPU or an unknown GPU, for which no MFU is told."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_FLOPS.items() if part in name), None)
