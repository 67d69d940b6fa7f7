"""The metric log and its mirror: resume, crashes, unreachable servers, parallel jobs."""

import json
import multiprocessing
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from sams.runtime.errors import UserError
from sams.tables import results
from sams.tracking import log as tracking
from sams.tracking import mirror as mlflow_mirror
from sams.tracking import pages as mlflow_pages
from sams.tracking import server as mlflow_server

# Jobs started here work in other directories, with or without an installed package.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(tracking.__file__).parents[2])}
RECIPE = {"seed": 3, "model": {"path": None, "width": 64}, "training": {"learning_rate": 5e-05, "tags": [1]}}


@cache
def prepared_database() -> bytes:
    """Return a prepared database, made once: migrations take seconds."""
    with TemporaryDirectory() as folder:
        mlflow_server.prepare_database(Path(folder))
        return (Path(folder) / "mlflow.db").read_bytes()


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a database in results/."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(mlflow_mirror, "FLUSH_SECONDS", 0.05)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()
    (tmp_path / "results/mlflow.db").write_bytes(prepared_database())
    return tmp_path


def test_a_question_mark_in_the_path_stays_out_of_the_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = tmp_path / "a?b"
    folder.mkdir()
    monkeypatch.chdir(folder)
    assert mlflow_server.tracking_uri(Path("results")) == "sqlite:///results/mlflow.db"
    assert mlflow_server.database() == Path("results/mlflow.db")
    with pytest.raises(UserError, match=r"what\?/mlflow.db: MLflow takes no '\?' in a path"):
        mlflow_server.tracking_uri(Path("what?"))


def start(folder: Path, **changes: Any) -> tracking.Run:
    settings: dict[str, Any] = {
        "study": "tiny",
        "setting": "world",
        "name": "world/dpo/seed3",
        "stage": "train_preference",
        "recipe": RECIPE,
        "tags": {"upstream_run_id": "abc", "dataset": ""},
    }
    return tracking.start(folder / "train.jsonl", folder / "mlflow_run_id", **{**settings, **changes})


def client() -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking.tracking_uri())


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]


def steps(run_id: str, key: str = "step") -> list[int]:
    return [int(point.value) for point in client().get_metric_history(run_id, key)]


