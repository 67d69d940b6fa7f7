"""Figures of a study: learning curves, what the selectors chose, cost. Each as SVG and PNG.

Methods differ by colour (Okabe and Ito's palette), by line and by marker, so that they can be told apart
without colour too.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from sams.config import BASE_METHOD, Study
from sams.files import whole_file
from sams.results import Cell, read_cells, read_log
from sams.stage import read_recipe, run
from sams.tables.main_table import Cells

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito 2008, without the yellow, which is too light for a line on white.
COLOURS = ["#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
LINES: list[str | tuple[int, tuple[int, ...]]] = ["-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1))]
MARKERS = ["o", "s", "^", "D", "v", "P", "X", "*"]
SEEN = "Preference pairs seen"

Logs = dict[str, list["pd.DataFrame"]]  # metric logs by method, one per seed


class Panel(NamedTuple):
    """One of several small plots: its heading and the names of its metric, the first one logged counts."""

    heading: str
    names: tuple[str, ...]

    @property
    def evaluated(self) -> str:
        """Name of the same metric on the test pairs."""
        return f"eval/{self.names[-1]}"


# A method that trains on a part of each batch logs the whole batch under `all/`, where it has scored it.
CURVES = [
    Panel("Loss", ("all/loss", "loss/all", "loss")),
    Panel("Reward margin (chosen − rejected)", ("all/rewards/margins", "rewards/margins")),
    Panel("Reward accuracy (share of pairs)", ("all/rewards/accuracies", "rewards/accuracies")),
    Panel("Log-prob of chosen responses (nats)", ("all/logps/chosen", "logps/chosen")),
]


def read_logs(setting: Path, methods: Sequence[str], seeds: Sequence[int]) -> Logs:
    """Metric logs of the preference methods, those that exist."""
    logs: Logs = {}
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
    figure, axes = _panels(CURVES)
    for panel, axis in zip(CURVES, axes, strict=True):
        for place, (method, frames) in enumerate(logs.items()):
            columns = [next((name for name in panel.names if name in frame), None) for frame in frames]
            logged = [_smoothed(frame, name) for frame, name in zip(frames, columns, strict=True) if name]
            _draw(axis, place, method, logged, marked=False)
            tested = [
                frame.set_index("pairs_seen")[panel.evaluated].dropna()
                for frame in frames
                if panel.evaluated in frame
            ]
            _draw(axis, place, method, tested, marked=True)
    _finish(figure, axes, "Lines: training batches, smoothed. Markers: test pairs.")
    return figure


def selection(logs: Logs) -> "Figure":
    """Which pairs the selectors chose, and how well the scheduler knew what they were worth, by pairs seen.

    Share of flipped ones and reward margin stand beside the same figure of the whole batch. The share is logged
    where the data says which labels are flipped, the margin where the selector scores the whole batch. The
    scheduler's scores are held against the rewards it saw one round later: their order within a round, and how
    far they were off.
    """
    headings = [
        "Flipped labels among the chosen pairs (share)",
        "Margin of the chosen pairs − of the batch",
        "Scheduler: rank correlation with later rewards",
        "Scheduler: mean absolute error of the estimate",
    ]
    figure, axes = _panels([Panel(heading, ()) for heading in headings])
    for place, (method, frames) in enumerate(logs.items()):
        flips = [frame for frame in frames if "selected/flipped_share" in frame]
        _draw(axes[0], place, method, [_smoothed(f, "selected/flipped_share") for f in flips], marked=False)
        scored = [frame for frame in frames if "all/rewards/margins" in frame]
        margins = [
            frame.assign(difference=frame["rewards/margins"] - frame["all/rewards/margins"])
            for frame in scored
        ]
        _draw(axes[1], place, method, [_smoothed(f, "difference") for f in margins], marked=False)
        for axis, name in (
            (axes[2], "scheduler/rank_correlation"),
            (axes[3], "scheduler/estimate_error"),
        ):
            learned = [_smoothed(frame, name) for frame in frames if name in frame]
            _draw(axis, place, method, learned, marked=False)
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
    for axis in axes[1:3]:
        axis.axhline(0, color="#666666", linewidth=1)
    _finish(figure, axes, "Lines: smoothed over rounds.")
    return figure


def cost(cells: Cells, methods: Sequence[str], seeds: Sequence[int]) -> "Figure":
    """Time and peak memory of each method's training job: bars are means over seeds, dots the seeds."""
    figure, axes = _panels([Panel("Training time (s)", ()), Panel("Peak memory (MB)", ())])
    for axis, key in zip(axes, ("train_seconds", "peak_memory_mb"), strict=True):
        for place, method in enumerate(methods):
            found = [cells.get(Cell(method, seed, "train"), {}).get(key) for seed in seeds]
            values = [value for value in found if value is not None]
            if not values:
                continue
            mean = sum(values) / len(values)
            axis.barh(place, mean, color="#BBBBBB", edgecolor="#000000", linewidth=0.8, height=0.6)
            axis.annotate(f"{mean:,.0f}", (0, place), xytext=(4, 0), textcoords="offset points", va="center")
            if len(values) > 1:
                axis.plot(values, [place] * len(values), "o", color="#000000", markersize=3)
        axis.set_yticks(range(len(methods)), methods)
        axis.invert_yaxis()
        axis.grid(visible=False, axis="y")
        axis.set_xlim(left=0)
    return figure


