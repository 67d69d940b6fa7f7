"""Figures of a study: learning curves, selection, difficulty, cost; and those of `noise`."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sams.study.study import BASE_METHOD, Study
from sams.tables.noise import label_noise, noise
from sams.tables.panels import (
    COLOURS,
    Logs,
    Marked,
    Plot,
    draw,
    empty,
    evaluations,
    finish,
    label_pairs_seen,
    panels,
    smoothed,
    use_log_scale,
)
from sams.tables.results import Cell, Cells, read_cells, read_log

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_DIFFICULTIES = 12  # plots of `difficulty` that fit on a page


MOST_BANDS = 5  # methods whose bands can be told apart


class Curve(NamedTuple):
    """A plot of a metric, and the metric's names, of which the first logged one is drawn."""

    plot: Plot
    names: tuple[str, ...]

    @property
    def evaluated(self) -> str:
        """Name of the same metric on the test pairs."""
        return f"eval/{self.names[-1]}"


# A method that trains on a part of each batch logs the complete batch under `all/`, if it scores it.
CURVES = [
    Curve(Plot("Loss", "loss"), ("all/loss", "loss/all", "loss")),
    Curve(
        Plot("Reward margin, chosen − rejected", "reward (β × nats)"),
        ("all/rewards/margins", "rewards/margins"),
    ),
    Curve(
        Plot("Reward accuracy", "share of pairs ranked as labelled"),
        ("all/rewards/accuracies", "rewards/accuracies"),
    ),
    Curve(
        Plot("Log-prob of the chosen responses", "nats, summed over tokens"),
        ("all/logps/chosen", "logps/chosen"),
    ),
]


def figures_of(study: Study) -> list[str]:
    """Return the names of the figures for which a study logs something."""
    own = [study.preference_of(method) for method in study.preference_methods]
    world = study.data.world
    flipped = (world is not None and world.flipped_share > 0) or any(one.flipped_share for one in own)
    drawn = {
        "learning_curves": bool(own),
        "selection": any(one.selector != "all" for one in own),
        "difficulty": any(one.followed_pairs for one in own),
        "noise": bool(own) and flipped,
        "cost": bool(study.trained_methods),
    }
    return [name for name, something in drawn.items() if something]


def study_figures(study: Study, setting: Path) -> "dict[str, Figure]":
    """Return the figures of a study by name, from the metric logs and metrics files in the folder of its setting."""
    logs = read_logs(setting, study.methods, study.seeds)
    cells = {cell: values for cell, values in read_cells(setting).items() if cell.seed in study.seeds}
    validated = any(study.preference_of(method).validated for method in study.preference_methods)
    kind = "validation" if validated else "test"
    draw_figure: dict[str, Callable[[], Figure]] = {
        "learning_curves": lambda: learning_curves(logs, kind),
        "selection": lambda: selection(logs),
        "difficulty": lambda: difficulty(logs),
        "noise": lambda: noise(
            logs, cells, label_noise(setting, study.preference_methods, study.seeds), kind
        ),
        "cost": lambda: cost(cells, study.methods, study.seeds),
    }
    figures = {name: draw_figure[name]() for name in figures_of(study)}
    if study.rehearse:
        for figure in figures.values():
            figure.suptitle("REHEARSAL: tiny model, synthetic data", color="#D55E00")
    return figures


def read_logs(setting: Path, methods: Sequence[str], seeds: Sequence[int]) -> Logs:
    """Return the existing metric logs of the preference methods."""
    logs: dict[str, list[pd.DataFrame]] = {}
    for method in methods:
        files = [setting / method / f"seed{seed}" / "train.jsonl" for seed in seeds]
        frames = [read_log(file) for file in files if file.is_file()]
        if method != BASE_METHOD and frames:
            logs[method] = frames
    return logs


