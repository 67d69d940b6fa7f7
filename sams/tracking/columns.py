"""Columns of MLflow's table of runs that no metric, param or tag fills: Dataset and Models."""

import json
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

logger = logging.getLogger(__name__)


def log_dataset(client: "MlflowClient", run_id: str, name: str, digest: str, context: str) -> None:
    """Fill the column Dataset. A server older than MLflow 2.4 has none."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    # The page has no room for all sixteen digits.
    dataset = Dataset(name, digest[:8], source_type="local", source=json.dumps({"tokens": digest}))
    _try(
        lambda: client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", context)])])
    )


def log_model(client: "MlflowClient", run_id: str, name: str, step: int) -> None:
    """Fill the column Models of a run that has trained one; its weights stay in the results folder.

    A server older than MLflow 3.0 has none.
    """
    from mlflow.entities import LoggedModelOutput

    def create() -> None:
        run = client.get_run(run_id)
        if not _models(run):
            model = client.create_logged_model(run.info.experiment_id, name, run_id, model_type="policy")
            client.finalize_logged_model(model.model_id, "READY")
            client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step)])

    _try(create)


def log_scored_model(client: "MlflowClient", run_id: str, trained_run: str) -> None:
    """Fill the column Models of a run that scores the model of another run."""
    from mlflow.entities import LoggedModelInput

    def refer() -> None:
        models = [LoggedModelInput(model) for model in _models(client.get_run(trained_run))]
        if models:
            client.log_inputs(run_id, models=models)

    _try(refer)


def _models(run: "Run") -> list[str]:
    return [output.model_id for output in (run.outputs.model_outputs if run.outputs else [])]


def _try(call: Callable[[], None]) -> None:
    """Call a function that an older server may not have; a run is complete without it."""
    from mlflow.exceptions import MlflowException

    try:
        call()
    except MlflowException:
        logger.debug("MLflow does not fill a column", exc_info=True)