def save(figure: "Figure", stem: Path) -> None:
    """Write a figure as `<stem>.svg` and `<stem>.png`, the same bytes for the same figure."""
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "sams"}):
        for kind in ("svg", "png"):
            with whole_file(stem.with_name(f"{stem.name}.{kind}")) as part:
                figure.savefig(part, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)


def _panels(panels: Sequence[Panel]) -> "tuple[Figure, list[Axes]]":
    """A figure of small plots, two to a row."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    rows = (len(panels) + 1) // 2
    figure = Figure(figsize=(10, 3.4 * rows + 0.8), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))
    axes = list(figure.subplots(rows, 2).flat)
    for panel, axis in zip(panels, axes, strict=True):
        axis.set_title(panel.heading, fontsize=11, loc="left")
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="both", color="#E5E5E5", linewidth=0.6)
        axis.set_axisbelow(True)
    return figure, axes


def _smoothed(frame: "pd.DataFrame", name: str) -> "pd.Series[float]":
    """A metric by pairs seen, as a running mean over a twentieth of the run."""
    values = frame.set_index("pairs_seen")[name].dropna()
    return values.rolling(max(1, len(values) // 20), min_periods=1).mean()


def _draw(axis: "Axes", place: int, method: str, seeds: "list[pd.Series[float]]", *, marked: bool) -> None:
    """One method's mean over seeds, with a band from the lowest to the highest seed."""
    import pandas as pd

    if not seeds:
        return
    together = pd.concat(seeds, axis=1, join="inner")
    colour = COLOURS[place % len(COLOURS)]
    look = (
        {
            "marker": MARKERS[place % len(MARKERS)],
            "linestyle": "none",
            "markersize": 6,
            "markerfacecolor": "white",
        }
        if marked
        else {"linestyle": LINES[place % len(LINES)], "linewidth": 1.6}
    )
    axis.plot(together.index, together.mean(axis=1), color=colour, label=method, **look)
    if together.shape[1] > 1 and not marked:
        axis.fill_between(
            together.index, together.min(axis=1), together.max(axis=1), color=colour, alpha=0.12, linewidth=0
        )


def _finish(figure: "Figure", axes: "list[Axes]", explained: str) -> None:
    """Labels, and one legend for all plots, below them."""
    looks: dict[str, list[Any]] = {}
    for axis in axes:
        axis.set_xlabel(SEEN)
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        handles, labels = axis.get_legend_handles_labels()
        if not labels:
            axis.text(0.5, 0.5, "not logged in this study", transform=axis.transAxes, ha="center")
        for handle, label in zip(handles, labels, strict=True):
            looks.setdefault(label, []).append(handle)
    if looks:
        together: list[Any] = [tuple(handles[:2]) for handles in looks.values()]  # line and marker in one
        figure.legend(
            together,
            list(looks),
            loc="outside lower center",
            ncols=min(4, len(looks)),
            frameon=False,
            title=explained,
            handlelength=3.5,
        )


def main(
    study_config: Annotated[str, typer.Option(help="Study, as JSON or a JSON file.")],
    results: Annotated[Path, typer.Option(help="Folder of the study's setting: results/<study>/<setting>.")],
    out: Annotated[Path, typer.Option(help="Folder for learning_curves, selection and cost (.svg, .png).")],
) -> None:
    """Draw the figures of a study from its metric logs and metrics files."""
    study = read_recipe(study_config, Study)
    logs = read_logs(results, study.methods, study.seeds)
    figures = {
        "learning_curves": learning_curves(logs),
        "selection": selection(logs),
        "cost": cost(read_cells(results), study.methods, study.seeds),
    }
    for name, figure in figures.items():
        if study.rehearse:
            figure.suptitle("REHEARSAL: tiny model, synthetic data", color="#D55E00")
        save(figure, out / name)


if __name__ == "__main__":
    run(main)
