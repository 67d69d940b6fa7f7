"""Columns of the main table and files of figures: those of the training job and of every benchmark."""

from collections.abc import Iterable, Mapping
from typing import Any

from sams.scoring.benchmark import Score
from sams.scoring.table import BENCHMARKS

SCORES = [
    *(score for benchmark in BENCHMARKS.values() if benchmark.in_every_table for score in benchmark.scores),
    Score("test_accuracy", "train", "test_accuracy", "test_accuracy_se_items", 1, "test accuracy", "%"),
    Score("chosen_reward", "train", "chosen_reward", "chosen_reward_se_items", 3, "chosen reward"),
    Score("chosen_logp", "train", "chosen_logp", "chosen_logp_se_items", 1, "chosen log-prob", "nats"),
]
"""Columns of every main table."""

METRICS = {"train": "train_metrics.json"} | {name: one.metrics for name, one in BENCHMARKS.items()}
"""Metrics files below a seed folder; `train` is the training job's."""

WINS = {column: share for benchmark in BENCHMARKS.values() for column, share in benchmark.wins.items()}
"""Columns with the share of items on which a method is better than a base, by the column that says what is better."""


def score_named(column: str) -> Score:
    """Return the score of a column of the main table."""
    known = {score.column: score for score in SCORES}
    found = (benchmark.score_of(column) for benchmark in BENCHMARKS.values())
    return known.get(column) or next(score for score in found if score)


def scores_in(cells: Mapping[Any, Mapping[str, Any]]) -> list[Score]:
    """Return the scores of a main table: `SCORES`, and what the benchmarks of its cells add."""
    columns = {score.column: score for score in SCORES}
    for cell, values in cells.items():
        if cell.benchmark in BENCHMARKS:
            columns |= _by_column(BENCHMARKS[cell.benchmark].columns(values))
    return list(columns.values())


def _by_column(scores: Iterable[Score]) -> dict[str, Score]:
    return {score.column: score for score in scores}
