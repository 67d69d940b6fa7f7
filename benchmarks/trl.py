"""Compare a training step of `sams.trl` with one of TRL's DPOTrainer: part of `make bench`.

Contestants take their steps in turn on the same batches, as in `benchmarks.step`; the reference is cached. Writes
results/bench/trl.json, and with `--figure FILE` a figure.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.contestant import Entry
from benchmarks.step import REPEATS, machine, measure, ratio

BASE = "DPOTrainer"
KINDS = {"all": "all pairs", "random": "random half", "sams": "SamS, half"}
FIGURES = {"cpu_seconds": "time of a step", "activations_mb": "memory of activations"}

MARKS = {
    ("SamS, half", "activations_mb"): 0.6,
    ("SamS, half", "cpu_seconds"): 0.87,
    ("SamS, half, packed", "cpu_seconds"): 0.45,
}
"""Upper limits of ratios to DPOTrainer."""


def entries(base: Entry) -> list[Entry]:
    """Return the contestants in the order of their turns."""
    found = [replace(base, name=BASE, trainer="trl")]
    for packing in (False, True):
        for selector, name in KINDS.items():
            if packing or selector != "all":  # which is DPOTrainer, bit by bit
                name += ", packed" * packing
                found.append(replace(base, name=name, trainer=f"scheduled {selector}", packing=packing))
    return found


def measured(base: Entry) -> dict[str, list[dict[str, float]]]:
    """Return time and memory of all contestants, by name and repeat."""
    repeats = base.batches - 1
    found = measure(entries(base), repeats)
    for entry in entries(base):
        [steps] = measure([replace(entry, memory=True, gradients_kept=True)], repeats).values()
        for step, memory in zip(found[entry.name], steps, strict=True):
            step["activations_mb"] = memory["memory_mb"]
    return found


def ratios(found: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, tuple[float, float, float]]]:
    """Return median, lowest and highest ratio to DPOTrainer of each figure, by contestant."""
    return {
        name: {figure: found_ratio for figure in FIGURES if (found_ratio := ratio(found, name, BASE, figure))}
        for name in found
    }


def show(result: dict[str, Any]) -> None:
    """Print the contestants."""
    table = Table(
        title=f"One step of {result['entry']['batch']} pairs, ratios to {BASE}", title_justify="left"
    )
    table.add_column("trainer")
    for head in ("CPU s", *FIGURES.values(), "marks"):
        table.add_column(head, justify="right")
    for name, of in result["ratios"].items():
        seconds = median(step["cpu_seconds"] for step in result["contestants"][name])
        cells = [f"{middle:.2f} ({low:.2f} to {high:.2f})" for middle, low, high in of.values()]
        marks = ", ".join(f"{mark:.2f}" for (marked, _), mark in MARKS.items() if marked == name)
        table.add_row(name, f"{seconds:.2f}", *cells, marks)
    Console(width=100).print(table)


def draw(result: dict[str, Any], file: Path) -> None:
    """Draw time and memory of each contestant against DPOTrainer."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(result["ratios"])[::-1]
    figure, axes = pyplot.subplots(1, 2, figsize=(8, 2.9), sharey=True, layout="constrained")
    for axis, (key, label) in zip(axes, FIGURES.items(), strict=True):
        middles, lows, highs = zip(*(result["ratios"][name][key] for name in names), strict=True)
        colours = [
            "#9aa0a6" if name == BASE else "#4c78a8" if "packed" in name else "#a9c4e0" for name in names
        ]
        errors = [
            [m - low for m, low in zip(middles, lows, strict=True)],
            [h - m for m, h in zip(middles, highs, strict=True)],
        ]
        axis.barh(names, middles, xerr=errors, color=colours, ecolor="#555555", capsize=2)
        for place, (middle, high) in enumerate(zip(middles, highs, strict=True)):
            axis.text(high + 0.02, place, f"{middle:.2f}", va="center", fontsize=9)
        axis.axvline(1, color="#9aa0a6", linewidth=0.8, linestyle=":")
        axis.set(xlabel=f"{label}, of {BASE}'s", xlim=(0, 1.15))
        axis.spines[["top", "right"]].set_visible(False)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None, dpi=160)


def main(
    out: Annotated[Path, typer.Option(help="File of the figures.")] = Path("results/bench/trl.json"),
    figure: Annotated[Path | None, typer.Option(help="Image of these figures.")] = None,
    repeats: Annotated[int, typer.Option(help="Measured steps, after one to warm up.")] = REPEATS,
    drawn: Annotated[bool, typer.Option(help="Draw the figures of `out`, without a measurement.")] = False,
) -> None:
    """Run the benchmark; write and print its figures."""
    if not drawn:
        base = Entry("", "trl", batches=repeats + 1)
        found = measured(base)
        result = {
            "ratios": ratios(found),
            "contestants": found,
            "entry": json.loads(base.written()),
            **machine(),
        }
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    result = json.loads(out.read_text(encoding="utf-8"))
    show(result)
    if figure is not None:
        draw(result, figure)
    print(f"figures: {out}")


if __name__ == "__main__":
    typer.run(main)
