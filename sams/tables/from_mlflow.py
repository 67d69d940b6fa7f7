"""Rebuild the main table from MLflow, to check that its runs have all figures of the files.

No rule uses this module: jobs exchange files.
"""

from typing import TYPE_CHECKING

from sams.scoring.table import BENCHMARKS
from sams.study.study import Study
from sams.tables.main_table import main_table
from sams.tables.results import Cell
from sams.tracking.log import tracking_uri

if TYPE_CHECKING:
    import pandas as pd

# Metrics file whose figures a stage logs.
METRICS_OF = {"train_sft": "train", "train_preference": "train"} | {
    f"score_{name}": name for name in BENCHMARKS
}


def main_from_mlflow(study: Study, uri: str | None = None) -> "pd.DataFrame":
    """Return the main table of a study, from the final metrics of its newest finished runs.

    Args:
        study: the study; its runs are those of experiment `sams-<study>` with its setting, methods and seeds.
        uri: tracking server or database; by default that of the workflow.
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
            order_by=["attributes.start_time ASC"],  # the newest run overwrites older ones
            page_token=token,
        )
        for run in page:
            tags = run.data.tags
            if tags.get("stage") in METRICS_OF and "method" in tags and "seed" in tags:
                cell = Cell(tags["method"], int(tags["seed"]), METRICS_OF[tags["stage"]])
                cells[cell] = run.data.metrics
        token = page.token
        if not token:
            break
    return main_table(cells, study.methods, study.seeds)
