"""Parts of figures: grids of small plots, a style for each method, files as SVG and PNG.

Methods differ in colour (Okabe and Ito's palette), line style and marker, so that they are distinct without colour.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from sams.runtime.files import whole_file

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito 2008, without yellow, which is too light for a line on white.
COLOURS = ["#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
LINES: list[str | tuple[int, tuple[int, ...]]] = ["-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1))]
MARKERS = ["o", "s", "^", "D", "v", "P", "X", "*"]
SEEN = "Preference pairs seen"
NOT_LOGGED = "nothing of this is logged"

Logs = Mapping[str, Sequence["pd.DataFrame"]]
"""Metric logs by method, one for each seed."""
Marked = Literal["no", "only", "some"]


def save(figure: "Figure", stem: Path) -> None:
    """Write a figure as `<stem>.svg` and `<stem>.png`."""
    for kind in ("svg", "png"):
        save_as(figure, stem.with_name(f"{stem.name}.{kind}"))


def save_as(figure: "Figure", path: Path) -> None:
    """Write a figure as SVG or PNG, by the file's suffix; equal figures give equal bytes."""
    import matplotlib

    kind = path.suffix.removeprefix(".")
    with matplotlib.rc_context({"svg.hashsalt": "sams"}), whole_file(path) as part:
        figure.savefig(part, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)


class Plot(NamedTuple):
    """Heading of a plot, and the label of its y axis with the unit."""

    heading: str
    label: str = ""


def panels(plots: Sequence[Plot], height: float = 3.4) -> "tuple[Figure, list[Axes]]":
    """A figure with some plots, two to a row, each `height` inches high; one plot has a row of its own."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    columns = min(2, len(plots))
    rows = -(-len(plots) // columns)
    figure = Figure(
        figsize=(10 if columns == 2 else 7, height * rows + 0.8),
        layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12),
    )
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for spare in axes[len(plots) :]:
        spare.remove()
    for plot, axis in zip(plots, axes, strict=False):
        axis.set_title(plot.heading, fontsize=11, loc="left")
        axis.set_ylabel(plot.label)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="both", color="#E5E5E5", linewidth=0.6)
        axis.set_axisbelow(True)
    return figure, axes[: len(plots)]


def empty(heading: str) -> "Figure":
    """Return a figure that says that nothing was logged."""
    figure, [axis] = panels([Plot(heading)])
    axis.set_axis_off()
    axis.text(0.5, 0.5, NOT_LOGGED, transform=axis.transAxes, ha="center")
    return figure


def smoothed(frame: "pd.DataFrame", name: str) -> "pd.Series[float]":
    """A metric by pairs seen, as a running mean over a twentieth of the run."""
    values = frame.set_index("pairs_seen")[name].dropna()
    return values.rolling(max(1, len(values) // 20), min_periods=1).mean()


def evaluations(frames: "Sequence[pd.DataFrame]", name: str) -> "list[pd.Series[float]]":
    """A metric of evaluations by pairs seen, for each seed."""
    return [frame.set_index("pairs_seen")[name].dropna() for frame in frames if name in frame]


def draw(
    axis: "Axes",
    index: int,
    method: str,
    seeds: "Sequence[pd.Series[float]]",
    *,
    marked: Marked = "no",
    banded: bool = True,
) -> None:
    """Draw one method's mean over seeds, with a band from the lowest to the highest seed.

    Args:
        axis: the plot.
        index: index of the method in the study, which determines its style.
        method: its name in the legend.
        seeds: values of each seed by pairs seen.
        marked: a line without markers (no), markers without a line (only), or a line with a few markers (some).
        banded: whether the band is drawn.
    """
    import pandas as pd

    if not seeds:
        return
    together = pd.concat(seeds, axis=1, join="inner")
    colour = COLOURS[index % len(COLOURS)]
    style: dict[str, Any] = {}
    if marked != "only":
        style |= {"linestyle": LINES[index % len(LINES)], "linewidth": 1.6}
    if marked != "no":
        style |= {"marker": MARKERS[index % len(MARKERS)], "markersize": 6, "markerfacecolor": "white"}
    if marked == "only":
        style |= {"linestyle": "none"}
    elif marked == "some" and len(together) > 8:
        every = len(together) // 6
        style |= {"markevery": (index * every // 8 % every, every)}  # methods mark different points
    axis.plot(together.index, together.mean(axis=1), color=colour, label=method, **style)
    if together.shape[1] > 1 and marked != "only" and banded:
        axis.fill_between(
            together.index, together.min(axis=1), together.max(axis=1), color=colour, alpha=0.12, linewidth=0
        )


def use_log_scale(axis: "Axes") -> None:
    """Make the y axis logarithmic if its lines are positive and their levels far apart."""
    import numpy as np

    lines = [np.asarray(line.get_ydata(), float) for line in axis.lines]
    levels = [line.mean() for line in lines if len(line)]
    if levels and all((line > 0).all() for line in lines) and max(levels) > 8 * min(levels):
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")


def label_pairs_seen(axes: "Sequence[Axes]") -> None:
    """Label the x axes of plots by pairs seen."""
    for axis in axes:
        axis.set_xlabel(SEEN)
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")


def finish(figure: "Figure", axes: "Sequence[Axes]", explained: str) -> None:
    """Label the x axes of plots by pairs seen, and add the legend."""
    label_pairs_seen(axes)
    legend(figure, axes, explained)


def legend(figure: "Figure", axes: "Sequence[Axes]", explained: str) -> None:
    """Add one legend for all plots below them."""
    styles: dict[str, list[Any]] = {}
    for axis in axes:
        handles, labels = axis.get_legend_handles_labels()
        for handle, label in zip(handles, labels, strict=True):
            styles.setdefault(label, []).append(handle)
    if styles:
        together: list[Any] = [tuple(handles[:2]) for handles in styles.values()]  # line and marker in one
        figure.legend(
            together,
            list(styles),
            loc="outside lower center",
            ncols=min(int(figure.get_figwidth() // 2.5), len(styles)),
            frameon=False,
            title=explained,
            handlelength=3.5,
        )
