"""The MLflow run of a scoring job."""

from pathlib import Path

from sams.runtime.code import code_digest
from sams.runtime.files import write_json
from sams.runtime.provenance import ENVIRONMENT, made_on
from sams.study.recipes import ScoreRecipe, current_job
from sams.tracking.log import Run, Stage, start

RUN_ID = "mlflow_run_id"


def scoring_run(stage: Stage, recipe: ScoreRecipe | None, out: Path) -> Run:
    """Open the run of a scoring job, to be used as a context manager, and say beside its result what it is made on.

    Args:
        stage: score_alpaca_eval or score_mt_bench, also the module's name.
        recipe: who judges.
        out: <method>/seed<k>/<benchmark>/metrics.json. The training run it builds on is found two levels up.
    """
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
