"""The mirror of a metric log in MLflow, and the database it goes to.

`sams.tracking.log` is what jobs use. Here is what talks to MLflow, which is imported late: it takes seconds.
"""

import contextlib
import fcntl
import importlib
import json
import logging
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from sams.runtime.errors import UserError
from sams.runtime.files import whole_file
from sams.runtime.mappings import numbers
from sams.runtime.provenance import commit
from sams.tracking import unsent as mlflow_unsent

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

Status = Literal["FINISHED", "FAILED", "KILLED"]

RESULTS = Path("results")
FLUSH_SECONDS = 5.0  # between two batches; after each failure the pause doubles, up to 16 times
FINISH_SECONDS = 30.0  # longest wait for what is still to be sent when a job ends
MAX_METRICS, MAX_PARAMS, MAX_VALUE = 900, 100, 6000  # within MLflow's limits of one log_batch
MIRRORED = "mirrored_lines"  # tag: lines of the metric log that MLflow has


def tracking_uri(results: Path = RESULTS) -> str:
    """Where runs are kept: MLFLOW_TRACKING_URI, or the sqlite file `mlflow.db` in the results folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{results.resolve() / 'mlflow.db'}"


def database(results: Path = RESULTS) -> Path | None:
    """File of the sqlite database that runs are kept in; None if they are kept on a server."""
    kind, _, path = tracking_uri(results).partition(":///")
    return Path(path) if kind == "sqlite" else None


def run_id(sidecar: Path) -> str | None:
    """Id of the MLflow run whose sidecar this is, for the tag `upstream_run_id`; None if there is none."""
    return sidecar.read_text(encoding="utf-8").strip() or None if sidecar.is_file() else None


class Identity(NamedTuple):
    """What a run is known by."""

    experiment: str
    name: str
    tags: dict[str, str]
    params: dict[str, str]
    recipe: dict[str, Any]


class Ending(NamedTuple):
    """How a run ended."""

    status: Status
    final: dict[str, float]
    artifacts: Sequence[Path]
    when: int


class Mirror:
    """Repeats a metric log in one MLflow run. Only its thread talks to MLflow.

    MLflow appends a metric that it is given twice, so the run carries a tag with the number of lines it has:
    after a crash the lines that a resumed job writes again are not sent again.
    """

    def __init__(
        self, identity: Identity, sidecar: Path, jsonl: Path | None, *, lines: int, resume: bool
    ) -> None:
        # A daemon, because a hanging call must not keep the job alive.
        self._thread = threading.Thread(target=self._follow, name="mlflow-mirror", daemon=True)
        self._contacted = threading.Event()
        self.times: list[int] = [now()] * lines  # ms since the epoch, one per line
        self._identity = identity
        self._sidecar = sidecar
        self._jsonl = jsonl
        self._resume = resume
        self._client: MlflowClient | None = None
        self._run_id = ""
        self._described = self._recipe_sent = False
        self._artifacts: list[Path] = []
        self._mirrored = 0  # lines that MLflow has
        self._position = self._line = 0  # where in the file to go on, in bytes and in lines
        self._pairs_seen = 0
        self._stop = threading.Event()
        self._ending: Ending | None = None
        self._failures = 0
        self._complete = False  # MLflow has all of an ended run

    def start(self, seconds: float) -> None:
        """Begin to follow the log; returns after the first contact, or after so many seconds.

        MLflow is imported here, not in the thread: an import ends, however slow the machine, and two threads
        that import at once can meet each other's half-made modules.
        """
        if self._resume:
            mlflow_unsent.forget(RESULTS, self._identity)  # the log that goes on holds it all
        with contextlib.suppress(ImportError):  # the thread tells
            import_mlflow()
        self._thread.start()
        self._contacted.wait(seconds)

    def _follow(self) -> None:
        while not self._stop.is_set():
            self._attempt()
            self._contacted.set()
            self._stop.wait(FLUSH_SECONDS * 2 ** min(self._failures, 4))
        if not self._attempt():
            time.sleep(1.0)
            if not self._attempt():
                return
        self._complete = True
        assert self._client is not None
        try:
            mlflow_unsent.forget(RESULTS, self._identity)
            mlflow_unsent.send(self._client, RESULTS)
        except Exception:  # of what earlier jobs left, which waits for the next one
            logger.debug("MLflow does not take what earlier jobs left", exc_info=True)

    def end(self, status: Status, final: dict[str, float], artifacts: Sequence[Path]) -> None:
        """Send what is left and close the run, within FINISH_SECONDS; keep what is not taken by then."""
        ending = self._ending = Ending(status, final, artifacts, now())
        self._stop.set()
        self._thread.join(FINISH_SECONDS)
        if self._complete:
            return
        logger.warning(
            "MLflow run %s is incomplete: the server did not take all; the rest is sent by the next job that "
            "reaches it, or by `sams mlflow`",
            self._identity.name,
        )
        closed = self._ending is None  # only files are left
        left = ending._replace(final={}, artifacts=self._artifacts) if closed else ending
        try:
            mlflow_unsent.keep(
                RESULTS,
                self._identity,
                left,
                run_id=self._run_id,
                jsonl=self._jsonl,
                times=self.times,
                recipe_sent=self._recipe_sent,
            )
        except OSError as error:
            logger.warning("it cannot be kept for later: %s", error)

    def send_kept(
        self, client: "MlflowClient", ending: Ending, times: list[int], *, recipe_sent: bool
    ) -> None:
        """Send a run that `mlflow_unsent` has kept, in this thread."""
        self.times, self._ending, self._recipe_sent = times, ending, recipe_sent
        self._send_all(client)

    def _attempt(self) -> bool:
        try:
            if self._client is None:
                self._client = connect()
            self._send_all(self._client)
        except Exception as error:  # whatever MLflow, its database or its server raise
            self._failures += 1
            if self._failures == 1:
                reason = re.sub(r"//[^/@\s]+@", "//", str(error))  # a URI may hold a password
                logger.warning("MLflow takes nothing, metrics wait in their file: %.300s", reason)
            return False
        if self._failures:
            logger.info("MLflow answers again, metrics were sent")
        self._failures = 0
        return True

    def _send_all(self, client: "MlflowClient") -> None:
        if not self._run_id:
            self._run_id = (self._resume and self._continue(client)) or self._create(client)
        if not self._described:
            self._describe(client)
        if self._jsonl:
            self._send_lines(client, self._jsonl)
        if self._ending:
            self._close(client, self._ending)
            self._ending = None
        self._send_artifacts(client)

    def _create(self, client: "MlflowClient") -> str:
        from mlflow.exceptions import MlflowException

        stale = self._kept_run(client)
        if stale is not None and stale.info.status == "RUNNING":
            client.set_terminated(stale.info.run_id, "KILLED")  # SIGKILL leaves a run RUNNING for ever
        experiment = client.get_experiment_by_name(self._identity.experiment)
        if experiment is None:
            # A server chooses its own place for artifacts; MLflow's choice for sqlite is the working folder.
            folder = RESULTS.resolve() / "mlartifacts" / self._identity.experiment
            place = folder.as_uri() if database() else None
            try:
                client.create_experiment(self._identity.experiment, place)
            except MlflowException:  # another job was faster; if not, the next line tells
                logger.debug("experiment exists", exc_info=True)
            experiment = client.get_experiment_by_name(self._identity.experiment)
            assert experiment is not None
        run = client.create_run(experiment.experiment_id, run_name=self._identity.name)
        with whole_file(self._sidecar) as part:
            part.write_text(run.info.run_id + "\n", encoding="utf-8")
        return str(run.info.run_id)

    def _continue(self, client: "MlflowClient") -> str | None:
        run = self._kept_run(client)
        if run is None or run.info.lifecycle_stage != "active":
            return None
        client.update_run(run.info.run_id, status="RUNNING")
        self._mirrored = int(run.data.tags.get(MIRRORED, 0))
        for key in run.data.params:  # MLflow refuses another value; the machine may have changed
            self._identity.params.pop(key, None)
        return str(run.info.run_id)

    def _kept_run(self, client: "MlflowClient") -> Any:
        """The run of the sidecar; None if there is none, or the server knows no such run."""
        from mlflow.exceptions import MlflowException

        kept = run_id(self._sidecar)
        if kept is None:
            return None
        try:
            return client.get_run(kept)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise

    def _describe(self, client: "MlflowClient") -> None:
        from mlflow.entities import Param, RunTag

        tags = {**_commit(), **self._identity.tags}
        client.log_batch(self._run_id, tags=[RunTag(key, str(value)) for key, value in tags.items()])
        params = [Param(key, value[:MAX_VALUE]) for key, value in self._identity.params.items()]
        for first in range(0, len(params), MAX_PARAMS):
            client.log_batch(self._run_id, params=params[first : first + MAX_PARAMS])
        self._described = True

    def _send_lines(self, client: "MlflowClient", jsonl: Path) -> None:
        """Send the whole lines written since the last call, as many at once as MLflow allows."""
        from mlflow.entities import Metric, RunTag

        batch: list[Metric] = []
        line, position = self._line, self._position

        def send() -> None:
            if batch:
                client.log_batch(self._run_id, metrics=batch, tags=[RunTag(MIRRORED, str(line))])
                batch.clear()
            self._line, self._position = line, position

        with jsonl.open("rb") as stream:
            stream.seek(position)
            for text in stream:
                if not text.endswith(b"\n"):
                    break  # being written: next time
                record = json.loads(text)
                self._pairs_seen = record.pop("pairs_seen")
                values = numbers(record)
                if len(batch) + len(values) > MAX_METRICS:
                    send()
                if line >= self._mirrored:
                    when = self.times[line]
                    batch += [Metric(key, value, when, self._pairs_seen) for key, value in values.items()]
                line, position = line + 1, position + len(text)
        send()

    def _close(self, client: "MlflowClient", ending: Ending) -> None:
        from mlflow.entities import Metric

        final = [Metric(key, value, ending.when, self._pairs_seen) for key, value in ending.final.items()]
        client.log_batch(self._run_id, metrics=final)
        client.set_terminated(self._run_id, ending.status, ending.when)
        self._artifacts += ending.artifacts

    def _send_artifacts(self, client: "MlflowClient") -> None:
        """Last of all: a server without a place for files must not cost the metrics."""
        if not self._recipe_sent:
            client.log_dict(self._run_id, self._identity.recipe, "recipe.json")
            self._recipe_sent = True
        while self._artifacts:
            client.log_artifact(self._run_id, str(self._artifacts[0]))
            del self._artifacts[0]


def connect(results: Path = RESULTS) -> "MlflowClient":
    """A client of the place that runs are kept in; a database that is not there yet is made."""
    file = database(results)
    if file is not None and not file.exists():
        prepare_database(results)
    return _client(tracking_uri(results))


def _client(uri: str) -> "MlflowClient":
    import_mlflow()
    from mlflow import MlflowClient

    return MlflowClient(uri)


def import_mlflow() -> None:
    """Import what a client needs, and see that its calls end within seconds and that it keeps quiet."""
    for key, value in (
        ("MLFLOW_HTTP_REQUEST_TIMEOUT", "5"),
        ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0"),  # what fails is tried again by the next batch
        ("MLFLOW_DISABLE_TELEMETRY", "true"),
        ("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true"),
    ):
        os.environ.setdefault(key, value)
    importlib.import_module("mlflow")
    if database() is not None:
        importlib.import_module("mlflow.store.tracking.sqlalchemy_store")
    logging.getLogger("mlflow").setLevel(logging.WARNING)


def prepare_database(results: Path = RESULTS) -> None:
    """Make or upgrade the sqlite database, once before jobs in parallel; again it changes nothing.

    A fresh database appears whole under its name, so that no job meets one in the making. A server is its
    owner's to prepare: nothing is done.

    Raises:
        UserError: the file is no database of MLflow, or of a newer one.
    """
    file = database(results)
    if file is None:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.with_name(f".{file.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if file.exists():
            if not _is_current(file):
                _upgrade(file, told=file)
        else:
            with whole_file(file) as part:
                _upgrade(part, told=file)


def _is_current(file: Path) -> bool:
    """Whether this MLflow can use the database as it is: a client's first call compares the schema."""
    from mlflow.exceptions import MlflowException

    try:
        _client(f"sqlite:///{file}").search_experiments(max_results=1)
    except MlflowException:
        return False
    return True


def _upgrade(file: Path, *, told: Path) -> None:
    # A process of its own: migrations set up logging and keep connections open.
    command = [sys.executable, "-m", "mlflow", "db", "upgrade", f"sqlite:///{file}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        # The last line of the trace may be the statement that failed, over many lines; its error comes before it.
        lines = [line for line in done.stderr.strip().splitlines() if "Error" in line]
        reason = lines[-1] if lines else done.stderr.strip()[-300:]
        raise UserError(
            f"MLflow cannot use this database: {reason[:300]}",
            where=str(told),
            remedy="move it away; the metric logs hold everything it held",
        )


def _commit() -> dict[str, str]:
    """Tags of the code's commit, under the name that MLflow links it by; nothing outside a git checkout."""
    names = {"git_commit": "mlflow.source.git.commit", "git_dirty": "git_dirty"}
    return {names[key]: value for key, value in commit().items()}


def now() -> int:
    return int(time.time() * 1000)
