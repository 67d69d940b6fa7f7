"""Run a scoring job: score, write the figures, log them to MLflow."""

import functools
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from sams.judge.ask import STORE, DryRun
from sams.judge.client import key_withheld
from sams.runtime.code import code_digest
from sams.runtime.files import write_json
from sams.runtime.provenance import ENVIRONMENT, made_on
from sams.study.recipes import ScoreRecipe, current_job
from sams.study.settings import Settings
from sams.tracking.log import Run, start

RUN_ID = "mlflow_run_id"

# Command-line options that the benchmarks with a judge share.
RecipeOption = Annotated[str | None, typer.Option(help="ScoreRecipe, as JSON or a file: the judge.")]
MissingOption = Annotated[
    int, typer.Option(help="Number of items that may lack a judgment (at least that of the recipe).")
]
StoreOption = Annotated[
    Path | None, typer.Option(help=f"Store of an endpoint's answers ({STORE} in the folder of --out).")
]
DryRunOption = Annotated[bool, typer.Option(help="Only log the estimate of the judge's calls.")]


def run_scoring(
    stage: str,
    score: Callable[..., dict[str, Any]],
    recipe: ScoreRecipe | None,
    out: Path,
    judge_store: Path | None,
    dry_run: bool,
) -> dict[str, Any] | None:
    """Score, write the figures and log them.

    Args:
        stage: the name of the rule.
        score: function of `recipe`, `judge_store` and `dry_run` that returns the figures.
        recipe: the judge.
        out: <method>/seed<k>/<benchmark>/metrics.json.
        judge_store: store of an endpoint's answers; None: in the folder of `out`.
        dry_run: only log the estimate of the judge's calls.

    Returns:
        The figures; None after a dry run.
    """
    store = judge_store or out.with_name(STORE)
    if dry_run:
        with suppress(DryRun):
            score(recipe=recipe, judge_store=store, dry_run=True)
        return None
    with key_withheld():
        return log_scores(stage, functools.partial(score, recipe=recipe, judge_store=store), recipe, out)


def log_scores(
    stage: str, score: Callable[[], dict[str, Any]], recipe: Settings | None, out: Path
) -> dict[str, Any]:
    """Score, write the figures to `out` and log them; return them."""
    with _mlflow_run(stage, recipe, out) as run:
        metrics = score()
        write_json(out, metrics)
        run.finish(final=metrics)
    return metrics


def _mlflow_run(stage: str, recipe: Settings | None, out: Path) -> Run:
    """Open the MLflow run, with the id of the training run in the folder of the seed; record the machine."""
    write_json(out.parent / ENVIRONMENT, made_on())
    job = current_job()
    seed = out.absolute().parent.parent
    trained = seed / RUN_ID
    return start(
        None,
        out.parent / RUN_ID,
        study=job.study,
        setting=job.setting,
        name=f"{job.setting}/{seed.parent.name}/{seed.name}",
        stage=stage,
        recipe=recipe.model_dump(mode="json") if recipe else {},
        tags={
            "rule": stage,
            "code_sha": code_digest(f"sams.scoring.{stage.removeprefix('score_')}"),
            "upstream_run_id": trained.read_text().strip() if trained.is_file() else "",
        },
        enabled=job.tracking,
    )
