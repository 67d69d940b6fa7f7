"""MLflow's web pages on the runs of a results folder."""

import contextlib
import os
import subprocess
import time
import urllib.request
from pathlib import Path
from urllib.parse import quote

from sams.runtime.errors import UserError
from sams.runtime.processes import end_child, start_child, stop_on_signals
from sams.tracking.mirror import KIND, UNSENT, send_unsent
from sams.tracking.server import RESULTS, connect, database, tracking_uri

LONGEST_START = 120.0  # seconds
LOG = "mlflow_server.log"  # what the server prints, in the results folder


def open_ui(results: Path = RESULTS, port: int = 5000) -> int:
    """Serve MLflow's web pages on loopback until interrupted; return the exit status of the server.

    Before that, lines that MLflow has not accepted yet are sent from the metric logs. Once the server answers, a
    link to the runs of each study is printed: the first page of MLflow shows none.

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
    links = links_to_runs(results, f"http://127.0.0.1:{port}")
    stop_on_signals()
    # MLflow's job runners would outlive the server, and nothing here uses them.
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
    store = tracking_uri(results)
    arguments = ["mlflow", "ui", "--backend-store-uri", store, "--registry-store-uri", store]
    arguments += ["--host", "127.0.0.1"]
    arguments += ["--port", str(port), "--workers", "1", "--uvicorn-opts", "--log-level warning"]
    print("MLflow starts, in some 20 seconds", flush=True)
    log = results / LOG
    with contextlib.ExitStack() as stack:
        server = start_child(arguments, stdout=stack.enter_context(log.open("wb")), stderr=subprocess.STDOUT)
        stack.callback(end_child, server)
        if not answers(f"http://127.0.0.1:{port}/health", server):
            raise UserError(
                f"MLflow does not answer on port {port}: {last_line(log)}",
                where=str(log),
                remedy="give another port with --port",
            )
        for study, link in links.items():
            print(f"{study}: {link}")
        print("Ctrl-C ends the server", flush=True)
        return server.wait()


def links_to_runs(results: Path, address: str) -> dict[str, str]:
    """Return the address of the page with the runs of each study, the newest study first.

    Of a study with preference methods, the page shows the training runs of these. Experiments of earlier versions
    get the tag with which MLflow shows runs instead of traces.
    """
    client = connect(results)
    links = {}
    for experiment in client.search_experiments(order_by=["last_update_time DESC"]):
        if not experiment.name.startswith("sams-"):
            continue
        for key, value in KIND.items():
            if experiment.tags.get(key) != value:
                client.set_experiment_tag(experiment.experiment_id, key, value)
        stage = "tags.stage = 'train_preference'"
        some = client.search_runs([experiment.experiment_id], stage, max_results=1)
        only = f"&searchFilter={quote(stage)}" if some else ""
        links[experiment.name.removeprefix("sams-")] = (
            f"{address}/#/experiments/{experiment.experiment_id}/runs?workflowType=machine_learning{only}"
        )
    return links


def last_line(log: Path) -> str:
    """Return the last line of a log."""
    return (log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["no message"])[-1]


def answers(address: str, server: "subprocess.Popen[bytes]") -> bool:
    """Wait until the server answers; return whether it does before it ends."""
    end = time.monotonic() + LONGEST_START
    while server.poll() is None and time.monotonic() < end:
        with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=1):
            return True
        time.sleep(0.2)
    return False
