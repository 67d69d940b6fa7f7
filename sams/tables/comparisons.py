"""Differences between methods with their intervals: each method against the start of all methods and plain DPO."""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sams.scoring.benchmark import ByColumn, Items
from sams.scoring.table import BENCHMARKS
from sams.scoring.wins import wins
from sams.study.study import BASE_METHOD
from sams.tables.main_table import main_table, seeds_of
from sams.tables.pairs import accuracies
from sams.tables.repeats import Repeats, over_repeats
from sams.tables.results import Cell, Cells
from sams.tables.scores import WINS, scores_in

if TYPE_CHECKING:
    import pandas as pd


BASES = [BASE_METHOD, "dpo"]
RESAMPLES = 10_000
COLUMNS = [
    "benchmark",
    "method",
    "base",
    "difference",
    "ci_low",
    "ci_high",
    "excludes_zero",
    "n_items",
    "n_seeds",
    "interval",
    "p_t",
    "p_sign_flip",
]

# Length control is one fit over all instructions, without a value for each item.
LENGTH_CONTROLLED, ACCURACY = "length_controlled_winrate", "test_accuracy"
NOT_COMPARED = {"chosen_reward", "chosen_logp", *WINS.values()}
"""Columns whose difference between methods over seeds says nothing more."""


class Interval(NamedTuple):
    """A difference and its 95 % interval."""

    difference: float
    low: float
    high: float


class Side(NamedTuple):
    """One side of a comparison: its name, the folder of each seed, and the contents of their metrics files."""

    name: str
    folders: Mapping[int, Path]
    cells: Cells


def comparisons(setting: Path, cells: Cells, methods: list[str], seeds: list[int]) -> "pd.DataFrame":
    """Each method minus `sft` and minus `dpo`, as a table of COLUMNS, for the scores that both methods have.

    Args:
        setting: folder of the study's setting.
        cells: contents of its metrics files.
        methods: methods of the study.
        seeds: seeds of the study; two methods are compared on the seeds that both have.
    """
    pairs = [
        (method, base)
        for base in BASES
        if base in methods
        for method in methods
        if method != base and method != BASE_METHOD
    ]
    sides = {
        name: Side(name, {seed: setting / name / f"seed{seed}" for seed in seeds}, cells) for name in methods
    }
    rows = [row for method, base in pairs for row in differences(sides[method], sides[base])]
    return as_table(rows)


def as_table(rows: Sequence[Mapping[str, Any]]) -> "pd.DataFrame":
    """Return the rows of `differences` as a table of COLUMNS."""
    import pandas as pd

    table = pd.DataFrame(rows, columns=COLUMNS)
    return table.astype({"n_items": "Int64", "n_seeds": "Int64", "p_t": float, "p_sign_flip": float})


def differences(method: Side, base: Side) -> Iterator[dict[str, Any]]:
    """Yield rows of the scores that both sides have, on the seeds that both have."""
    paired = list(_paired(method, base))
    yield from paired
    yield from _unpaired(method, base, {LENGTH_CONTROLLED, ACCURACY} - {row["benchmark"] for row in paired})
    yield from _over_seeds(method, base)