def eventually(condition: Any, seconds: float = 300.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not come true in time"
        time.sleep(0.02)


# --- the file -------------------------------------------------------------------------------------


def test_resume_cuts_the_log_back_to_the_checkpoint(tmp_path: Path) -> None:
    run = start(tmp_path, enabled=False)
    run.log({"loss": 0.75}, step=1, pairs_seen=64)
    kept = run.offset
    run.log({"loss": 0.5}, step=2, pairs_seen=128)
    run.finish("KILLED")
    assert kept == len(json.dumps({"step": 1, "pairs_seen": 64, "loss": 0.75})) + 1

    with start(tmp_path, enabled=False, resume_at=kept) as run:
        assert run.offset == kept
        run.log({"loss": 0.25}, step=2, pairs_seen=128)
    assert [line["loss"] for line in lines(tmp_path)] == [0.75, 0.25]

    with start(tmp_path, enabled=False) as run:
        assert run.offset == 0, "a fresh start begins with an empty log"


def test_log_shorter_than_the_checkpoint_is_told(tmp_path: Path) -> None:
    start(tmp_path, enabled=False).finish()
    with pytest.raises(UserError, match=r"train\.jsonl: the metric log has 0 bytes, but had 12"):
        start(tmp_path, enabled=False, resume_at=12)


def test_nan_and_infinity_leave_strict_json(tmp_path: Path) -> None:
    with start(tmp_path, enabled=False) as run:
        run.log({"loss": float("nan"), "grad_norm": float("-inf"), "x": 1}, step=1, pairs_seen=2)
    text = (tmp_path / "train.jsonl").read_text()
    record = json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert record["loss"] is None and record["x"] == 1.0
    assert record["non_finite"] == {"loss": "nan", "grad_norm": "-inf"}
    assert results.read_log(tmp_path / "train.jsonl")["loss"].isna().all()


def test_kill_leaves_a_readable_log(tmp_path: Path) -> None:
    program = (
        "import itertools, sys; from pathlib import Path; from sams.tracking import log as tracking\n"
        "run = tracking.start(Path(sys.argv[1]), Path('no'), study='s', setting='t', name='t/dpo/seed0',"
        " stage='train_sft', recipe={}, tags={}, enabled=False)\n"
        "for n in itertools.count(): run.log({'loss': n, 'text ' * 50: n}, step=n, pairs_seen=n)\n"
    )
    log = tmp_path / "train.jsonl"
    job = subprocess.Popen([sys.executable, "-c", program, str(log)], env=ENVIRONMENT)
    eventually(lambda: log.exists() and log.stat().st_size > 100_000)
    job.send_signal(signal.SIGKILL)
    job.wait()
    frame = results.read_log(log)
    assert list(frame["step"]) == list(range(len(frame))) and len(frame) > 100


def test_import_of_mlflow_is_not_paid_when_disabled(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from sams.tracking import log as tracking\n"
        "run = tracking.start(None, Path('no'), study='s', setting='t', name='t', stage='train_sft',"
        " recipe={}, tags={}, enabled=False)\n"
        "run.finish(final={'a': 1.0})\n"
        "assert not {'mlflow', 'torch', 'pandas'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], env=ENVIRONMENT, check=True)


def test_other_ranks_do_nothing() -> None:
    with tracking.Quiet() as run:
        run.log({"loss": 1.0}, step=1, pairs_seen=1)
        run.finish(final={"loss": 1.0})
    assert run.offset == 0


def test_numbers_of_a_metrics_file() -> None:
    values = {"a": 1, "b": None, "c": "text", "d": {"math": 2.5, "n": None}, "e": True, "f": float("nan")}
    assert tracking.numbers(values) == {"a": 1.0, "d/math": 2.5}


# --- the mirror -----------------------------------------------------------------------------------


def test_run_carries_settings_curves_and_final_metrics(workplace: Path) -> None:
    with start(workplace, derived={"accumulation": 4}) as run:
        run.log({"loss": 0.5, "bad": float("inf")}, step=1, pairs_seen=64)
        run.log({"loss": 0.25, "eval/loss": 0.75}, step=2, pairs_seen=128)
        (workplace / "extra.txt").write_text("x")
        final = {"test_accuracy": 61.5, "lc_unavailable": "no table", "categories": {"math": 3.0}}
        run.finish(final=final, artifacts=[workplace / "extra.txt"])
    run_id = tracking.run_id(workplace / "mlflow_run_id")
    assert run_id
    found = client().get_run(run_id)
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "dpo/seed3/train_preference", "what differs between runs comes first"
    experiment = client().get_experiment(found.info.experiment_id)
    assert experiment.name == "sams-tiny"
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    curve = [(point.step, point.value) for point in client().get_metric_history(run_id, "loss")]
    assert curve == [(64, 0.5), (128, 0.25)], "the x-axis is pairs seen"
    assert steps(run_id) == [1, 2]
    expected = {"test_accuracy": 61.5, "categories/math": 3.0, "eval/loss": 0.75}
    assert expected.items() <= found.data.metrics.items() and "bad" not in found.data.metrics
    params = {"training.learning_rate": "5e-05", "model.path": "null", "accumulation": "4", "seed": "3"}
    assert params.items() <= found.data.params.items()
    tags = {"method": "dpo", "seed": "3", "setting": "world", "study": "tiny", "upstream_run_id": "abc"}
    assert tags.items() <= found.data.tags.items()
    assert "dataset" not in found.data.tags, "an empty tag says nothing"
    assert {"recipe_sha", "world_size", "gpu_model", "mlflow.note.content"} <= set(found.data.tags)
    assert {item.path for item in client().list_artifacts(run_id)} == {"recipe.json", "extra.txt"}
    assert (workplace / "results/mlartifacts").is_dir() and not (workplace / "mlruns").exists()


def test_columns_of_dataset_source_and_model_are_filled(workplace: Path) -> None:
    tags = {"dataset": "tiny/world"}
    with start(workplace, tags=tags, derived={"upstream.tokens": "0123456789abcdef"}):
        pass
    trained = tracking.run_id(workplace / "mlflow_run_id")
    found = client().get_run(trained)
    (data,) = found.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("tiny/world", "01234567")
    assert found.data.tags["mlflow.source.name"] == os.path.relpath(sys.argv[0])
    (output,) = found.outputs.model_outputs
    model = client().get_logged_model(output.model_id)
    assert (model.name, str(model.status), model.source_run_id) == ("dpo-seed3", "READY", trained)

    with start(workplace, stage="score_alpaca_eval", tags={"upstream_run_id": trained}):
        pass
    scored = client().get_run(tracking.run_id(workplace / "mlflow_run_id"))
    assert [model.model_id for model in scored.inputs.model_inputs] == [output.model_id]

    links = mlflow_pages.links_to_runs(workplace / "results", "http://127.0.0.1:5000")
    number = found.info.experiment_id
    assert list(links) == ["tiny"]
    assert links["tiny"].startswith(
        f"http://127.0.0.1:5000/#/experiments/{number}/runs?workflowType=machine_learning&searchFilter=tags.stage"
    )


def test_a_server_without_these_columns_gets_the_run(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    def unknown(*_: Any, **__: Any) -> Any:
        raise MlflowException("API not found")

    for name in ("log_inputs", "log_outputs", "create_logged_model"):
        monkeypatch.setattr(MlflowClient, name, unknown)
    with start(workplace, tags={"dataset": "tiny/world"}, derived={"upstream.tokens": "01"}) as run:
        run.log({"loss": 1.0}, step=1, pairs_seen=1)
    run_id = tracking.run_id(workplace / "mlflow_run_id")
    assert run_id and steps(run_id) == [1]
    assert client().get_run(run_id).info.status == "FINISHED"


def test_resumed_run_keeps_its_id_and_repeats_no_point(workplace: Path) -> None:
    run = start(workplace)
    run_id = tracking.run_id(workplace / "mlflow_run_id")
    assert run_id, "the id is known once `start` returns"
    for step in (1, 2):
        run.log({"loss": float(step)}, step=step, pairs_seen=step)
    kept = run.offset
    for step in (3, 4):
        run.log({"loss": float(step)}, step=step, pairs_seen=step)
    eventually(lambda: steps(run_id) == [1, 2, 3, 4])
    run.finish("KILLED")
    assert client().get_run(run_id).info.status == "KILLED"

    changed_machine = {"derived": {"accumulation": 8}, "tags": {"world_size": "4"}}
    with start(workplace, resume_at=kept, **changed_machine) as run:
        for step in (3, 4, 5):
            run.log({"loss": float(step)}, step=step, pairs_seen=step)
    assert tracking.run_id(workplace / "mlflow_run_id") == run_id
    assert steps(run_id) == [1, 2, 3, 4, 5]
    resumed = client().get_run(run_id)
    assert resumed.info.status == "FINISHED"
    assert {"resumed_at_step": "2", "world_size": "4"}.items() <= resumed.data.tags.items()


def test_fresh_start_leaves_no_run_running(workplace: Path) -> None:
    start(workplace)  # never finished: what SIGKILL leaves behind
    stale = tracking.run_id(workplace / "mlflow_run_id")
    start(workplace).finish()
    assert stale and client().get_run(stale).info.status == "KILLED"
    assert tracking.run_id(workplace / "mlflow_run_id") != stale


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError, "FAILED"), (SystemExit, "KILLED"), (KeyboardInterrupt, "KILLED")]
)
def test_how_a_block_ends_is_the_status(workplace: Path, error: type[BaseException], status: str) -> None:
    with pytest.raises(error), start(workplace):
        raise error
    run_id = tracking.run_id(workplace / "mlflow_run_id")
    assert run_id and client().get_run(run_id).info.status == status


