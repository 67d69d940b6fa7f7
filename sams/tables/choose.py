"""Choice of each method's run and length by validation accuracy.

A point of a method's grid is a run and one of its evaluations, so that early stopping is part of the choice. Its
score is the mean validation accuracy over seeds; accuracies are comparable between losses. The validation pairs are
as noisy as the training pairs, and the choice reads neither test pairs nor answers.

The choice is made twice: among all evaluations (equal data), and among the evaluations within the compute of the
cheapest method's complete run (equal compute). A forward pass of a pair is one unit of compute, a backward pass two.
"""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sams.study.recipes import require
from sams.study.study import Study
from sams.tables.results import read_log

if TYPE_CHECKING:
    import pandas as pd

LIMITS = ("equal_data", "equal_compute")
ROUNDING = 1e-9


class Evaluation(NamedTuple):
    """One evaluation of a run of one seed.

    Args:
        step: optimiser steps so far.
        pairs_seen: pairs of the batches so far.
        compute: forward passes of a pair so far; a backward pass counts as two.
        accuracy: accuracy on the validation pairs.
        flipped_kept: share of the flipped pairs seen so far that the method trained on.
        flipped_share: share of flipped pairs among the pairs trained on so far; None where it is not logged.
    """

    step: int
    pairs_seen: int
    compute: float
    accuracy: float
    flipped_kept: float
    flipped_share: float | None


def evaluations(log: "pd.DataFrame") -> list[Evaluation]:
    """Return the evaluations in a metric log that has a line for each step."""
    import numpy as np

    n = float(log["pairs_seen"].iloc[0])
    share = log["selected/share"].to_numpy()
    # Selectors that score the whole batch log `all/loss`; the others need no scoring pass.
    scored = log["all/loss"].notna().to_numpy() if "all/loss" in log else np.zeros(len(log))
    compute = n * np.cumsum(scored + 3 * share)
    flips = None
    if "selected/flipped_share" in log:
        flips = share * log["selected/flipped_share"].to_numpy(), log["all/flipped_share"].to_numpy()
    evaluations = []
    for index in np.flatnonzero(log["eval/rewards/accuracies"].notna().to_numpy()):
        kept, of_all, trained = (
            (values[: index + 1].sum() for values in (*flips, share)) if flips else (1.0, 1.0, None)
        )
        row = log.iloc[index]
        evaluations.append(
            Evaluation(
                step=int(row["step"]),
                pairs_seen=int(row["pairs_seen"]),
                compute=float(compute[index]),
                accuracy=float(row["eval/rewards/accuracies"]),
                flipped_kept=float(kept / of_all),
                flipped_share=None if trained is None else float(kept / trained),
            )
        )
    return evaluations


def choice(runs: dict[str, dict[str, Sequence[Sequence[Evaluation]]]]) -> dict[str, Any]:
    """Return the chosen run and evaluation of each method within each limit, as choice.json holds them.

    Args:
        runs: by method and run, the evaluations of each seed.

    Returns:
        `compute` by limit; `methods` by method and limit; `points`, the run and step of each distinct choice.
    """
    complete = [seeds[0][-1] for members in runs.values() for seeds in members.values()]
    most = {"equal_data": float("inf"), "equal_compute": min(last.compute for last in complete)}
    methods = {
        method: {limit: _best(members, most[limit] + ROUNDING) for limit in LIMITS}
        for method, members in runs.items()
    }
    chosen = [point for limits in methods.values() for point in limits.values()]
    return {
        "compute": {limit: most[limit] for limit in LIMITS[1:]},
        "methods": methods,
        "points": {point_name(point): {"run": point["run"], "step": point["step"]} for point in chosen},
    }


def point_name(point: dict[str, Any]) -> str:
    """Return the name of a point among `points` and in the figures that stage `assess` writes."""
    return f"{point['run']}/step{point['step']}"


def _best(members: dict[str, Sequence[Sequence[Evaluation]]], most: float) -> dict[str, Any]:
    """Return the point with the best mean over seeds; of equal points that with the fewest steps, then the first."""
    points = [
        (statistics.fmean(evaluation.accuracy for evaluation in at), run, at)
        for run, seeds in members.items()
        for at in zip(*seeds, strict=True)
        if at[0].compute <= most
    ]
    accuracy, run, at = max(points, key=lambda point: (point[0], -point[2][0].step))
    return {
        "run": run,
        "step": at[0].step,
        "pairs_seen": at[0].pairs_seen,
        "compute": at[0].compute,
        "points": len(points),
        "validation_accuracy": accuracy,
        "flipped_kept": [evaluation.flipped_kept for evaluation in at],
        "flipped_share": [evaluation.flipped_share for evaluation in at],
    }


def chosen_of(study: Study, results: Path) -> dict[str, Any]:
    """Return the choice of a study, from the metric logs below the folder of its setting."""
    return choice(
        {
            method: {
                name: [
                    evaluations(read_log(results / name / f"seed{seed}" / "train.jsonl"))
                    for seed in study.seeds
                ]
                for name in members
            }
            for method, members in require(study.chosen, "chosen").runs.items()
        }
    )
