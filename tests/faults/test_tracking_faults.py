"""MLflow that is locked, full, down or killed: training continues, and the rest is sent at the next chance."""

import contextlib
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from sams.runtime.files import read_json
from sams.tracking import log as tracking
from sams.tracking import mirror as mlflow_mirror
from tests.conftest import ROOT
from tests.tracking.test_tracking import client, lines, start, steps

UNSENT = Path("results") / mlflow_mirror.UNSENT
LATER: dict[str, Any] = {"name": "world/later/seed0"}


def kept() -> list[Path]:
    return list(UNSENT.glob("*")) if UNSENT.is_dir() else []


def log_ten(run: tracking.Run) -> None:
    """Log ten steps."""
    for step in range(10):
        run.log({"loss": 1.0}, step=step, pairs_seen=step)


@pytest.mark.faults
def test_a_locked_database_costs_no_step_and_gets_all_from_the_next_job(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (workplace / "done").mkdir()
    run = start(workplace, copy_to=workplace / "done")
    id_ = tracking.run_id(workplace / "mlflow_run_id")
    with contextlib.closing(sqlite3.connect("results/mlflow.db", isolation_level=None)) as other:
        other.execute("begin exclusive")
        log_ten(run)  # while the lock is held
        monkeypatch.setattr(mlflow_mirror, "FINISH_SECONDS", 0.5)
        run.finish(final={"test_accuracy": 70.0})
        assert len(lines(workplace)) == 10
        [entry] = kept()
        assert entry.stat().st_size < 10_000, "a marker, not a copy"
        # The mirror's thread ends with a job's process; here it must not find the lock released.
        run._mirror._thread.join(300)  # type: ignore[union-attr]
        other.execute("rollback")
    assert id_ and steps(id_) == []

    monkeypatch.setattr(mlflow_mirror, "FINISH_SECONDS", 30.0)
    for name in ("train.jsonl", "mlflow_run_id"):  # as a training does when it deletes its checkpoints
        (workplace / name).rename(workplace / "done" / name)
    start(workplace / "later", **LATER).finish(final={"a": 1.0})
    assert kept() == []
    assert steps(id_) == list(range(10)), "each point once"
    found = client().get_run(id_)
    assert found.info.status == "FINISHED"
    assert found.data.metrics["test_accuracy"] == 70.0


def test_a_full_artifact_store_costs_no_metric_and_gets_its_files_later(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A file where the folder would be: nothing can be written below it, not even by root.
    Path("results/mlartifacts").write_text("")
    monkeypatch.setattr(mlflow_mirror, "FINISH_SECONDS", 20.0)
    with start(workplace) as run:
        log_ten(run)
    id_ = tracking.run_id(workplace / "mlflow_run_id")
    assert id_ and steps(id_) == list(range(10))
    assert client().get_run(id_).info.status == "FINISHED"
    assert client().list_artifacts(id_) == []
    assert len(kept()) == 1

    Path("results/mlartifacts").unlink()
    start(workplace / "later", **LATER).finish()
    assert [file.path for file in client().list_artifacts(id_)] == ["recipe.json"]
    assert kept() == [] and steps(id_) == list(range(10))
    assert client().get_run(id_).info.status == "FINISHED"


@pytest.mark.faults
def test_a_job_that_goes_on_takes_what_its_killed_start_had_left(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first start is stopped while nothing can be sent; the second sends all, in one run."""
    monkeypatch.setattr(mlflow_mirror, "FINISH_SECONDS", 0.5)
    with contextlib.closing(sqlite3.connect("results/mlflow.db", isolation_level=None)) as other:
        other.execute("begin exclusive")
        run = start(workplace)
        log_ten(run)
        offset = run.offset
        run.finish("KILLED")
        run._mirror._thread.join(300)  # type: ignore[union-attr]
        other.execute("rollback")
    assert len(kept()) == 1
    monkeypatch.setattr(mlflow_mirror, "FINISH_SECONDS", 30.0)
    with start(workplace, resume_at=offset) as run:
        run.log({"loss": 1.0}, step=10, pairs_seen=10)
    id_ = tracking.run_id(workplace / "mlflow_run_id")
    assert id_ and steps(id_) == list(range(11)) and kept() == []
    assert client().get_run(id_).info.status == "FINISHED"
    assert len(client().search_runs([client().get_run(id_).info.experiment_id])) == 1


# --- a real server --------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def pages(folder: Path, port: int) -> Iterator["subprocess.Popen[bytes]"]:
    """`sams mlflow` on a results folder, which is a server as well."""
    with (folder / "server.log").open("ab") as log:
        server = subprocess.Popen(
            [sys.executable, "-c", "from sams.cli import main; main()", "mlflow", "--port", str(port)],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": ""},
            stdout=log,
            stderr=log,
        )
    try:
        deadline = time.monotonic() + 3000
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert server.poll() is None and time.monotonic() < deadline, (folder / "server.log").read_text()
            time.sleep(0.2)
        yield server
    finally:
        server.kill()
        server.wait()


def family(process: "subprocess.Popen[bytes]") -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


@pytest.mark.faults
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_the_pages_end_with_all_their_processes_and_free_their_port(
    number: signal.Signals, workplace: Path
) -> None:
    port = free_port()
    with pages(workplace, port) as server:
        helpers = family(server)
        assert helpers
        server.send_signal(number)
        server.wait(120)
        _, alive = psutil.wait_procs(helpers, timeout=120)
        assert not alive
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", port))


@pytest.mark.faults
def test_a_server_killed_in_a_run_gets_every_point_when_it_is_back(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    monkeypatch.setattr(mlflow_mirror, "FINISH_SECONDS", 10.0)
    with pages(workplace, port) as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
        run = start(workplace)
        log_ten(run)
        id_ = tracking.run_id(workplace / "mlflow_run_id")
        assert id_
        deadline = time.monotonic() + 300
        while steps(id_) != list(range(10)):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        server.kill()
    for step in range(10, 20):
        run.log({"loss": 1.0}, step=step, pairs_seen=step)
    run.finish(final={"test_accuracy": 70.0})
    [entry] = kept()
    assert read_json(entry)["ending"]["status"] == "FINISHED"

    with pages(workplace, port):
        monkeypatch.setattr(mlflow_mirror, "FINISH_SECONDS", 60.0)
        start(workplace / "later", **LATER).finish()
        assert kept() == [] and steps(id_) == list(range(20))
        assert client().get_run(id_).data.metrics["test_accuracy"] == 70.0
