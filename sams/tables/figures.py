"""Figures of a study, each as SVG and PNG: learning curves, selection, difficulty, noise, cost."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from sams.config import BASE_METHOD, Study
from sams.files import read_json
from sams.results import Cell, read_cells, read_log
from sams.stage import read_recipe, run
from sams.tables.main_table import Cells, main_table
from sams.tables.panels import COLOURS, MARKERS, SEEN, draw, finish, legend, panels, save, smoothed

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

Logs = Mapping[str, Sequence["pd.DataFrame"]]  # metric logs by method, one per seed


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
    followed = {}
    for method, frames in logs.items():
        columns = [name for name in frames[0] if str(name).startswith("followed/")]
        if columns:
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


def noise(logs: Logs, cells: Cells, share: float | None) -> "Figure":
    """Test accuracy of all methods trained on flipped labels: by pairs seen, and by how many flips they trained on.

    Args:
        logs: metric logs of the methods.
        cells: contents of the metrics files, for the final accuracies and their errors.
        share: share of the training pairs whose labels are flipped; None where the data does not say.
    """
    figure, axes = panels(["Test accuracy (%)", "Final test accuracy (%) and flips trained on"], height=4.2)
    if not share:
        told = "no labels of this study's data are known to be flipped"
        for axis in axes:
            axis.text(0.5, 0.5, told, transform=axis.transAxes, ha="center")
        return figure
    axes[0].set_title(
        f"Test accuracy (%), {share:.0%} of the training labels flipped", fontsize=11, loc="left"
    )
    for place, (method, frames) in enumerate(logs.items()):
        tested = [100 * found for found in evaluations(frames, "eval/rewards/accuracies")]
        draw(axes[0], place, method, tested, marked="some")
        seeds = sorted({cell.seed for cell in cells if cell.method == method})
        row = main_table(cells, [method], seeds).iloc[0]
        trained = [
            frame["selected/flipped_share"].mean() if "selected/flipped_share" in frame else share
            for frame in frames
        ]
        error = row["test_accuracy_se_seeds"] if len(seeds) > 1 else row["test_accuracy_se_items"]
        axes[1].errorbar(
            sum(trained) / len(trained),
            row["test_accuracy"],
            yerr=error,
            color=COLOURS[place % len(COLOURS)],
            marker=MARKERS[place % len(MARKERS)],
            markersize=8,
            markerfacecolor="white",
            linestyle="none",
            capsize=3,
        )
    axes[0].set_xlabel(SEEN)
    axes[0].xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes[1].margins(x=0.1)
    axes[1].set_xlabel("Flipped labels among the pairs trained on (share)")
    legend(
        figure, axes[:1], "Bars: one standard error, over seeds if there are several, else over test pairs."
    )
    return figure


def flipped_share(setting: Path) -> float | None:
    """Share of the training pairs whose labels are flipped, as `prepare_data` counted; None where it cannot know."""
    file = setting / "data" / "report.json"
    if not file.is_file():
        return None
    train = read_json(file)["train"]
    if "flipped" not in train:
        return None
    return float(train["flipped"] / train["written"])


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
    save(learning_curves(logs), out / "learning_curves")
    save(selection(logs), out / "selection")
    save(difficulty(logs), out / "difficulty")
    cells = {cell: values for cell, values in read_cells(results).items() if cell.seed in study.seeds}
    save(noise(logs, cells, flipped_share(results)), out / "noise")
    save(cost(cells, study.methods, study.seeds), out / "cost")


if __name__ == "__main__":
    run(main)
