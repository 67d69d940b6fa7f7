"""Mirror of a metric log in MLflow. Jobs use `sams.tracking.log`.

A run that MLflow has not accepted completely by the end of its job leaves a marker in `results/mlflow_unsent/`. The
end of any later job that reaches MLflow, and `sams mlflow`, send the rest from the metric log in the results; the
tag `mirrored_lines` of the run says which lines MLflow has.
"""

import contextlib
import fcntl
import hashlib
import json
import logging
import re
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from sams.runtime.files import whole_file, write_json
from sams.runtime.mappings import numbers
from sams.runtime.provenance import commit
from sams.tracking.columns import log_dataset, log_model, log_scored_model
from sams.tracking.server import RESULTS, connect, database, import_mlflow

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

Status = Literal["FINISHED", "FAILED", "KILLED"]

FLUSH_SECONDS = 5.0  # between two batches; doubled after each failure, up to 16 times
FINISH_SECONDS = 30.0  # longest wait at the end of a job for the lines that MLflow does not have yet
MAX_METRICS, MAX_PARAMS, MAX_VALUE = 900, 100, 6000  # within the limits of one log_batch
KIND = {
    "mlflow.experimentKind": "custom_model_development"
}  # without it, the pages ask for it or show traces
MIRRORED = "mirrored_lines"  # tag: lines of the metric log that MLflow has
UNSENT = "mlflow_unsent"  # folder of the markers


def run_id(sidecar: Path) -> str | None:
    """Return the MLflow run id in a sidecar; None without one."""
    return sidecar.read_text(encoding="utf-8").strip() or None if sidecar.is_file() else None


class Identity(NamedTuple):
    """Names and settings of a run."""

    experiment: str
    name: str
    tags: dict[str, str]
    params: dict[str, str]
    recipe: dict[str, Any]


class Ending(NamedTuple):
    """How a run ended, and when, in ms since the epoch."""

    status: Status
    final: dict[str, float]
    artifacts: Sequence[Path]
    when: int


