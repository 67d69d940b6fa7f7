"""Figure of label noise: test accuracy of methods that were trained on flipped labels."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from sams.runtime.files import canonical_json, read_json
from sams.tables.main_table import main_table
from sams.tables.panels import (
    COLOURS,
    LINES,
    MARKERS,
    Logs,
    Plot,
    draw,
    empty,
    evaluations,
    label_pairs_seen,
    legend,
    panels,
)
from sams.tables.results import Cells, reports_of

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Noise(NamedTuple):
    """Label noise of a method.

    Args:
        share: share of its training pairs whose labels are flipped.
        family: its other settings, equal for methods that differ in `share` alone.
    """

    share: float
    family: str


def noise(logs: Logs, cells: Cells, noise_of: Mapping[str, Noise], kind: str = "test") -> "Figure":
    """Draw test accuracy under label noise.

    Plots by the share of flipped labels, for methods that differ in it alone; by pairs seen, for each share; and by
    the share of flips among the pairs that a method trained on.

    Args:
        logs: metric logs of the methods.
        cells: contents of the metrics files, for the final accuracies and their errors.
        noise_of: label noise by method, for methods whose noise is known.
        kind: pairs of the evaluations: test or validation.
    """
    shares = sorted({noisy.share for method, noisy in noise_of.items() if method in logs and noisy.share})
    families: dict[str, list[str]] = {}
    for method in sorted(
        (method for method in logs if method in noise_of), key=lambda method: noise_of[method].share
    ):
        families.setdefault(noise_of[method].family, []).append(method)
    several = any(len({noise_of[method].share for method in members}) > 1 for members in families.values())
    by_share = ["Final accuracy by the noise of the labels"] if several else []
    by_seen = [f"Accuracy while training on {share:.0%} flipped labels" for share in shares]
    trained = [method for method in logs if method in noise_of and noise_of[method].share]
    compared = sum(not math.isnan(_final_accuracy(cells, method)[0]) for method in trained) > 1
    final_plots = ["Final accuracy by the noise trained on"] * compared
    if not shares:
        return empty("Accuracy under noise")
    plots = [Plot(heading, "test accuracy (%)") for heading in by_share]
    plots += [Plot(heading, f"{kind} accuracy (%)") for heading in by_seen]
    plots += [Plot(heading, "test accuracy (%)") for heading in final_plots]
    figure, axes = panels(plots, height=3.8)
    index = {method: number for number, method in enumerate(logs)}
    for first, *others in families.values():  # style and name are those of the method with the least noise
        members = [first, *others]
        final = {method: _final_accuracy(cells, method) for method in members}
        if others and several:
            _points(axes[0], index[first], first, [(noise_of[m].share, *final[m]) for m in members])
        for method in members:
            if noise_of[method].share in shares:
                tested = [100 * accuracy for accuracy in evaluations(logs[method], "eval/rewards/accuracies")]
                axis = axes[len(by_share) + shares.index(noise_of[method].share)]
                draw(axis, index[first], first, tested, marked="some")
        noisy = [
            (_flips_trained_on(logs[m], noise_of[m].share), *final[m]) for m in members if noise_of[m].share
        ]
        if noisy and compared:
            _points(axes[-1], index[first], first, noisy)
    label_pairs_seen(axes[len(by_share) : len(by_share) + len(by_seen)])
    if several:
        axes[0].set_xlabel("Flipped labels among the training pairs (share)")
    if compared:
        axes[-1].set_xlim(
            -0.03, 1.15 * axes[-1].get_xlim()[1]
        )  # from 0, so that small differences look small
        axes[-1].set_xlabel("Flipped labels among the pairs trained on (share)")
    bars = "Bars: one standard error, over seeds if there are several, else over test pairs." * (
        several or compared
    )
    legend(figure, axes, bars)
    return figure


def _flips_trained_on(frames: "Sequence[pd.DataFrame]", share: float) -> float:
    """Return the share of flipped labels among the pairs that a method trained on: the chosen pairs, or all."""
    name = "selected/flipped_share"
    shares = [frame[name].mean() if name in frame else share for frame in frames]
    return float(sum(shares) / len(shares))


def _final_accuracy(cells: Cells, method: str) -> tuple[float, float]:
    """Return test accuracy and its standard error, over seeds if the method has several."""
    seeds = sorted({cell.seed for cell in cells if cell.method == method})
    row = main_table(cells, [method], seeds).iloc[0]
    kind = "seeds" if len(seeds) > 1 else "items"
    return float(row["test_accuracy"]), float(row[f"test_accuracy_se_{kind}"])


def _points(axis: "Axes", index: int, method: str, points: Sequence[tuple[float, float, float]]) -> None:
    """Draw points (x, y, error) in a method's style, joined by its line."""
    x, y, error = zip(*points, strict=True)
    axis.errorbar(
        x,
        y,
        yerr=error,
        label=method,
        color=COLOURS[index % len(COLOURS)],
        marker=MARKERS[index % len(MARKERS)],
        markersize=7,
        markerfacecolor="white",
        linestyle=LINES[index % len(LINES)],
        capsize=3,
    )


def label_noise(setting: Path, methods: Sequence[str], seeds: Sequence[int]) -> dict[str, Noise]:
    """Return label noise by method: flips in the data, as `prepare_data` counted them, and flips by the recipe."""
    counts = [report["train"] for report in reports_of(setting, "data")]
    written = sum(count.get("written", 0) for count in counts)
    before = sum(count.get("flipped", 0) for count in counts) / written if written else 0.0
    noise_of = {}
    for method in methods:
        files = [setting / method / f"seed{seed}" / "recipe.json" for seed in seeds]
        recipes = [read_json(file)["recipe"] for file in files if file.is_file()]
        if recipes:
            training = recipes[0]["training"]
            own = training.get("flipped_share", 0.0)
            others = {key: value for key, value in training.items() if not key.startswith("flip")}
            family = canonical_json([others, recipes[0].get("scheduler")])
            # A label that is flipped twice is the original one.
            noise_of[method] = Noise(before + own - 2 * before * own, family)
    return noise_of
