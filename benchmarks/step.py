"""Compare one training step of ours with one of TRL's: `make bench` -> results/bench/step.json and a table.

Every contestant runs in its own process. They take their steps in turn, A B C A B C, on the same batches: one to warm
up, then five that are measured. The results are ratios on the same batch: their median and their spread. Memory is
measured in separate processes, without an optimiser's step, above that of the loaded model.

On GPUs: `python -m benchmarks.gpu`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.contestant import Entry

REPEATS = 5
ROOT = Path(__file__).resolve().parent.parent

# Ratios by key: label, contestant, contestant to divide by, figure, upper limit (`mark`), goal.
MARKS: dict[str, tuple[str, str, str, str, float, float]] = {
    "plain_over_trl": ("our plain DPO / TRL", "plain", "trl", "cpu_seconds", 0.75, 0.60),
    "sams_over_plain": ("SamS / our plain DPO", "sams", "plain", "cpu_seconds", 0.82, 0.77),
    "sams_over_trl": ("SamS / TRL", "sams", "trl", "cpu_seconds", 0.62, 0.46),
    "memory_two_pass_over_plain": ("memory, SamS / our plain DPO", "sams", "plain", "memory_mb", 0.55, 0.45),
    "sams_over_plain_checkpointed": (
        "SamS / plain, both with checkpointing", "sams checkpointed", "plain checkpointed", "cpu_seconds", 0.82, 0.74,
    ),
    "memory_checkpointed": (
        "memory, SamS / plain, checkpointed", "sams checkpointed", "plain checkpointed", "memory_mb", 0.50, 0.40,
    ),
    "two_processes_over_one": (
        "SamS, 2 processes / 1 (wall time)", "sams, 2 processes", "sams", "wall_seconds", 0.65, 0.55,
    ),
}  # fmt: skip

# Ratios without a limit, which explain the others.
EXPLAINING: dict[str, tuple[str, str, str, str]] = {
    "padded_over_trl": ("our plain DPO with padded rows / TRL", "plain, padded", "trl", "cpu_seconds"),
    "packed_over_padded": ("our plain DPO, packed / padded rows", "plain", "plain, padded", "cpu_seconds"),
    "plain_over_trl_checkpointed": (
        "our plain DPO / TRL, both with checkpointing", "plain checkpointed", "trl checkpointed", "cpu_seconds",
    ),
    "activations_two_pass_over_plain": (
        "memory without gradients, SamS / plain", "sams", "plain", "activations_mb",
    ),
    "activations_checkpointed": (
        "the same, both with checkpointing", "sams checkpointed", "plain checkpointed", "activations_mb",
    ),
    "memory_plain_over_trl": ("memory, our plain DPO / TRL", "plain", "trl", "memory_mb"),
    "memory_sams_over_trl": ("memory, SamS / TRL", "sams", "trl", "memory_mb"),
    "memory_sams_over_trl_checkpointed": (
        "memory, SamS / TRL, both with checkpointing", "sams checkpointed", "trl checkpointed", "memory_mb",
    ),
    "plain_two_processes_over_one": (
        "our plain DPO, 2 processes / 1 (wall time)", "plain, 2 processes", "plain", "wall_seconds",
    ),
}  # fmt: skip


def contestants_of(base: Entry) -> list[Entry]:
    """Return the contestants in the order of their turns; TRL's only if it is installed."""
    all_entries = [
        replace(base, name="trl", trainer="trl"),
        replace(base, name="plain", trainer="plain"),
        replace(base, name="sams", trainer="sams"),
        replace(base, name="plain, padded", trainer="plain", packing=False),
        replace(base, name="trl checkpointed", trainer="trl", checkpointing=True),
        replace(base, name="plain checkpointed", trainer="plain", checkpointing=True),
        replace(base, name="sams checkpointed", trainer="sams", checkpointing=True),
        replace(base, name="plain, 2 processes", trainer="plain", processes=2),
        replace(base, name="sams, 2 processes", trainer="sams", processes=2),
    ]
    has_trl = importlib.util.find_spec("trl") is not None
    return [entry for entry in all_entries if has_trl or entry.trainer != "trl"]


class Contestant:
    """The processes of a contestant, which wait for requests to take a step."""

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
        }
        if entry.memory:
            # Freed tensors go back to the system at once, so that resident memory is that of live tensors.
            environment |= {"MALLOC_MMAP_THRESHOLD_": "1048576", "MALLOC_TRIM_THRESHOLD_": "1048576"}
        if entry.processes > 1:
            environment |= {
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(free_port()),
                "WORLD_SIZE": str(entry.processes),
                "LOCAL_WORLD_SIZE": str(entry.processes),
            }
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-m", "benchmarks.contestant", entry.written()],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL if "SAMS_BENCH_VERBOSE" not in os.environ else None,
                text=True,
                cwd=ROOT,
                env=environment
                | ({"RANK": str(rank), "LOCAL_RANK": str(rank)} if entry.processes > 1 else {}),
            )
            for rank in range(entry.processes)
        ]
        self._answers()

    def _answers(self) -> list[dict[str, Any]]:
        answers = []
        for process in self.processes:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise SystemExit(f"{self.entry.name} has ended: SAMS_BENCH_VERBOSE=1 shows its messages")
            answers.append(json.loads(line))
        return answers

    def step(self, batch: int) -> dict[str, float]:
        """Take a step on a batch; return sums over processes for CPU seconds and tokens, the maximum for the rest."""
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.write(f"{batch}\n")
            process.stdin.flush()
        answers = self._answers()
        summed = ("cpu_seconds", "tokens", "positions")
        return {
            name: (sum if name in summed else max)(answer[name] for answer in answers) for name in answers[0]
        }

    def close(self) -> None:
        """End the processes."""
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.close()
        for process in self.processes:
            process.wait()


