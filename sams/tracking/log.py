"""Metric log of a job: a JSONL file, mirrored in MLflow.

The JSONL file is the record: one line per `Run.log`, readable after any crash, cut to the byte offset of the
checkpoint on resume. A background thread sends its lines to MLflow in batches. The file is also the queue: lines
that a server did not accept, because it was down, slow or locked, are sent by the next attempt. A server that is
down or hangs never blocks a training step.

A value that is NaN or infinite is `null` in the file, with its text under the key `non_finite` of the same line
(strict JSON has neither); MLflow omits it.
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
from typing import Any, Self

from sams.runtime.errors import UserError
from sams.runtime.files import canonical_json
from sams.runtime.jsonl import Jsonl, complete_lines
from sams.runtime.mappings import flatten, numbers
from sams.study.settings import benchmark_settings
from sams.tracking.mirror import Identity, Mirror, Status, now, run_id
from sams.tracking.server import prepare_database, tracking_uri

__all__ = [
    "Quiet",
    "Run",
    "Status",
    "flatten",
    "numbers",
    "prepare_database",
    "run_id",
    "start",
    "tracking_uri",
]

STAGES = (
    "train_sft",
    "compute_reference",
    "pretrain_scheduler",
    "train_crossfit",
    "train_preference",
    "generate_answers",
    *(f"score_{name}" for name in benchmark_settings()),
    "make_difficulty",
)
"""Stages that have an MLflow run; the names are those of their rules."""

START_SECONDS = 20.0  # longest wait of `start` for the first answer of MLflow


def start(
    jsonl: Path | None,
    sidecar: Path,
    *,
    study: str,
    setting: str,
    name: str,
    stage: str,
    recipe: dict[str, Any],
    tags: Mapping[str, str],
    derived: Mapping[str, Any] | None = None,
    resume_at: int | None = None,
    copy_to: Path | None = None,
    enabled: bool = True,
) -> "Run":
    """Open the metric log of a job and, unless disabled, its MLflow run. Call it on rank 0 only.

    Args:
        jsonl: metric log; None for a job with final metrics only.
        sidecar: text file for the MLflow run id, in the folder of the checkpoints or of the result.
        study: experiment `sams-<study>`.
        setting: short name of model and data.
        name: results path of the job, `<setting>/<method>/seed<k>`; the run is named `<method>/seed<k>/<stage>`:
            what differs between the runs of a study comes first, since pages cut long names.
        stage: name of the rule.
        recipe: the stage's recipe, logged as flattened params and as the artifact recipe.json.
        tags: base_model, dataset, rule, code_sha, upstream_run_id, mlflow.note.content. Study, setting,
            stage, method and seed (of `name`), recipe_sha, world_size, gpu_model, commit and a default note
            are added.
        derived: values that follow from recipe and machine: accumulation, steps, warm-up steps.
        resume_at: size of `jsonl` at the checkpoint (`Run.offset`): the rest is cut off and the run of the sidecar is
            resumed. None starts both afresh.
        copy_to: folder to which the job copies `jsonl` and `sidecar` at its end, before it deletes them.
        enabled: False writes the JSONL file only, and never imports MLflow.

    Raises:
        UserError: the metric log is shorter than it was at the checkpoint.
    """
    if stage not in STAGES:
        raise ValueError(f"stage {stage!r} is none of {STAGES}")
    log = _open_log(jsonl, resume_at) if jsonl else None
    mirror = None
    if enabled:
        lines = complete_lines(jsonl) if jsonl else []
        described = {
            "study": study,
            "setting": setting,
            "stage": stage,
            **_method_and_seed(name),
            "recipe_sha": hashlib.sha256(canonical_json(recipe).encode()).hexdigest()[:12],
            **_machine(),
            "mlflow.source.type": "LOCAL",
            "mlflow.source.name": os.path.relpath(sys.argv[0]),
            "mlflow.note.content": f"Stage {stage} of {name}, study {study}. Settings: recipe.json.",
            **{key: value for key, value in tags.items() if value},
        }
        if lines:
            described["resumed_at_step"] = str(json.loads(lines[-1])["step"])
        params = {**flatten(recipe), **flatten(derived or {})}
        mirror = Mirror(
            Identity(f"sams-{study}", f"{name.partition('/')[2] or name}/{stage}", described, params, recipe),
            sidecar,
            jsonl,
            lines=len(lines),
            resume=resume_at is not None,
            copy_to=copy_to,
        )
        mirror.start(START_SECONDS)
    return Run(log, mirror)


class Run:
    """Metrics of one job. The end of a `with` block ends the run: as FAILED after an exception, as KILLED after
    KeyboardInterrupt or SystemExit (a request to stop)."""

    def __init__(self, log: Jsonl | None, mirror: "Mirror | None") -> None:
        self._log = log
        self._mirror = mirror
        self._ended = False

    def log(self, metrics: Mapping[str, float], *, step: int, pairs_seen: int) -> None:
        """Append one line. In MLflow the x-axis is `pairs_seen`; `step` becomes a metric."""
        if self._log is None:
            raise ValueError("this run has no metric log: pass `start` a JSONL path")
        if self._mirror:
            self._mirror.times.append(now())  # before the line, which the mirror may read at once
        self._log.append({"step": int(step), "pairs_seen": int(pairs_seen), **_finite(metrics)})

    @property
    def offset(self) -> int:
        """Size of the metric log in bytes, synced to disk: the `resume_at` of a checkpoint."""
        return self._log.sync() if self._log else 0

    def finish(
        self,
        status: Status = "FINISHED",
        final: Mapping[str, Any] | None = None,
        artifacts: Sequence[Path] = (),
    ) -> None:
        """End the run and log the numbers of `final`, such as the content of a metrics.json.

        Returns within FINISH_SECONDS, also without a server. A second call has no effect.
        """
        if self._ended:
            return
        self._ended = True
        if self._log:
            self._log.sync()
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
    """Replaces `Run` on ranks other than 0; has no effect."""

    offset = 0

    def log(self, metrics: Mapping[str, float], *, step: int, pairs_seen: int) -> None:
        """No effect."""

    def finish(
        self,
        status: Status = "FINISHED",
        final: Mapping[str, Any] | None = None,
        artifacts: Sequence[Path] = (),
    ) -> None:
        """No effect."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass


