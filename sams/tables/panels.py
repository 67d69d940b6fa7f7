"""How figures are drawn: small plots side by side, a look for each method, SVG and PNG.

Methods differ by colour (Okabe and Ito's palette), by line and by marker, so that they can be told apart
without colour too.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sams.runtime.files import whole_file

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito 2008, without the yellow, which is too light for a line on white.
COLOURS = ["#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
LINES: list[str | tuple[int, tuple[int, ...]]] = ["-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1))]
MARKERS = ["o", "s", "^", "D", "v", "P", "X", "*"]
SEEN = "Preference pairs seen"


def save(figure: "Figure", stem: Path) -> None:
    """Write a figure as `<stem>.svg` and `<stem>.png`."""
    for kind in ("svg", "png"):
        save_as(figure, stem.with_name(f"{stem.name}.{kind}"))


def save_as(figure: "Figure", path: Path) -> None:
    """Write a figure as SVG or PNG, by the file's name: the same bytes for the same figure."""
    import matplotlib

    kind = path.suffix.removeprefix(".")
    with matplotlib.rc_context({"svg.hashsalt": "sams"}), whole_file(path) as part:
        figure.savefig(part, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)


def panels(headings: Sequence[str], height: float = 3.4) -> "tuple[Figure, list[Axes]]":
    """A figure of small plots under their headings, two to a row, each so many inches high."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    rows = max(1, (len(headings) + 1) // 2)
    figure = Figure(figsize=(10, height * rows + 0.8), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))
    axes = list(figure.subplots(rows, 2).flat)
    for spare in axes[len(headings) :]:
        spare.set_visible(False)
    for heading, axis in zip(headings, axes, strict=False):
        axis.set_title(heading, fontsize=11, loc="left")
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="both", color="#E5E5E5", linewidth=0.6)
        axis.set_axisbelow(True)
    return figure, axes[: len(headings)]


def smoothed(frame: "pd.DataFrame", name: str) -> "pd.Series[float]":
    """A metric by pairs seen, as a running mean over a twentieth of the run."""
    values = frame.set_index("pairs_seen")[name].dropna()
    return values.rolling(max(1, len(values) // 20), min_periods=1).mean()


def draw(
    axis: "Axes",
    place: int,
    method: str,
    seeds: "Sequence[pd.Series[float]]",
    *,
    marked: Literal["no", "only", "some"] = "no",
) -> None:
    """One method's mean over seeds, with a band from the lowest to the highest seed.

    Args:
        axis: the plot.
        place: place of the method in the study, which gives it its look.
        method: its name in the legend.
        seeds: values of each seed by pairs seen.
        marked: a line without markers, markers without a line, or a line with a marker now and then.
    """
    import pandas as pd

    if not seeds:
        return
    together = pd.concat(seeds, axis=1, join="inner")
    colour = COLOURS[place % len(COLOURS)]
    look: dict[str, Any] = {}
    if marked != "only":
        look |= {"linestyle": LINES[place % len(LINES)], "linewidth": 1.6}
    if marked != "no":
        look |= {"marker": MARKERS[place % len(MARKERS)], "markersize": 6, "markerfacecolor": "white"}
    if marked == "only":
        look |= {"linestyle": "none"}
    elif marked == "some" and len(together) > 8:
        every = len(together) // 6
        look |= {"markevery": (place * every // 8 % every, every)}  # not all at one place
    axis.plot(together.index, together.mean(axis=1), color=colour, label=method, **look)
    if together.shape[1] > 1 and marked != "only":
        axis.fill_between(
            together.index, together.min(axis=1), together.max(axis=1), color=colour, alpha=0.12, linewidth=0
        )


def finish(figure: "Figure", axes: "Sequence[Axes]", explained: str) -> None:
    """Labels of the axis of pairs seen, and one legend for all plots, below them."""
    for axis in axes:
        axis.set_xlabel(SEEN)
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    legend(figure, axes, explained)


def legend(figure: "Figure", axes: "Sequence[Axes]", explained: str) -> None:
    """One legend for all plots, below them; a plot without anything to show says so."""
    looks: dict[str, list[Any]] = {}
    for axis in axes:
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
