"""The main table rebuilt from MLflow: proof that its runs carry everything the files do.

No rule reads this: files are the interface, MLflow is the notebook.
"""

from typing import TYPE_CHECKING

from sams.study.study import Study
from sams.tables.main_table import main_table
from sams.tables.results import Cell
from sams.tracking.log import tracking_uri

if TYPE_CHECKING:
    import pandas as pd

# Stage of the run that carries the figures of a metrics file.
BENCHMARKS = {
    "train_sft": "train",
    "train_preference": "train",
    "score_alpaca_eval": "alpaca_eval",
    "score_mt_bench": "mt_bench",
}


def main_from_mlflow(study: Study, uri: str | None = None) -> "pd.DataFrame":
    """The main table of a study, from the final metrics of its newest finished runs.

    Args:
        study: its experiment is `sams-<study>`; of the runs, those of its setting, methods and seeds count.
        uri: tracking server or database; by default the one that the runs go to.
    """
    from mlflow import MlflowClient

    client = MlflowClient(uri or tracking_uri())
    experiment = client.get_experiment_by_name(f"sams-{study.study}")
    cells: dict[Cell, dict[str, float]] = {}
    token = None
    while experiment is not None:
        page = client.search_runs(
            [experiment.experiment_id],
            filter_string=f"tags.setting = '{study.setting}' and attributes.status = 'FINISHED'",
            order_by=["attributes.start_time ASC"],  # the newest comes last and stays
            page_token=token,
        )
        for run in page:
            tags = run.data.tags
            if tags.get("stage") in BENCHMARKS and "method" in tags and "seed" in tags:
                cell = Cell(tags["method"], int(tags["seed"]), BENCHMARKS[tags["stage"]])
                cells[cell] = run.data.metrics
        token = page.token
        if not token:
            break
    return main_table(cells, study.methods, study.seeds)