def free_port() -> int:
    """Return a free port."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


@contextlib.contextmanager
def started(entries: list[Entry]) -> Iterator[list[Contestant]]:
    """Start contestants and yield them when they are ready."""
    ready: list[Contestant] = []
    try:
        for entry in entries:
            ready.append(Contestant(entry))
        yield ready
    finally:
        for contestant in ready:
            contestant.close()


def measure(entries: list[Entry], repeats: int = REPEATS) -> dict[str, list[dict[str, float]]]:
    """Return the steps of contestants that take turns, on batches 1 to `repeats`; batch 0 is a warm-up."""
    steps: dict[str, list[dict[str, float]]] = {entry.name: [] for entry in entries}
    with started(entries) as contestants:
        for batch in range(repeats + 1):
            for contestant in contestants:
                taken = contestant.step(batch)
                if batch:
                    steps[contestant.entry.name].append(taken)
    return steps


def measure_all(base: Entry) -> dict[str, list[dict[str, float]]]:
    """Return time and memory of all contestants, by name and repeat."""
    measured = measure(contestants_of(base))
    for entry in contestants_of(base):
        if entry.processes == 1:
            figures = {"memory_mb": replace(entry, memory=True)}
            if entry.trainer != "trl":
                figures["activations_mb"] = replace(entry, memory=True, gradients_kept=True)
            for figure, memory_entry in figures.items():
                [memory_steps] = measure([memory_entry]).values()
                for step, memory_step in zip(measured[entry.name], memory_steps, strict=True):
                    step[figure] = memory_step["memory_mb"]
    return measured


def ratio(
    measured: dict[str, list[dict[str, float]]], one: str, other: str, figure: str
) -> tuple[float, float, float] | None:
    """Return median, lowest and highest ratio of a figure on the same batch; None if a contestant is missing."""
    if one not in measured or other not in measured:
        return None
    ratios = [a[figure] / b[figure] for a, b in zip(measured[one], measured[other], strict=True)]
    return median(ratios), min(ratios), max(ratios)


def report(base: Entry, measured: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Return the content of step.json: each ratio with its spread, and all measurements."""
    ratios = {
        key: numbers
        for key, (_, one, other, figure, *_marks) in (MARKS | EXPLAINING).items()
        if (numbers := ratio(measured, one, other, figure)) is not None
    }
    return {
        **{key: middle for key, (middle, _, _) in ratios.items()},
        "spread": {key: [low, high] for key, (_, low, high) in ratios.items()},
        "marks": {key: {"mark": mark, "goal": goal} for key, (*_, mark, goal) in MARKS.items()},
        "contestants": measured,
        "entry": json.loads(base.written()),
        **machine(),
    }


def machine() -> dict[str, Any]:
    """Return what figures are measured with."""
    versions = {package: _version(package) for package in ("torch", "trl", "transformers")}
    return {"device": f"{os.cpu_count()} CPU cores", "versions": versions}


def _version(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def show(result: dict[str, Any]) -> None:
    """Print the contestants and the ratios."""
    console = Console(width=118)
    steps = Table(title="One step, medians of five", title_justify="left")
    for head in ("contestant", "CPU s", "wall s", "memory MB", "tokens/s", "padding"):
        steps.add_column(head, justify="left" if head == "contestant" else "right")
    for name, taken in result["contestants"].items():
        middle = {key: median(step[key] for step in taken) for key in taken[0]}
        speed = median(step["tokens_seen"] / step["wall_seconds"] for step in taken)
        padding = 1 - sum(step["tokens"] for step in taken) / sum(step["positions"] for step in taken)
        memory = f"{middle['memory_mb']:.0f}" if "memory_mb" in middle else "–"
        steps.add_row(
            name,
            f"{middle['cpu_seconds']:.2f}",
            f"{middle['wall_seconds']:.2f}",
            memory,
            f"{speed:.0f}",
            f"{padding:.1%}",
        )
    console.print(steps)
    ratios = Table(title="Ratios on the same batch", title_justify="left")
    for head in ("key", "what", "median", "lowest to highest", "mark", "goal"):
        ratios.add_column(head, justify="left" if head in ("key", "what") else "right")
    for key, (what, *_rest) in (MARKS | EXPLAINING).items():
        if key in result:
            low, high = result["spread"][key]
            marks = result["marks"].get(key, {})
            aims = [f"{marks[aim]:.2f}" if marks else "" for aim in ("mark", "goal")]
            ratios.add_row(key, what, f"{result[key]:.3f}", f"{low:.3f} to {high:.3f}", *aims)
    console.print(ratios)


def main(
    out: Annotated[Path, typer.Option(help="File of the figures.")] = Path("results/bench/step.json"),
) -> None:
    """Run the benchmark; write and print its figures."""
    base = Entry("", "plain", batches=REPEATS + 1)
    result = report(base, measure_all(base))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    show(result)
    print(f"figures: {out}")


if __name__ == "__main__":
    typer.run(main)
