"""Figure of the pairs: how margins spread during a run, and which margins a selector takes."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from sams.tables.panels import COLOURS, LINES, MARKERS, Plot, legend, panels

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

READ = ["split", "step", "margin", "selected", "flipped"]
"""Columns of the records that the figure needs."""
MOST = 11
"""Methods whose margins fit on a page."""
POINTS = 201
"""Points of a line: a file with a point for each of a million pairs would not open."""
TAIL = 0.002
"""Share of the pairs at each end that is cut off."""
PART = 0.1
"""Share of the run's rounds that a distribution covers, so that pairs seen once can be compared."""


def pair_margins(records: "Mapping[str, Sequence[pd.DataFrame]]") -> "Figure":
    """Draw margins at the start and at the end of each method's run, and the share selected by margin.

    Margins are those of the training pairs in the first and in the last tenth of the rounds, all seeds together;
    where labels are known to be swapped, these pairs at the end are drawn apart. The share selected is that of each
    tenth of a round's pairs by margin, for methods that score the complete batch and select a part of it.

    Args:
        records: records of the pairs by method, one for each seed.
    """
    selecting = {method: shares for method, frames in records.items() if (shares := _selected(frames))}
    drawn = list(records)[:MOST]
    plots = [Plot(f"{method}: margins of training pairs", "share with a smaller margin") for method in drawn]
    plots += [Plot("Share selected, by margin (grey: all)", "share selected")] * bool(selecting)
    figure, axes = panels(plots, height=2.8)
    for method, axis in zip(drawn, axes, strict=False):
        _margins(axis, records[method])
    if selecting:
        _shares(axes[-1], selecting, list(records))
    note = "Margins: first and last tenth of the rounds, all seeds."
    legend(figure, axes[: len(drawn)], note + (f" The first {MOST} methods." if len(records) > MOST else ""))
    return figure


def _margins(axis: "Axes", frames: "Sequence[pd.DataFrame]") -> None:
    """Draw the cumulative distributions of one method's margins."""
    import numpy as np
    import pandas as pd

    parts: dict[str, list[pd.Series[float]]] = {}
    for frame in frames:
        train = frame[frame["split"] == "train"]
        rounds = train["step"].max()
        first = train[train["step"] <= max(1, PART * rounds)]
        last = train[train["step"] > min(rounds - 1, (1 - PART) * rounds)]
        parts.setdefault("at the start", []).append(first["margin"])
        swapped = last["flipped"].fillna(False).astype(bool)
        parts.setdefault("at the end, labels right" if swapped.any() else "at the end", []).append(
            last["margin"][~swapped]
        )
        if swapped.any():
            parts.setdefault("at the end, labels swapped", []).append(last["margin"][swapped])
    margins = {name: pd.concat(part).to_numpy() for name, part in parts.items()}
    styles = [("#999999", "-"), (COLOURS[1], "-"), (COLOURS[2], "--")]
    for (name, values), (colour, line) in zip(margins.items(), styles, strict=False):
        shares = np.linspace(0, 1, POINTS)
        axis.plot(
            np.quantile(values, shares), shares, label=name, color=colour, linestyle=line, linewidth=1.8
        )
    low, high = np.quantile(np.concatenate(list(margins.values())), [TAIL, 1 - TAIL])
    axis.set_xlim(min(low, -1e-3), max(high, 1e-3))
    axis.set_ylim(0, 1)
    axis.axvline(0, color="#666666", linewidth=0.8)
    axis.set_xlabel("margin")


def _selected(frames: "Sequence[pd.DataFrame]") -> "list[pd.Series[float]]":
    """Return the share selected by tenth of a round's margins, for each seed that selected among scored pairs."""
    found = []
    for frame in frames:
        train = frame[frame["split"] == "train"]
        partly = train.groupby("step")["selected"].transform("min") == False  # noqa: E712
        scored = train[partly]
        if len(scored):
            ranks = scored.groupby("step")["margin"].rank(pct=True)
            found.append(
                scored["selected"].astype(float).groupby((10 * ranks).clip(upper=9.999).astype(int)).mean()
            )
    return found


def _shares(axis: "Axes", selecting: "Mapping[str, list[pd.Series[float]]]", methods: Sequence[str]) -> None:
    """Draw the share selected by tenth of the margins, a line for each method."""
    import pandas as pd

    for method, shares in selecting.items():
        index = methods.index(method)
        mean = pd.concat(shares, axis=1).mean(axis=1)
        axis.plot(
            mean.index + 1,
            mean,
            label=method,
            color=COLOURS[index % len(COLOURS)],
            linestyle=LINES[index % len(LINES)],
            marker=MARKERS[index % len(MARKERS)],
            markerfacecolor="white",
        )
    ratio = sum(shares.mean() for seeds in selecting.values() for shares in seeds) / sum(
        map(len, selecting.values())
    )
    axis.axhline(ratio, color="#666666", linewidth=0.8)
    axis.set_ylim(0, 1)
    axis.set_xticks(range(1, 11))
    axis.set_xlabel("tenth of the round by margin (1: smallest)")
    axis.legend(frameon=False, fontsize=8)