# --- the JSONL file -------------------------------------------------------------------------------


def _open_log(path: Path, resume_at: int | None) -> Jsonl:
    """Open a metric log, cut to the size that it had at the checkpoint."""
    kept = resume_at or 0
    size = path.stat().st_size if path.is_file() else 0
    if size < kept:
        raise UserError(
            f"the metric log has {size} bytes, but had {kept} at the checkpoint",
            where=str(path),
            remedy="restore the log, or delete the checkpoints to start afresh",
        )
    log = Jsonl(path, size=kept)
    log.open()
    return log


def _finite(metrics: Mapping[str, float]) -> dict[str, Any]:
    """Return metrics for strict JSON: NaN and infinities as null, and as text under `non_finite`."""
    values = {key: float(value) for key, value in metrics.items()}
    odd = {key: repr(value) for key, value in values.items() if not math.isfinite(value)}
    kept: dict[str, Any] = {key: None if key in odd else value for key, value in values.items()}
    return {**kept, "non_finite": odd} if odd else kept


def _method_and_seed(name: str) -> dict[str, str]:
    """Method and seed of a results path `<setting>/<method>/seed<k>`; empty for another path."""
    match = re.fullmatch(r"[^/]+/(?P<method>[^/]+)/seed(?P<seed>\d+)", name)
    return match.groupdict() if match else {}


def _machine() -> dict[str, str]:
    """World size and GPU of this job; torch is not imported for it."""
    torch = sys.modules.get("torch")
    on_gpu = torch is not None and torch.cuda.is_available()
    return {
        "world_size": os.environ.get("WORLD_SIZE", "1"),
        "gpu_model": torch.cuda.get_device_name() if torch and on_gpu else "none",
    }
