"""Scaling of a training step: `make bench-scale` -> results/bench/scale.json and a table.

Varies one quantity at a time: pairs of a batch, tokens of a pair, layers, vocabulary, processes. For each, the
exponent of cost = a * size ^ exponent is fitted to the medians: 1 is proportional, 0 is constant. Cost is CPU time,
except for processes, where it is wall time: 0 is no gain, -1 is ideal.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.contestant import Entry
from benchmarks.setting import Shape
from benchmarks.step import measure

REPEATS = 3
BASE = Entry("", "plain", batches=REPEATS + 1)

AXES: dict[str, tuple[list[float], Callable[[Entry, float], Entry]]] = {
    "pairs": ([4, 8, 16, 32], lambda entry, pairs: replace(entry, batch=int(pairs))),
    "tokens": ([0.5, 1, 2, 4], lambda entry, scale: replace(entry, batch=8, scale=scale)),
    "layers": ([2, 4, 8, 16], lambda entry, layers: replace(entry, batch=8, shape=Shape(layers=int(layers)))),
    "vocabulary": (
        [1024, 4096, 16384, 65536],
        lambda entry, words: replace(entry, batch=8, shape=Shape(vocabulary=int(words))),
    ),
    "processes": ([1, 2], lambda entry, processes: replace(entry, processes=int(processes))),
}
TRAINERS = ("plain", "sams")


def exponent(sizes: list[float], costs: list[float]) -> float:
    """Return the slope of log cost over log size."""
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


def measure_axis(axis: str, trainer: str) -> dict[str, Any]:
    """Return the cost at each size of one axis, and the exponent."""
    sizes, varied = AXES[axis]
    figure = "wall_seconds" if axis == "processes" else "cpu_seconds"
    entries = [
        replace(varied(BASE, size), name=f"{trainer} {axis} {size}", trainer=trainer) for size in sizes
    ]
    measured = measure([entry for entry in entries if entry.processes <= (os.cpu_count() or 1)], REPEATS)
    costs = [median(step[figure] for step in steps) for steps in measured.values()]
    return {
        "sizes": sizes,
        "figure": figure,
        "costs": costs,
        "exponent": exponent(sizes[: len(costs)], costs),
    }


def main(
    out: Annotated[Path, typer.Option(help="File of the figures.")] = Path("results/bench/scale.json"),
) -> None:
    """Run the benchmark; write and print its figures."""
    result = {trainer: {axis: measure_axis(axis, trainer) for axis in AXES} for trainer in TRAINERS}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    table = Table(title="Cost of one step as it grows", title_justify="left")
    for head in ("trainer", "axis", "sizes", "seconds", "exponent"):
        table.add_column(head)
    for trainer, axes in result.items():
        for axis, scaling in axes.items():
            sizes = " / ".join(f"{size:g}" for size in scaling["sizes"][: len(scaling["costs"])])
            seconds = " / ".join(f"{cost:.2f}" for cost in scaling["costs"])
            table.add_row(trainer, axis, sizes, seconds, f"{scaling['exponent']:.2f}")
    Console(width=110).print(table)
    print(f"figures: {out}")


if __name__ == "__main__":
    typer.run(main)
