"""MLflow's database or server: its address, client and preparation."""

import fcntl
import importlib
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from sams.runtime.errors import UserError
from sams.runtime.files import whole_file

if TYPE_CHECKING:
    from mlflow import MlflowClient

RESULTS = Path("results")


def tracking_uri(results: Path = RESULTS) -> str:
    """Return MLFLOW_TRACKING_URI, or the address of the sqlite file `mlflow.db` in the results folder."""
    if given := os.environ.get("MLFLOW_TRACKING_URI"):
        return given
    file = str(results.resolve() / "mlflow.db")
    if "?" in file:  # the address would end there
        file = os.path.relpath(file)
    if "?" in file:
        raise UserError("MLflow takes no '?' in a path", where=file, remedy="rename the folder")
    return f"sqlite:///{file}"


def database(results: Path = RESULTS) -> Path | None:
    """Return the file of the sqlite database; None for a server."""
    kind, _, path = tracking_uri(results).partition(":///")
    return Path(path) if kind == "sqlite" else None


def connect(results: Path = RESULTS) -> "MlflowClient":
    """Return a client of the server or database; create the database if there is none."""
    file = database(results)
    if file is not None and not file.exists():
        prepare_database(results)
    return _client(tracking_uri(results))


def _client(uri: str) -> "MlflowClient":
    import_mlflow()
    from mlflow import MlflowClient

    return MlflowClient(uri)


def import_mlflow() -> None:
    """Import what a client needs, with short time-outs and without messages of MLflow's own."""
    for key, value in (
        ("MLFLOW_HTTP_REQUEST_TIMEOUT", "5"),
        ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0"),  # the next batch tries again
        ("MLFLOW_DISABLE_TELEMETRY", "true"),
        ("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true"),
    ):
        os.environ.setdefault(key, value)
    importlib.import_module("mlflow")
    if database() is not None:
        importlib.import_module("mlflow.store.tracking.sqlalchemy_store")
    logging.getLogger("mlflow").setLevel(logging.WARNING)


def prepare_database(results: Path = RESULTS) -> None:
    """Create or upgrade the sqlite database, once before parallel jobs; a second call has no effect.

    A new database is written to another file first, so that no job opens an incomplete one. On a server, nothing is
    done.

    Raises:
        UserError: the file is not an MLflow database, or that of a newer version.
    """
    file = database(results)
    if file is None:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.with_name(f".{file.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if file.exists():
            if not _is_current(file):
                _upgrade(file, named=file)
        else:
            with whole_file(file) as part:
                _upgrade(part, named=file)


def _is_current(file: Path) -> bool:
    """Return whether this version of MLflow can use the database: the first call of a client compares the schema."""
    from mlflow.exceptions import MlflowException

    try:
        _client(f"sqlite:///{file}").search_experiments(max_results=1)
    except MlflowException:
        return False
    return True


def _upgrade(file: Path, *, named: Path) -> None:
    # In a child process: migrations configure logging and keep connections open.
    command = [sys.executable, "-m", "mlflow", "db", "upgrade", f"sqlite:///{file}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        # The traceback may end with the failed statement, over many lines; the error comes before it.
        lines = [line for line in done.stderr.strip().splitlines() if "Error" in line]
        reason = lines[-1] if lines else done.stderr.strip()[-300:]
        raise UserError(
            f"MLflow cannot use this database: {reason[:300]}",
            where=str(named),
            remedy="move it away; the metric logs hold all of its content",
        )
