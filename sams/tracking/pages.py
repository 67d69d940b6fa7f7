"""MLflow's web pages on the runs of a results folder."""

import contextlib
import os
from pathlib import Path

from sams.runtime.errors import UserError
from sams.runtime.processes import end_child, start_child, stop_on_signals
from sams.tracking.mirror import UNSENT, send_unsent
from sams.tracking.server import RESULTS, connect, database, tracking_uri


def open_ui(results: Path = RESULTS, port: int = 5000) -> int:
    """Serve MLflow's web pages on loopback until interrupted; return the exit status of the server.

    Before that, lines that MLflow has not accepted yet are sent from the metric logs.

    Raises:
        UserError: there are no runs yet, or they are on a server.
    """
    file = database(results)
    if file is not None and not file.exists():
        raise UserError("no runs yet", where=str(file), remedy="run a study first")
    if (results / UNSENT).is_dir():
        send_unsent(connect(results), results)
    if file is None:
        raise UserError("the runs are on a server", where="MLFLOW_TRACKING_URI", remedy="open its address")
    stop_on_signals()
    # MLflow's job runners would outlive the server, and nothing here uses them.
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
    arguments = ["mlflow", "ui", "--backend-store-uri", tracking_uri(results), "--host", "127.0.0.1"]
    print(f"MLflow will answer on http://127.0.0.1:{port} in some 20 seconds; Ctrl-C ends it", flush=True)
    server = start_child([*arguments, "--port", str(port), "--workers", "1"])
    with contextlib.ExitStack() as stack:
        stack.callback(end_child, server)
        return server.wait()
