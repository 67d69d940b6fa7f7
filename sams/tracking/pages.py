"""MLflow's pages over the runs of a results folder."""

import contextlib
import os
from pathlib import Path

from sams.runtime.errors import UserError
from sams.runtime.processes import end_child, start_child, stop_on_signals
from sams.tracking import unsent as mlflow_unsent
from sams.tracking.mirror import RESULTS, connect, database, tracking_uri


def open_ui(results: Path = RESULTS, port: int = 5000) -> int:
    """Serve MLflow's pages on this machine's loopback until interrupted; return the server's exit status.

    What MLflow did not take by the end of earlier jobs is sent first.

    Raises:
        UserError: there are no runs yet, or they are on a server of their own.
    """
    file = database(results)
    if file is not None and not file.exists():
        raise UserError("no runs yet", where=str(file), remedy="run a study first")
    if (results / mlflow_unsent.FOLDER).is_dir():
        mlflow_unsent.send(connect(results), results)
    if file is None:
        raise UserError("the runs are on a server", where="MLFLOW_TRACKING_URI", remedy="open its address")
    stop_on_signals()
    # MLflow's helpers for jobs of its own would outlive it; nothing here uses them.
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
    arguments = ["mlflow", "ui", "--backend-store-uri", tracking_uri(results), "--host", "127.0.0.1"]
    print(f"MLflow will answer on http://127.0.0.1:{port} in some 20 seconds; Ctrl-C ends it", flush=True)
    server = start_child([*arguments, "--port", str(port), "--workers", "1"])
    with contextlib.ExitStack() as stack:
        stack.callback(end_child, server)
        return server.wait()
