"""Figures of a study, each as SVG and PNG: learning curves, selection, difficulty, noise, cost."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from sams.runtime.files import canonical_json, read_json
from sams.runtime.stage import read_recipe, run
from sams.study.study import BASE_METHOD, Study
from sams.tables.main_table import Cells, main_table
from sams.tables.panels import COLOURS, LINES, MARKERS, SEEN, draw, finish, legend, panels, save, smoothed
from sams.tables.results import Cell, data_reports, read_cells, read_log

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Logs = Mapping[str, Sequence["pd.DataFrame"]]  # metric logs by method, one per seed


MOST_DIFFICULTIES = 12  # plots of `difficulty`: a page


class Curve(NamedTuple):
    """A plot of a metric: its heading and the names of the metric, the first one logged counts."""

    heading: str
    names: tuple[str, ...]

    @property
    def evaluated(self) -> str:
        """Name of the same metric on the test pairs."""
        return f"eval/{self.names[-1]}"


# A method that trains on a part of each batch logs the whole batch under `all/`, where it has scored it.
CURVES = [
    Curve("Loss", ("all/loss", "loss/all", "loss")),
    Curve("Reward margin (chosen − rejected)", ("all/rewards/margins", "rewards/margins")),
    Curve("Reward accuracy (share of pairs)", ("all/rewards/accuracies", "rewards/accuracies")),
    Curve("Log-prob of chosen responses (nats)", ("all/logps/chosen", "logps/chosen")),
]


def read_logs(setting: Path, methods: Sequence[str], seeds: Sequence[int]) -> Logs:
    """Metric logs of the preference methods, those that exist."""
    logs: dict[str, list[pd.DataFrame]] = {}
    for method in methods:
        files = [setting / method / f"seed{seed}" / "train.jsonl" for seed in seeds]
        found = [read_log(file) for file in files if file.is_file()]
        if method != BASE_METHOD and found:
            logs[method] = found
    return logs


def learning_curves(logs: Logs) -> "Figure":
    """Loss, reward margin, reward accuracy and chosen log-prob of all methods by pairs seen.

    Lines are training batches, smoothed over a twentieth of the run; markers are the test pairs. With
    several seeds both are means over seeds, in a band from the lowest to the highest.
    """
    figure, axes = panels([curve.heading for curve in CURVES])
    for curve, axis in zip(CURVES, axes, strict=True):
        for place, (method, frames) in enumerate(logs.items()):
            columns = [next((name for name in curve.names if name in frame), None) for frame in frames]
            logged = [smoothed(frame, name) for frame, name in zip(frames, columns, strict=True) if name]
            draw(axis, place, method, logged)
            draw(axis, place, method, evaluations(frames, curve.evaluated), marked="only")
    finish(figure, axes, "Lines: training batches, smoothed. Markers: test pairs.")
    return figure


def evaluations(frames: "Sequence[pd.DataFrame]", name: str) -> "list[pd.Series[float]]":
    """A metric of the test pairs by pairs seen, seed by seed."""
    return [frame.set_index("pairs_seen")[name].dropna() for frame in frames if name in frame]


def selection(logs: Logs) -> "Figure":
    """Which pairs the selectors chose, and how well the scheduler knew what they were worth, by pairs seen.

    Flipped labels, reward margin and length of the chosen pairs stand beside the same of the whole batch. Flips
    are logged where the data says which labels are flipped, margins where the selector scores the whole batch.
    The scheduler's scores are held against the rewards it saw one round later: their order within a round, and
    how far they were off.
    """
    headings = [
        "Flipped labels among the chosen pairs (share)",
        "Share kept of the flipped pairs − of all pairs",
        "Margin of the chosen pairs − of the batch",
        "Length of the chosen pairs − of the batch (tokens)",
        "Scheduler: rank correlation with later rewards",
        "Scheduler: mean absolute error of the estimate",
    ]
    figure, axes = panels(headings, height=3.0)
    for place, (method, frames) in enumerate(logs.items()):
        rounds = [_chosen(frame) for frame in frames]
        for axis, name in zip(axes, CHOSEN, strict=True):
            logged = [smoothed(frame, name) for frame in rounds if name in frame]
            draw(axis, place, method, logged, marked="some")
    whole = [
        frame["all/flipped_share"].mean()
        for frames in logs.values()
        for frame in frames
        if "all/flipped_share" in frame
    ]
    if whole:
        share = sum(whole) / len(whole)
        axes[0].axhline(share, color="#666666", linewidth=1)
        beside = axes[0].get_yaxis_transform()
        axes[0].text(1.01, share, "all pairs", transform=beside, va="center")
    for axis in axes[1:5]:
        axis.axhline(0, color="#666666", linewidth=1)
    finish(figure, axes, "Smoothed over rounds.")
    return figure


# What `selection` shows, in the order of its plots.
CHOSEN = ["flips", "kept", "margin", "length", "scheduler/rank_correlation", "scheduler/estimate_error"]


def _chosen(frame: "pd.DataFrame") -> "pd.DataFrame":
    """A metric log with what the chosen pairs have more of than their batch, where it is logged."""
    found = frame.copy()
    if "selected/flipped_share" in frame and "all/flipped_share" in frame:
        found["flips"] = frame["selected/flipped_share"]
        # Of the batch's flipped pairs the share that is kept; a batch without any has none.
        lean = frame["selected/flipped_share"] / frame["all/flipped_share"].where(
            frame["all/flipped_share"] > 0
        )
        found["kept"] = (lean - 1) * frame["selected/share"]
    if "all/rewards/margins" in frame:
        found["margin"] = frame["rewards/margins"] - frame["all/rewards/margins"]
    if "selected/tokens" in frame:
        found["length"] = frame["selected/tokens"] - frame["all/tokens"]
    return found


def difficulty(logs: Logs) -> "Figure":
    """Losses of the same pairs through the run of each method, first seed (the paper's Figure 1a).

    Were difficulty a trait of the pairs, the lines would keep their order. The heading says how far they do.
    """
    followed: dict[str, pd.DataFrame] = {}
    for method, frames in logs.items():
        columns = [name for name in frames[0] if str(name).startswith("followed/")]
        if columns and len(followed) < MOST_DIFFICULTIES:
            followed[method] = frames[0].set_index("pairs_seen")[columns].dropna()
    figure, axes = panels(list(followed) or ["Loss of followed pairs"], height=2.8)
    for (method, losses), axis in zip(followed.items(), axes, strict=False):
        order = losses.iloc[0].argsort().argsort()
        kept = losses.iloc[0].corr(losses.iloc[-1], method="spearman")
        axis.set_title(f"{method}: first and last rank-correlate by {kept:.2f}", fontsize=11, loc="left")
        for place, name in enumerate(losses):
            depth = order.iloc[place] / max(1, len(order) - 1)
            axis.plot(losses.index, losses[name], color=_shade(depth), linewidth=1.2, label="_")
        axis.set_ylabel("loss")
    explained = "Loss of each of the same pairs; dark: easy at first, light: hard at first."
    if len(followed) == MOST_DIFFICULTIES < len(logs):
        explained += f" The first {MOST_DIFFICULTIES} methods."
    for axis in axes:
        axis.set_xlabel(SEEN)
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    if followed:
        figure.supxlabel(explained, fontsize=10)
    else:
        axes[0].text(0.5, 0.5, "not logged in this study", transform=axes[0].transAxes, ha="center")
    return figure


def _shade(depth: float) -> Any:
    """Colour of a line from 0 (dark) to 1: of even lightness steps, also in grey, none too light for white."""
    from matplotlib import colormaps

    return colormaps["cividis"](0.85 * depth)


class Noise(NamedTuple):
    """A method's label noise: the share of its training pairs that are flipped, and the settings it shares with
    methods that differ in that share alone."""

    share: float
    family: str


def noise(logs: Logs, cells: Cells, of: Mapping[str, Noise]) -> "Figure":
    """Test accuracy of methods that were trained on flipped labels.

    By the share of flipped labels, where methods differ in that alone; by pairs seen, for each share; and against
    the share of flips among the pairs that a method trained on.

    Args:
        logs: metric logs of the methods.
        cells: contents of the metrics files, for the final accuracies and their errors.
        of: label noise by method, of those of which it is known.
    """
    shares = sorted({noisy.share for method, noisy in of.items() if method in logs and noisy.share})
    families: dict[str, list[str]] = {}
    for method in sorted((method for method in logs if method in of), key=lambda method: of[method].share):
        families.setdefault(of[method].family, []).append(method)
    several = any(len({of[method].share for method in members}) > 1 for members in families.values())
    by_share = ["Final test accuracy (%)"] if several else []
    by_seen = [f"Test accuracy (%), {share:.0%} of the training labels flipped" for share in shares]
    figure, axes = panels([*by_share, *by_seen, "Final test accuracy (%)"], height=3.8)
    if not shares:
        text = "no labels of this study's data are known to be flipped"
        axes[0].text(0.5, 0.5, text, transform=axes[0].transAxes, ha="center")
        return figure
    places = {method: place for place, method in enumerate(logs)}
    for first, *others in families.values():  # in the look, and by the name, of the one with the least noise
        members = [first, *others]
        final = {method: _final_accuracy(cells, method) for method in members}
        if others and several:
            _points(axes[0], places[first], first, [(of[m].share, *final[m]) for m in members])
        for method in members:
            if of[method].share in shares:
                tested = [100 * found for found in evaluations(logs[method], "eval/rewards/accuracies")]
                axis = axes[len(by_share) + shares.index(of[method].share)]
                draw(axis, places[first], first, tested, marked="some")
        noisy = [(_flips_trained_on(logs[m], of[m].share), *final[m]) for m in members if of[m].share]
        if noisy:
            _points(axes[-1], places[first], first, noisy)
    for axis in axes[len(by_share) : -1]:
        axis.set_xlabel(SEEN)
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    if several:
        axes[0].set_xlabel("Flipped labels among the training pairs (share)")
    axes[-1].set_xlim(
        -0.03, 1.15 * axes[-1].get_xlim()[1]
    )  # from 0: differences of a hundredth look like that
    axes[-1].set_xlabel("Flipped labels among the pairs trained on (share)")
    legend(figure, axes, "Bars: one standard error, over seeds if there are several, else over test pairs.")
    return figure


def _flips_trained_on(frames: "Sequence[pd.DataFrame]", share: float) -> float:
    """Share of flipped labels among the pairs that a method trained on: of those chosen, or of all."""
    name = "selected/flipped_share"
    found = [frame[name].mean() if name in frame else share for frame in frames]
    return float(sum(found) / len(found))


def _final_accuracy(cells: Cells, method: str) -> tuple[float, float]:
    """Test accuracy and its standard error, over seeds if there are several."""
    seeds = sorted({cell.seed for cell in cells if cell.method == method})
    row = main_table(cells, [method], seeds).iloc[0]
    kind = "seeds" if len(seeds) > 1 else "items"
    return float(row["test_accuracy"]), float(row[f"test_accuracy_se_{kind}"])


def _points(axis: "Axes", place: int, method: str, points: Sequence[tuple[float, float, float]]) -> None:
    """Points (x, y, error) in a method's look, joined by its line."""
    x, y, error = zip(*points, strict=True)
    axis.errorbar(
        x,
        y,
        yerr=error,
        label=method,
        color=COLOURS[place % len(COLOURS)],
        marker=MARKERS[place % len(MARKERS)],
        markersize=7,
        markerfacecolor="white",
        linestyle=LINES[place % len(LINES)],
        capsize=3,
    )


def label_noise(setting: Path, methods: Sequence[str], seeds: Sequence[int]) -> dict[str, Noise]:
    """Label noise by method: flips that the data came with, as `prepare_data` counted them, and those that the
    method's recipe asks for."""
    counts = [report["train"] for report in data_reports(setting)]
    written = sum(count.get("written", 0) for count in counts)
    before = sum(count.get("flipped", 0) for count in counts) / written if written else 0.0
    found = {}
    for method in methods:
        files = [setting / method / f"seed{seed}" / "recipe.json" for seed in seeds]
        recipes = [read_json(file)["recipe"] for file in files if file.is_file()]
        if recipes:
            training = recipes[0]["training"]
            own = training.get("flipped_share", 0.0)
            others = {key: value for key, value in training.items() if not key.startswith("flip")}
            family = canonical_json([others, recipes[0].get("scheduler")])
            # A label that is flipped twice is as it was.
            found[method] = Noise(before + own - 2 * before * own, family)
    return found


def cost(cells: Cells, methods: Sequence[str], seeds: Sequence[int]) -> "Figure":
    """Time and peak memory of each method: bars are means over seeds, dots the seeds.

    What prepared the training (scheduler pretraining, cross-fitted models) is the hatched part of the bar.
    """
    figure, axes = panels(["Training time (s)", "Peak memory (MB)"], height=max(3.4, 0.32 * len(methods)))
    for axis, key in zip(axes, ("train_seconds", "peak_memory_mb"), strict=True):
        for place, method in enumerate(methods):
            found = [cells.get(Cell(method, seed, "train"), {}) for seed in seeds]
            found = [figures for figures in found if figures.get(key) is not None]
            if not found:
                continue
            values = [figures[key] for figures in found]
            mean = sum(values) / len(values)
            look: dict[str, Any] = {"edgecolor": "#000000", "linewidth": 0.8, "height": 0.6}
            axis.barh(place, mean, color="#BBBBBB", **look)
            label = f"{mean:,.0f}"
            prepared = sum(figures.get("preparation_seconds", 0.0) for figures in found) / len(found)
            if key == "train_seconds" and prepared:
                axis.barh(place, prepared, left=mean, color="#FFFFFF", hatch="////", **look)
                label += f" + {prepared:,.0f} prepared"
            axis.annotate(
                label,
                (0, place),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                bbox={"facecolor": "#FFFFFF", "edgecolor": "none", "alpha": 0.75, "pad": 1.0},
            )
            if len(values) > 1:
                axis.plot(values, [place] * len(values), "o", color="#000000", markersize=3)
        axis.set_yticks(range(len(methods)), methods)
        axis.set_ylim(len(methods) - 0.5, -0.5)
        axis.locator_params(axis="x", nbins=5)
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axis.grid(visible=False, axis="y")
        axis.set_xlim(left=0)
    return figure


def main(
    study_config: Annotated[str, typer.Option(help="Study, as JSON or a JSON file.")],
    results: Annotated[Path, typer.Option(help="Folder of the study's setting: results/<study>/<setting>.")],
    out: Annotated[Path, typer.Option(help="Folder for the figures (.svg, .png).")],
) -> None:
    """Draw the figures of a study from its metric logs and metrics files."""
    study = read_recipe(study_config, Study)
    logs = read_logs(results, study.methods, study.seeds)
    cells = {cell: values for cell, values in read_cells(results).items() if cell.seed in study.seeds}
    drawn = {
        "learning_curves": learning_curves(logs),
        "selection": selection(logs),
        "difficulty": difficulty(logs),
        "noise": noise(logs, cells, label_noise(results, study.preference_methods, study.seeds)),
        "cost": cost(cells, study.methods, study.seeds),
    }
    for name, figure in drawn.items():
        if study.rehearse:
            figure.suptitle("REHEARSAL: tiny model, synthetic data", color="#D55E00")
        save(figure, out / name)


if __name__ == "__main__":
    run(main)