def test_points_travel_in_batches(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    sizes: list[int] = []
    log_batch = MlflowClient.log_batch

    def counted(self: Any, run_id: str, metrics: Any = (), **others: Any) -> Any:
        sizes.append(len(metrics))
        return log_batch(self, run_id, metrics=list(metrics), **others)

    monkeypatch.setattr(MlflowClient, "log_batch", counted)
    monkeypatch.setattr(mlflow_mirror, "FLUSH_SECONDS", 60.0)
    with start(workplace) as run:
        for step in range(1000):
            run.log({"loss": 1.0}, step=step, pairs_seen=step)
    assert sum(sizes) == 2000 and max(sizes) <= 1000
    assert len([size for size in sizes if size]) == 3


def test_what_a_server_missed_is_sent_when_it_is_back(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from mlflow import MlflowClient

    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError("database is locked")

    with monkeypatch.context() as broken, start(workplace) as run:
        broken.setattr(MlflowClient, "log_batch", refuse)
        for step in range(5):
            run.log({"loss": 1.0}, step=step, pairs_seen=step)
        eventually(lambda: "database is locked" in caplog.text)
        broken.undo()
    run_id = tracking.run_id(workplace / "mlflow_run_id")
    assert run_id and steps(run_id) == [0, 1, 2, 3, 4]
    assert caplog.text.count("MLflow does not answer") == 1, "a dead server is told once"


@pytest.mark.parametrize("answers", [False, True], ids=["refused", "hanging"])
def test_unreachable_server_stops_no_job_and_costs_no_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Port 9 refuses; a socket that is listened to and never read hangs. MLflow's own time-outs take minutes."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setattr(mlflow_mirror, "FINISH_SECONDS", 5.0)
    monkeypatch.chdir(tmp_path)

    def job() -> None:
        run = start(tmp_path)
        for step in range(100):
            run.log({"loss": 1.0}, step=step, pairs_seen=step)
        run.finish(final={"a": 1.0})

    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        port = silent.getsockname()[1] if answers else 9
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:secret@127.0.0.1:{port}")
        thread = threading.Thread(target=job, daemon=True)
        thread.start()
        thread.join(300)
        assert not thread.is_alive(), "the job waits for the server"
    assert len(lines(tmp_path)) == 100
    assert caplog.text.count("MLflow does not answer") == 1 and "is incomplete" in caplog.text
    assert "secret" not in caplog.text


def log_twenty(name: str, together: Any) -> None:
    """One of several jobs that use the database at the same moment."""
    together.wait()
    settings = {"study": "new", "name": f"world/dpo/seed{name}"}
    with start(Path(name), **settings) as run:
        for step in range(20):
            run.log({"loss": 1.0}, step=step, pairs_seen=step)


def test_parallel_jobs_share_a_prepared_database(workplace: Path) -> None:
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401 - so that the jobs start at once

    processes = multiprocessing.get_context("fork")
    together = processes.Barrier(4)
    jobs = [processes.Process(target=log_twenty, args=(str(n), together)) for n in range(4)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(600)
    assert [job.exitcode for job in jobs] == [0] * 4
    ids = [tracking.run_id(workplace / str(n) / "mlflow_run_id") for n in range(4)]
    assert len(set(ids)) == 4
    for run_id in ids:
        assert run_id and steps(run_id) == list(range(20))
        assert client().get_run(run_id).info.status == "FINISHED"


def test_preparing_a_database_again_changes_nothing(workplace: Path) -> None:
    start(workplace).finish(final={"a": 1.0})
    run_id = tracking.run_id(workplace / "mlflow_run_id")
    tracking.prepare_database()
    assert run_id and client().get_run(run_id).data.metrics == {"a": 1.0}
    assert sorted(path.name for path in (workplace / "results").glob("mlflow.db*")) == ["mlflow.db"]


@pytest.mark.slow
def test_database_of_a_newer_mlflow_is_told(workplace: Path) -> None:
    with sqlite3.connect(workplace / "results/mlflow.db") as database:
        database.execute("update alembic_version set version_num = 'fromthefuture'")
    with pytest.raises(UserError, match=r"mlflow\.db: MLflow cannot use this database.*move it away"):
        tracking.prepare_database()


def test_user_interface_without_runs_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UserError, match="no runs yet; run a study first"):
        mlflow_pages.open_ui(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="MLFLOW_TRACKING_URI: the runs are on a server"):
        mlflow_pages.open_ui(tmp_path)


@pytest.mark.slow
def test_pages_answer_and_the_link_names_the_runs(workplace: Path) -> None:
    from urllib.request import urlopen

    start(workplace).finish()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", "from sams.cli import main; main()", "mlflow", "--port", str(port)]
    pages = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
    try:
        assert pages.stdout
        assert pages.stdout.readline() == "MLflow starts, in some 20 seconds\n"
        study, _, link = pages.stdout.readline().strip().partition(": ")
        assert (study, link.split("#")[0]) == ("tiny", f"http://127.0.0.1:{port}/")
        assert b"MLflow" in urlopen(link.split("#")[0], timeout=60).read()
        assert pages.stdout.readline() == "Ctrl-C ends the server\n"
        servers = Path(f"/proc/{pages.pid}/task/{pages.pid}/children").read_text().split()
        surroundings = Path(f"/proc/{servers[0]}/environ").read_bytes().split(b"\0")
        assert b"MLFLOW_DISABLE_TELEMETRY=true" in surroundings
    finally:
        pages.send_signal(signal.SIGINT)
        said, _ = pages.communicate(timeout=60)
    assert said == "", "the server prints nothing of its own"
