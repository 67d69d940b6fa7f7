"""Stage `choose`: of each method's runs and their evaluations, the one with the best validation accuracy.

A point of a method's grid is a run and one of its evaluations: learning rate x length, so that stopping early is part
of the choice. Its score is the validation accuracy, mean over seeds: accuracies, unlike losses, are of one scale for
all losses. The pairs are as noisy as the training pairs; nothing else is read, no test pair and no answer.

The choice is made twice: among all evaluations (equal data), and among those that a method reaches with the compute
of the cheapest method's whole run (equal compute). A forward pass of a pair is one unit, a backward pass two.
"""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from sams.runtime.files import whole_file, write_json
from sams.runtime.stage import read_recipe, run
from sams.study.recipes import wanted
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
        compute: forward passes of a pair so far, a backward pass being two.
        accuracy: on the validation pairs.
        flipped_kept: of the flipped pairs seen so far, the share that was trained on.
        flipped_share: of the pairs trained on so far, the share that is flipped; None where it is not logged.
    """

    step: int
    pairs_seen: int
    compute: float
    accuracy: float
    flipped_kept: float
    flipped_share: float | None


def evaluations(log: "pd.DataFrame") -> list[Evaluation]:
    """The evaluations in a metric log that has a line for each step."""
    import numpy as np

    n = float(log["pairs_seen"].iloc[0])
    share = log["selected/share"].to_numpy()
    # A selector that looks at the batch has logged what it saw; others cost no scoring pass.
    scored = log["all/loss"].notna().to_numpy() if "all/loss" in log else np.zeros(len(log))
    compute = n * np.cumsum(scored + 3 * share)
    flips = None
    if "selected/flipped_share" in log:
        flips = share * log["selected/flipped_share"].to_numpy(), log["all/flipped_share"].to_numpy()
    found = []
    for place in np.flatnonzero(log["eval/rewards/accuracies"].notna().to_numpy()):
        kept, of_all, trained = (
            (values[: place + 1].sum() for values in (*flips, share)) if flips else (1.0, 1.0, None)
        )
        row = log.iloc[place]
        found.append(
            Evaluation(
                step=int(row["step"]),
                pairs_seen=int(row["pairs_seen"]),
                compute=float(compute[place]),
                accuracy=float(row["eval/rewards/accuracies"]),
                flipped_kept=float(kept / of_all),
                flipped_share=None if trained is None else float(kept / trained),
            )
        )
    return found


def choice(runs: dict[str, dict[str, Sequence[Sequence[Evaluation]]]]) -> dict[str, Any]:
    """The chosen run and evaluation of every method, within each limit.

    Args:
        runs: by method and run, the evaluations of each seed.
    """
    whole = [seeds[0][-1] for members in runs.values() for seeds in members.values()]
    most = {"equal_data": float("inf"), "equal_compute": min(found.compute for found in whole)}
    return {
        "compute": {limit: most[limit] for limit in LIMITS[1:]},
        "methods": {
            method: {limit: _best(members, most[limit] + ROUNDING) for limit in LIMITS}
            for method, members in runs.items()
        },
    }


def _best(members: dict[str, Sequence[Sequence[Evaluation]]], most: float) -> dict[str, Any]:
    """The point with the best mean over seeds; of equal ones the earliest, in the order of the grid."""
    points = [
        (statistics.fmean(found.accuracy for found in at), run, at)
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
        "flipped_kept": [found.flipped_kept for found in at],
        "flipped_share": [found.flipped_share for found in at],
    }


def chosen_of(study: Study, results: Path) -> dict[str, Any]:
    """The choice by the metric logs below the folder of the study's setting."""
    return choice(
        {
            method: {
                name: [
                    evaluations(read_log(results / name / f"seed{seed}" / "train.jsonl"))
                    for seed in study.seeds
                ]
                for name in members
            }
            for method, members in wanted(study.chosen, "chosen").runs.items()
        }
    )


def points(choice: dict[str, Any]) -> list[tuple[str, int]]:
    """The different points that were chosen, as (run, step)."""
    chosen = [found[limit] for found in choice["methods"].values() for limit in LIMITS]
    return list(dict.fromkeys((point["run"], point["step"]) for point in chosen))


def place(run: str, step: int) -> str:
    """Name of a point in the figures."""
    return f"{run}/step{step}"


def main(
    study_config: Annotated[str, typer.Option(help="Study, as JSON or a JSON file.")],
    results: Annotated[Path, typer.Option(help="Folder of the study's setting: results/<study>/<setting>.")],
    out: Annotated[Path, typer.Option(help="The choice, as JSON.")],
) -> None:
    """Choose each method's run and length by the metric logs."""
    found = chosen_of(read_recipe(study_config, Study), results)
    with whole_file(out) as part:
        write_json(part, found)


if __name__ == "__main__":
    run(main)