def learning_curves(logs: Logs, kind: str = "test") -> "Figure":
    """Draw loss, reward margin, reward accuracy and chosen log-prob of all methods by pairs seen.

    Lines show training batches, smoothed over a twentieth of the run; markers show the pairs of the evaluations,
    whose `kind` is test or validation. With several seeds both are means over seeds, and a band covers all seeds.
    """
    plots: dict[Plot, list[Series]] = {}
    for curve in CURVES:
        for index, (method, frames) in enumerate(logs.items()):
            columns = [next((name for name in curve.names if name in frame), None) for frame in frames]
            logged = [smoothed(frame, name) for frame, name in zip(frames, columns, strict=True) if name]
            tested = evaluations(frames, curve.evaluated)
            series = plots.setdefault(curve.plot, [])
            series += [(index, method, logged, "no")] * bool(logged)
            series += [(index, method, tested, "only")] * bool(tested)
    explained = f"Lines: training batches, smoothed. Markers: {kind} pairs."
    figure, axes = _drawn(plots, explained, "Learning curves")
    if CURVES[0].plot in axes:
        use_log_scale(axes[CURVES[0].plot])  # losses of different families
    return figure


Series = tuple[int, str, "list[pd.Series[float]]", Marked]
"""Index of a method, its name, its values for each seed, and how they are marked."""


def _drawn(
    plots: Mapping[Plot, Sequence[Series]], explained: str, name: str, height: float = 3.4
) -> "tuple[Figure, dict[Plot, Axes]]":
    """Draw the plots that have any series, by pairs seen; return the figure and its plots."""
    full = {plot: series for plot, series in plots.items() if series}
    if not full:
        return empty(name), {}
    figure, axes = panels(list(full), height)
    for axis, series in zip(axes, full.values(), strict=True):
        for index, method, seeds, marked in series:
            draw(
                axis,
                index,
                method,
                seeds,
                marked=marked,
                banded=len({one[0] for one in series}) <= MOST_BANDS,
            )
    finish(figure, axes, explained)
    return figure, dict(zip(full, axes, strict=True))


def selection(logs: Logs) -> "Figure":
    """Draw properties of the pairs that selectors chose, and the scheduler's accuracy, by pairs seen.

    Flipped labels, reward margin and length of the chosen pairs are compared with those of the batch. Flips are
    logged if the data marks flipped labels, margins if the selector scores the whole batch. The scheduler's scores
    are compared with the rewards observed one round later, by rank correlation and by absolute error.
    """
    plots: dict[Plot, list[Series]] = {}
    for plot, name in CHOSEN.items():
        for index, (method, frames) in enumerate(logs.items()):
            rounds = [_chosen(frame) for frame in frames]
            logged = [smoothed(frame, name) for frame in rounds if name in frame]
            plots.setdefault(plot, []).extend([(index, method, logged, "some")] * bool(logged))
    figure, axes = _drawn(plots, "Smoothed over rounds.", "Selection", 3.0)
    shares = [
        frame["all/flipped_share"].mean()
        for frames in logs.values()
        for frame in frames
        if "all/flipped_share" in frame
    ]
    for plot, axis in axes.items():
        if CHOSEN[plot] == "flips":
            share = sum(shares) / len(shares)
            axis.axhline(share, color="#666666", linewidth=1)
        elif CHOSEN[plot] != "scheduler/estimate_error":
            axis.axhline(0, color="#666666", linewidth=1)
    return figure


# Plots of `selection`, and the metrics that they show.
CHOSEN = {
    Plot("Flipped labels among the chosen pairs (grey: all)", "share of pairs"): "flips",
    Plot("Flipped pairs kept − all pairs kept", "difference of shares"): "kept",
    Plot("Margin of the chosen pairs − of the batch", "reward (β × nats)"): "margin",
    Plot("Length of the chosen pairs − of the batch", "tokens"): "length",
    Plot("Scheduler: do its scores rank later rewards?", "rank correlation"): "scheduler/rank_correlation",
    Plot("Scheduler: error of its estimates", "mean absolute error (reward)"): "scheduler/estimate_error",
}


def _chosen(frame: "pd.DataFrame") -> "pd.DataFrame":
    """A metric log with added columns: flips, margin and length of the chosen pairs relative to their batch."""
    extended = frame.copy()
    if "selected/flipped_share" in frame and "all/flipped_share" in frame:
        extended["flips"] = frame["selected/flipped_share"]
        # Undefined for a batch without flipped pairs.
        relative = frame["selected/flipped_share"] / frame["all/flipped_share"].where(
            frame["all/flipped_share"] > 0
        )
        extended["kept"] = (relative - 1) * frame["selected/share"]
    if "all/rewards/margins" in frame:
        extended["margin"] = frame["rewards/margins"] - frame["all/rewards/margins"]
    if "selected/tokens" in frame:
        extended["length"] = frame["selected/tokens"] - frame["all/tokens"]
    return extended