def paired_difference(method: Items, base: Items) -> tuple[float, float, float, int]:
    """Mean difference over the items of both sides, its 95 % bootstrap interval, and the number of these items."""
    import numpy as np
    from scipy.stats import bootstrap

    shared = [key for key in method if key in base]
    differences = np.array([method[key] - base[key] for key in shared])
    if len(shared) == 1:  # scipy refuses to resample one item
        return float(differences[0]), float(differences[0]), float(differences[0]), 1
    resampled = bootstrap(
        (differences,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=RESAMPLES // 20,  # limits memory to 100 MB
        method="percentile",
        rng=np.random.default_rng(0),
    )
    low, high = np.percentile(resampled.bootstrap_distribution, [2.5, 97.5])
    return float(differences.mean()), float(low), float(high), len(shared)


def items_of(run: Path) -> ByColumn:
    """Return the scores of a run that have a value for each item."""
    files = {benchmark: run / benchmark.judged for benchmark in BENCHMARKS.values()}
    items = [benchmark.items(file) for benchmark, file in files.items() if file.is_file()]
    return {column: scores for of in items for column, scores in of.items()} | {ACCURACY: accuracies(run)}


def _paired(method: Side, base: Side) -> Iterator[dict[str, Any]]:
    """Yield differences over the same items, each item's score being its mean over the seeds of both sides."""
    shared = [seed for seed in method.folders if seed in base.folders]
    sides = [(items_of(method.folders[seed]), items_of(base.folders[seed])) for seed in shared]
    for column in dict.fromkeys(column for one, _ in sides for column in one):
        both = [(one.get(column, {}), other.get(column, {})) for one, other in sides]
        both = [items for items in both if all(items)]
        compared = {column: both}
        if column in WINS:
            compared[WINS[column]] = [(wins(one, other), dict.fromkeys(one, 50.0)) for one, other in both]
        for score, seeds in compared.items():
            of_method, of_base = _means(seeds)
            if of_method:
                difference, low, high, items = paired_difference(of_method, of_base)
                interval = Interval(difference, low, high)
                yield _row(score, method, base, interval, len(seeds), "paired", items=items)


def _unpaired(method: Side, base: Side, columns: Collection[str]) -> Iterator[dict[str, Any]]:
    """Yield differences with intervals from both standard errors over items."""
    table, shared = _both(method, base)
    for column in sorted(columns):
        difference = table[column][method.name] - table[column][base.name]
        half = 1.96 * math.hypot(*table[f"{column}_se_items"])
        if not math.isnan(difference + half):
            interval = Interval(difference, difference - half, difference + half)
            yield _row(column, method, base, interval, len(shared), "unpaired")


def _over_seeds(method: Side, base: Side) -> Iterator[dict[str, Any]]:
    """Yield differences with seeds as repeats: the difference of each seed counts once."""
    _, shared = _both(method, base)
    scores = scores_in({**base.cells, **method.cells}) if len(shared) > 1 else []
    for score in [score for score in scores if score.column not in NOT_COMPARED]:
        values = [
            [side.cells.get(Cell(side.name, seed, score.benchmark), {}).get(score.key) for seed in shared]
            for side in (method, base)
        ]
        if any(value is None for side in values for value in side):
            continue
        repeats = over_repeats([one - other for one, other in zip(*values, strict=True)])
        interval = Interval(repeats.difference, repeats.low, repeats.high)
        yield _row(score.column, method, base, interval, len(shared), "over seeds", repeats=repeats)


def _both(method: Side, base: Side) -> "tuple[pd.DataFrame, list[int]]":
    """Return the main table of two sides, and the seeds that both have figures of."""
    cells = {**base.cells, **method.cells}
    seeds = [seed for seed in method.folders if seed in base.folders]
    shared = seeds_of(cells, method.name, seeds_of(cells, base.name, seeds))
    return main_table(cells, [method.name, base.name], shared).set_index("method"), shared


def _row(
    score: str,
    method: Side,
    base: Side,
    interval: Interval,
    seeds: int,
    kind: str,
    *,
    items: int | None = None,
    repeats: Repeats | None = None,
) -> dict[str, Any]:
    return {
        "benchmark": score,
        "method": method.name,
        "base": base.name,
        "difference": interval.difference,
        "ci_low": interval.low,
        "ci_high": interval.high,
        "excludes_zero": interval.low > 0 or interval.high < 0,
        "n_items": items,
        "n_seeds": seeds,
        "interval": kind,
        "p_t": repeats.p_t if repeats else None,
        "p_sign_flip": repeats.p_sign_flip if repeats else None,
    }


def _means(seeds: Sequence[tuple[Items, Items]]) -> tuple[Items, Items]:
    """Return the mean score of each item on both sides, over the seeds in which both sides have it."""
    scores: dict[str, list[tuple[float, float]]] = {}
    for method, base in seeds:
        for key in method:
            if key in base:
                scores.setdefault(key, []).append((method[key], base[key]))
    means = {key: [sum(side) / len(side) for side in zip(*of, strict=True)] for key, of in scores.items()}
    return {key: of[0] for key, of in means.items()}, {key: of[1] for key, of in means.items()}
