"""Metrics of a job: a JSONL file first, MLflow as its mirror.

The JSONL file is the record: one line per `Run.log`, whole after any crash, cut back to the checkpoint's byte
offset on resume. A background thread follows the file and repeats its lines in MLflow, in batches. So the
file is also the queue: what a server did not take, because it was down, slow or locked, is sent by the next
attempt, and neither a dead nor a hanging server stops a training step or holds it up.

A value that is NaN or infinite is `null` in the file, with its text under the key `non_finite` of the same
line (strict JSON has neither); MLflow leaves it out.
"""

import hashlib
import json
import math
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, Self, get_args

from sams.runtime.errors import UserError
from sams.runtime.files import canonical_json
from sams.runtime.mappings import flatten, numbers
from sams.tracking.mirror import (
    Identity,
    Mirror,
    Status,
    now,
    prepare_database,
    run_id,
    tracking_uri,
)

__all__ = [
    "Quiet",
    "Run",
    "Stage",
    "Status",
    "flatten",
    "numbers",
    "prepare_database",
    "run_id",
    "start",
    "tracking_uri",
]

# Stages with a run of their own, named as their recipes and rules are.
Stage = Literal[
    "train_sft",
    "compute_reference",
    "pretrain_scheduler",
    "train_crossfit",
    "train_preference",
    "generate_answers",
    "score_alpaca_eval",
    "score_mt_bench",
    "make_difficulty",
]

START_SECONDS = 20.0  # longest wait of `start` for the first contact with MLflow


def start(
    jsonl: Path | None,
    sidecar: Path,
    *,
    study: str,
    setting: str,
    name: str,
    stage: Stage,
    recipe: dict[str, Any],
    tags: Mapping[str, str],
    derived: Mapping[str, Any] | None = None,
    resume_at: int | None = None,
    enabled: bool = True,
) -> "Run":
    """Open the metric log of a job and, unless disabled, its MLflow run. Call it on rank 0 only.

    Args:
        jsonl: metric log; None for a job that has final metrics only.
        sidecar: text file that keeps the MLflow run id, beside the checkpoints or the result.
        study: experiment `sams-<study>`.
        setting: short name of model and data.
        name: results path of the job, `<setting>/<method>/seed<k>`; the run is called `<name>/<stage>`.
        stage: what the job does.
        recipe: the stage's recipe, logged as flattened params and as the artifact recipe.json.
        tags: base_model, dataset, rule, code_sha, upstream_run_id, mlflow.note.content. Study, setting,
            stage, method and seed (of `name`), recipe_sha, world_size, gpu_model, commit and a default note
            are added.
        derived: values that follow from recipe and machine: accumulation, steps, warm-up steps.
        resume_at: bytes of `jsonl` that belong to the checkpoint (`Run.offset` when it was taken): the rest
            is cut off and the run of the sidecar goes on. None starts both afresh.
        enabled: False writes the JSONL file only, and never imports MLflow.

    Raises:
        UserError: the metric log is shorter than the checkpoint says.
    """
    if stage not in get_args(Stage):
        raise ValueError(f"stage {stage!r} is none of {get_args(Stage)}")
    kept = _open_log(jsonl, resume_at) if jsonl else None
    mirror = None
    if enabled:
        resumed_at = kept.last.get("step") if kept and resume_at is not None else None
        described = {
            "study": study,
            "setting": setting,
            "stage": stage,
            **_place(name),
            "recipe_sha": hashlib.sha256(canonical_json(recipe).encode()).hexdigest()[:12],
            **_machine(),
            "mlflow.note.content": f"Stage {stage} of {name}, study {study}. Settings: recipe.json.",
            **{key: value for key, value in tags.items() if value},
        }
        if resumed_at is not None:
            described["resumed_at_step"] = str(resumed_at)
        params = {**flatten(recipe), **flatten(derived or {})}
        mirror = Mirror(
            Identity(f"sams-{study}", f"{name}/{stage}", described, params, recipe),
            sidecar,
            jsonl,
            lines=kept.lines if kept else 0,
            resume=resume_at is not None,
        )
        mirror.start(START_SECONDS)
    return Run(kept, mirror)