def difficulty(logs: Logs) -> "Figure":
    """Draw losses of the same pairs during the run of each method, first seed (the paper's Figure 1a).

    If difficulty were a property of the pairs, the lines would keep their order. The heading gives the rank
    correlation of the first and the last losses.
    """
    followed: dict[str, pd.DataFrame] = {}
    for method, frames in logs.items():
        columns = [name for name in frames[0] if str(name).startswith("followed/")]
        if columns and len(followed) < MOST_DIFFICULTIES:
            followed[method] = frames[0].set_index("pairs_seen")[columns].dropna()
    if not followed:
        return empty("Loss of followed pairs")
    figure, axes = panels([Plot(method, "loss") for method in followed], height=2.8)
    for (method, losses), axis in zip(followed.items(), axes, strict=False):
        order = losses.iloc[0].argsort().argsort()
        correlation = losses.iloc[0].corr(losses.iloc[-1], method="spearman")
        axis.set_title(
            f"{method}: rank correlation of first and last {correlation:.2f}", fontsize=11, loc="left"
        )
        for index, name in enumerate(losses):
            depth = order.iloc[index] / max(1, len(order) - 1)
            axis.plot(losses.index, losses[name], color=_shade(depth), linewidth=1.2, label="_")
    explained = "Loss of each of the same pairs; dark: easy at first, light: hard at first."
    if len(followed) == MOST_DIFFICULTIES < len(logs):
        explained += f" The first {MOST_DIFFICULTIES} methods."
    label_pairs_seen(axes)
    figure.supxlabel(explained, fontsize=10)
    return figure


def _shade(depth: float) -> Any:
    """Return the colour of a line from 0 (dark) to 1 (light), in even steps of lightness, none too light on white."""
    from matplotlib import colormaps

    return colormaps["cividis"](0.85 * depth)


def cost(cells: Cells, methods: Sequence[str], seeds: Sequence[int]) -> "Figure":
    """Draw training time and peak memory of each method: bars are means over seeds, dots are seeds.

    The hatched part of a bar is preparation: scheduler pretraining, cross-fitted models.
    """
    plots = [Plot("Training time (s)"), Plot("Peak memory (MB)")]
    figure, axes = panels(plots, height=max(1.8, 0.6 + 0.32 * len(methods)))
    trained = [method for method in methods if method != BASE_METHOD]
    for axis, key in zip(axes, ("train_seconds", "peak_memory_mb"), strict=True):
        for row, method in enumerate(methods):
            runs = [cells.get(Cell(method, seed, "train"), {}) for seed in seeds]
            runs = [figures for figures in runs if figures.get(key) is not None]
            if not runs:
                continue
            values = [figures[key] for figures in runs]
            mean = sum(values) / len(values)
            style: dict[str, Any] = {"edgecolor": "#000000", "linewidth": 0.8, "height": 0.6}
            colour = "#BBBBBB" if method == BASE_METHOD else COLOURS[trained.index(method) % len(COLOURS)]
            axis.barh(row, mean, color=colour, **style)
            label = f"{mean:,.0f}"
            prepared = sum(figures.get("preparation_seconds", 0.0) for figures in runs) / len(runs)
            if key == "train_seconds" and prepared:
                axis.barh(row, prepared, left=mean, color="#FFFFFF", hatch="////", **style)
                label += f" + {prepared:,.0f} prepared"
            axis.annotate(
                label,
                (max(mean + prepared, *values), row),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
            )
            if len(values) > 1:
                axis.plot(
                    values, [row] * len(values), "o", color="#000000", markerfacecolor="white", markersize=4
                )
        axis.set_yticks(range(len(methods)), methods)
        axis.set_ylim(len(methods) - 0.5, -0.5)
        axis.locator_params(axis="x", nbins=5)
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axis.grid(visible=False, axis="y")
        axis.set_xlim(0, 1.35 * axis.get_xlim()[1])  # room for the labels
    return figure