class Mirror:
    """Sends a metric log to one MLflow run, from its own thread.

    MLflow appends a metric that it receives twice. A tag of the run therefore holds the number of lines that MLflow
    has: lines that a resumed job writes again are not sent again.

    Args:
        identity: names and settings of the run.
        sidecar: file for the run id.
        jsonl: metric log; None for a job with final metrics only.
        lines: lines of the metric log at the start.
        resume: continue the run of the sidecar.
        copy_to: folder to which the job copies metric log and sidecar at its end.
    """

    def __init__(
        self,
        identity: Identity,
        sidecar: Path,
        jsonl: Path | None,
        *,
        lines: int,
        resume: bool,
        copy_to: Path | None = None,
    ) -> None:
        # A daemon: a call that hangs must not keep the job alive.
        self._thread = threading.Thread(target=self._follow, name="mlflow-mirror", daemon=True)
        self._contacted = threading.Event()
        self.times: list[int] = [now()] * lines  # ms since the epoch, one per line
        self._identity = identity
        self._sidecar = sidecar
        self._jsonl = jsonl
        self._resume = resume
        self._copy_to = copy_to
        self._client: MlflowClient | None = None
        self._run_id = ""
        self._known_run = ""  # run id of a marker
        self._described = self._recipe_sent = False
        self._artifacts: list[Path] = []
        self._mirrored = 0  # lines that MLflow has
        self._position = self._line = 0  # bytes and lines of the file that have been read
        self._pairs_seen = 0
        self._stop = threading.Event()
        self._ending: Ending | None = None
        self._failures = 0
        self._complete = False  # MLflow has the complete run

    def start(self, seconds: float) -> None:
        """Start the thread; return after the first answer of MLflow, or after so many seconds.

        MLflow is imported here, because two threads that import at once can see partially initialised modules.
        """
        self._marker().unlink(missing_ok=True)  # this start sends the log itself
        with contextlib.suppress(ImportError):  # the thread reports it
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
            self._marker().unlink(missing_ok=True)  # in case `end` has not waited long enough
            send_unsent(self._client)
        except Exception:  # an earlier job's run, which waits for the next job
            logger.debug("MLflow does not accept an unsent run of an earlier job", exc_info=True)

    def end(self, status: Status, final: dict[str, float], artifacts: Sequence[Path]) -> None:
        """Send the rest and close the run, within FINISH_SECONDS; write a marker if MLflow has not accepted all."""
        ending = self._ending = Ending(status, final, artifacts, now())
        self._stop.set()
        self._thread.join(FINISH_SECONDS)
        if self._complete:
            return
        logger.warning(
            "MLflow run %s is incomplete: MLflow did not accept all; the next job that reaches it, or `sams mlflow`, "
            "sends the rest",
            self._identity.name,
        )
        if self._ending is None:  # closed; only files are missing
            ending = ending._replace(final={}, artifacts=self._artifacts)
        try:
            self._write_marker(ending)
        except OSError as error:
            logger.warning("the rest cannot be sent later: %s", error)

    def _marker(self) -> Path:
        """Return the path of this job's marker, the same in each start."""
        tags = self._identity.tags
        text = "/".join(
            [self._identity.experiment, tags.get("setting", ""), self._identity.name, tags.get("part", "")]
        )
        return RESULTS / UNSENT / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"

    def _write_marker(self, ending: Ending) -> None:
        def relative(path: Path) -> str:  # so that a moved results folder keeps its markers
            path, results = path.resolve(), RESULTS.resolve()
            return str(path.relative_to(results) if path.is_relative_to(results) else path)

        folders = [self._sidecar.parent, *([self._copy_to] if self._copy_to else [])]
        content = {
            "identity": self._identity._asdict(),
            "ending": ending._asdict() | {"artifacts": [relative(path) for path in ending.artifacts]},
            "run_id": self._run_id,
            "resume": self._resume or bool(self._run_id),
            "sidecars": [relative(folder / self._sidecar.name) for folder in folders],
            "log": self._jsonl.name if self._jsonl else None,
            "log_size": self._jsonl.stat().st_size if self._jsonl and self._jsonl.is_file() else 0,
            "times": self.times,
            "recipe_sent": self._recipe_sent,
        }
        self._marker().parent.mkdir(parents=True, exist_ok=True)
        write_json(self._marker(), content)

    @classmethod
    def of_marker(cls, content: dict[str, Any], results: Path) -> "Mirror":
        """Return the mirror of an ended run that MLflow has not accepted completely."""
        sidecars = [results / path for path in content["sidecars"]]
        log = content["log"] and next(
            (
                path
                for sidecar in sidecars
                if (path := sidecar.with_name(content["log"])).is_file()
                and path.stat().st_size == content["log_size"]  # otherwise of another start
            ),
            None,
        )
        sidecar = log.with_name(sidecars[0].name) if log else sidecars[0]
        mirror = cls(Identity(**content["identity"]), sidecar, log or None, lines=0, resume=content["resume"])
        ending = content["ending"]
        mirror._ending = Ending(**ending | {"artifacts": [results / path for path in ending["artifacts"]]})
        mirror._known_run = content["run_id"]
        mirror.times, mirror._recipe_sent = content["times"], content["recipe_sent"]
        return mirror

    def _attempt(self) -> bool:
        try:
            if self._client is None:
                self._client = connect()
            self.send(self._client)
        except Exception as error:  # of MLflow, its database or its server
            self._failures += 1
            if self._failures == 1:
                reason = re.sub(r"//[^/@\s]+@", "//", str(error))  # a URI may hold a password
                logger.warning("MLflow does not answer; metrics are in their file: %.300s", reason)
            return False
        if self._failures:
            logger.info("MLflow answers again; metrics have been sent")
        self._failures = 0
        return True

    def send(self, client: "MlflowClient") -> None:
        """Send all that MLflow does not have yet."""
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
            client.set_terminated(stale.info.run_id, "KILLED")  # of a start that SIGKILL ended
        experiment = client.get_experiment_by_name(self._identity.experiment)
        if experiment is None:
            # A server chooses the location of artifacts itself; for sqlite MLflow would choose the working folder.
            folder = RESULTS.resolve() / "mlartifacts" / self._identity.experiment
            location = folder.as_uri() if database() else None
            try:
                client.create_experiment(self._identity.experiment, location, KIND)
            except MlflowException:  # another job has created it; otherwise the next line raises
                logger.debug("experiment exists", exc_info=True)
            experiment = client.get_experiment_by_name(self._identity.experiment)
            assert experiment is not None
        run = client.create_run(experiment.experiment_id, run_name=self._identity.name)
        if self._sidecar.parent.is_dir():  # an unsent run may have lost its folder
            with whole_file(self._sidecar) as part:
                part.write_text(run.info.run_id + "\n", encoding="utf-8")
        return str(run.info.run_id)

    def _continue(self, client: "MlflowClient") -> str | None:
        run = self._kept_run(client)
        if run is None or run.info.lifecycle_stage != "active":
            return None
        client.update_run(run.info.run_id, status="RUNNING")
        self._mirrored = int(run.data.tags.get(MIRRORED, 0))
        for key in run.data.params:  # MLflow refuses to change a value, and the machine may have changed
            self._identity.params.pop(key, None)
        return str(run.info.run_id)

    def _kept_run(self, client: "MlflowClient") -> Any:
        """Return the run of the marker or the sidecar; None without one, or if the server has no such run."""
        from mlflow.exceptions import MlflowException

        kept = self._known_run or run_id(self._sidecar)
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
        stage, digest = tags.get("stage", ""), self._identity.params.get("upstream.tokens")
        if digest:
            log_dataset(client, self._run_id, tags["dataset"], digest, "training")
        if stage.startswith("score_") and "upstream_run_id" in tags:
            log_scored_model(client, self._run_id, tags["upstream_run_id"])
        self._described = True

    def _send_lines(self, client: "MlflowClient", jsonl: Path) -> None:
        """Send the complete lines since the last call, in batches as large as MLflow allows."""
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
                    break  # incomplete: the next call reads it
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
        tags = self._identity.tags
        if ending.status == "FINISHED" and tags.get("stage") in ("train_sft", "train_preference"):
            log_model(client, self._run_id, f"{tags['method']}-seed{tags['seed']}", self._pairs_seen)
        client.set_terminated(self._run_id, ending.status, ending.when)
        self._artifacts += ending.artifacts

    def _send_artifacts(self, client: "MlflowClient") -> None:
        """Send files, after all metrics: a server may refuse files only."""
        if not self._recipe_sent:
            client.log_dict(self._run_id, self._identity.recipe, "recipe.json")
            self._recipe_sent = True
        while self._artifacts:
            client.log_artifact(self._run_id, str(self._artifacts[0]))
            del self._artifacts[0]


def send_unsent(client: "MlflowClient", results: Path = RESULTS) -> int:
    """Send the rest of earlier runs that have a marker; return how many are complete now.

    Raises:
        Exception: an error of MLflow; the remaining markers wait for the next call.
    """
    sent = 0
    for marker in sorted((results / UNSENT).glob("*.json")):
        with contextlib.suppress(FileNotFoundError, BlockingIOError), marker.open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)  # another job may be sending it
            Mirror.of_marker(json.load(stream), results).send(client)
            marker.unlink()
            sent += 1
    if sent:
        logger.info("sent the rest of %d earlier runs to MLflow", sent)
    return sent


def _commit() -> dict[str, str]:
    """Tags with the commit of the code, under MLflow's name for it, or its version and digest."""
    names = {"git_commit": "mlflow.source.git.commit"}
    return {names.get(key, key): value for key, value in commit().items()}


def now() -> int:
    """Return ms since the epoch."""
    return int(time.time() * 1000)