class Run:
    """The metrics of one job. As a context manager it ends with the block: an exception makes it FAILED,
    KeyboardInterrupt and SystemExit (someone asked the job to stop) KILLED."""

    def __init__(self, log: "_Log | None", mirror: "Mirror | None") -> None:
        self._log = log
        self._mirror = mirror
        self._ended = False

    def log(self, metrics: Mapping[str, float], *, step: int, pairs_seen: int) -> None:
        """Append one line. In MLflow the x-axis is `pairs_seen`; `step` becomes a metric."""
        if self._log is None:
            raise ValueError("this run has no metric log: give `start` a JSONL path")
        if self._mirror:
            self._mirror.times.append(now())  # before the line, so that the mirror finds a time for it
        self._log.append({"step": int(step), "pairs_seen": int(pairs_seen), **_finite(metrics)})

    @property
    def offset(self) -> int:
        """Bytes of the metric log so far, synced to disk: what a checkpoint keeps as `resume_at`."""
        return self._log.sync() if self._log else 0

    def finish(
        self,
        status: Status = "FINISHED",
        final: Mapping[str, Any] | None = None,
        artifacts: Sequence[Path] = (),
    ) -> None:
        """End the run: `final` may be the content of a metrics.json, of which the numbers are logged.

        Returns within FINISH_SECONDS, also without a server. A second call does nothing.
        """
        if self._ended:
            return
        self._ended = True
        if self._log:
            self._log.close()
        if self._mirror:
            self._mirror.end(status, numbers(final or {}), artifacts)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.finish("FINISHED")
        else:
            self.finish("FAILED" if issubclass(kind, Exception) else "KILLED")


class Quiet:
    """What the other ranks hold in place of a `Run`: does nothing."""

    offset = 0

    def log(self, metrics: Mapping[str, float], *, step: int, pairs_seen: int) -> None:
        """Nothing."""

    def finish(
        self,
        status: Status = "FINISHED",
        final: Mapping[str, Any] | None = None,
        artifacts: Sequence[Path] = (),
    ) -> None:
        """Nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass


# --- the JSONL file -------------------------------------------------------------------------------


class _Log:
    """An open JSONL file: `lines` and `last` (line) are what it held when it was opened."""

    def __init__(self, stream: IO[bytes], lines: int, last: dict[str, Any]) -> None:
        self._stream = stream
        self.lines = lines
        self.last = last

    def append(self, record: dict[str, Any]) -> None:
        line = json.dumps(record, ensure_ascii=False, allow_nan=False)
        self._stream.write(line.encode() + b"\n")
        self._stream.flush()  # a killed process loses nothing; `sync` is for a machine that loses power

    def sync(self) -> int:
        os.fsync(self._stream.fileno())
        return self._stream.tell()

    def close(self) -> None:
        self.sync()
        self._stream.close()


def _open_log(path: Path, resume_at: int | None) -> _Log:
    path.parent.mkdir(parents=True, exist_ok=True)
    stream = path.open("a+b")
    size = stream.tell()
    if size < (resume_at or 0):
        raise UserError(
            f"the metric log has {size} bytes, the checkpoint was taken at {resume_at}",
            where=str(path),
            remedy="put the log back, or delete the checkpoints to start afresh",
        )
    stream.truncate(resume_at or 0)
    stream.seek(0)
    lines = stream.readlines()
    return _Log(stream, len(lines), json.loads(lines[-1]) if lines else {})


def _finite(metrics: Mapping[str, float]) -> dict[str, Any]:
    """Floats that strict JSON can hold; what it cannot is null, and told under `non_finite`."""
    values = {key: float(value) for key, value in metrics.items()}
    odd = {key: repr(value) for key, value in values.items() if not math.isfinite(value)}
    kept: dict[str, Any] = {key: None if key in odd else value for key, value in values.items()}
    return {**kept, "non_finite": odd} if odd else kept


def _place(name: str) -> dict[str, str]:
    """Method and seed of a results path `<setting>/<method>/seed<k>`; nothing for another path."""
    found = re.fullmatch(r"[^/]+/(?P<method>[^/]+)/seed(?P<seed>\d+)", name)
    return found.groupdict() if found else {}


def _machine() -> dict[str, str]:
    """World size and GPU of this job; torch is asked only where the job uses it."""
    torch = sys.modules.get("torch")
    on_gpu = torch is not None and torch.cuda.is_available()
    return {
        "world_size": os.environ.get("WORLD_SIZE", "1"),
        "gpu_model": torch.cuda.get_device_name() if torch and on_gpu else "none",
    }
