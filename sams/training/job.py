"""A job of a training stage: its processes, digests of inputs, checkpoints, metric log and results."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import time
import traceback
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import torch
from torch import nn

from sams.policy.dropout import config_to_save
from sams.policy.policy import bare
from sams.policy.stored import files_of
from sams.policy.weights import digest_of_model
from sams.runtime.code import digest_of_code
from sams.runtime.errors import UserError
from sams.runtime.faults import is_out_of_memory
from sams.runtime.files import digest_of, write_json
from sams.runtime.processes import WORKER
from sams.runtime.provenance import ENVIRONMENT, made_on
from sams.training.checkpoints import Checkpoints
from sams.training.distribution import Workers
from sams.training.gates import TrainingFailure
from sams.training.tuning import Tuning

if TYPE_CHECKING:
    from sams.study.recipes import Job
    from sams.study.settings import Settings, Training

log = logging.getLogger(__name__)

LOG = "train.jsonl"
COSTS = "costs.jsonl"
METRICS = "train_metrics.json"
RUN_ID = "mlflow_run_id"
FAILED = "FAILED"
POSITIONS = "positions"
SECTIONS = {"train_sft": "sft", "pretrain_scheduler": "pretrain"}
"""Section of the config of a stage's settings, where these are not those of a method."""


class TrainingJob:
    """One job of a training stage.

    Args:
        stage: name of the stage.
        recipe: the stage's recipe.
        job: study, launch settings, tracking.
        out: folder of the results.
        checkpoints: folder of the checkpoints.
        upstream: results of other jobs that this job reads, by name: folders or files.
        part: name of this job among those of one method and seed.

    Raises:
        UserError: an upstream result is missing or damaged, or an earlier run of the same job has failed for good.
    """

    def __init__(
        self,
        stage: str,
        recipe: Settings,
        job: Job,
        *,
        out: Path,
        checkpoints: Path,
        upstream: dict[str, Path],
        part: str = "",
    ) -> None:
        from sams.study.code import code_of_job
        from sams.study.sources import digests_of_sources

        self.stage = stage
        self.part = part
        self.settings: Any = recipe
        self.recipe = recipe.model_dump(mode="json")
        self.job = job
        self.out = out
        self.upstream = {name: digest_of(path) for name, path in upstream.items()}
        self.upstream_runs = {name: text for name, path in upstream.items() if (text := run_id_of(path))}
        self.code = code_of_job(stage, recipe)
        launch = job.launch
        self.workers = Workers(
            device=launch.device,
            strategy=launch.strategy,
            precision=self.recipe["model"]["precision"],
            threads=launch.threads_per_process,
            shard_over=launch.shard_over,
            timeout_minutes=launch.timeout_minutes,
            deterministic=launch.deterministic,
        )
        self.run: Any = None
        self.tuning: Tuning | None = None
        self.sources: dict[str, str] = self.workers.gather(
            digests_of_sources(recipe) if self.workers.is_main else {}
        )[0]
        inputs = {
            "recipe": without_micro_batches(self.recipe),
            "upstream": self.upstream,
            "sources": self.sources,
            "part": part,
        }
        self.checkpoints = Checkpoints(
            checkpoints, self.workers, inputs=inputs, code=self.code, asynchronous=launch.async_checkpoints
        )
        failed = self.checkpoints.folder / FAILED
        if failed.is_file():
            raise UserError(
                f"this run has failed before, and would fail again: {failed.read_text(encoding='utf-8')}",
                remedy=f"change what it names, or delete {failed} to try once more",
            )

    @cached_property
    def base(self) -> str | None:
        """Digest of the model whose weights are frozen next to adapters, on rank 0; None for a fresh model."""
        if "model" in self.upstream:
            return self.upstream["model"]
        model = self.settings.model
        if model.path is None:
            return None
        return digest_of_model(files_of(model.path, model.revision)) if self.workers.is_main else ""

    def publish(self, policy: nn.Module, training: Training, name: str = "trained") -> None:
        """Write the trained weights as the folder `name` of the results."""
        self.workers.watch.at("writing the weights")
        lora = None if training.lora is None else {**training.lora.model_dump(), "base": self.base}
        self.checkpoints.publish(
            policy, self.out / name, config=config_to_save(bare(policy).model), lora=lora
        )

    def open_run(self, offset: int | None) -> Any:
        """Start or resume the metric log; ranks other than 0 get one that writes nothing."""
        from sams.tracking import log as tracking

        if not self.workers.is_main:
            self.run = tracking.Quiet()
            return self.run
        method = self.recipe.get("method", self.out.parent.name)
        self.run = tracking.start(
            self.checkpoints.folder / LOG,
            self.checkpoints.folder / RUN_ID,
            study=self.job.study,
            setting=self.job.setting,
            name=f"{self.job.setting}/{method}/seed{self.recipe['seed']}",
            stage=self.stage,
            recipe=self.recipe,
            tags={
                "rule": self.stage,
                "method": method,
                "part": self.part,
                "dataset": f"{self.job.study}/{self.job.setting}",
                "seed": str(self.recipe["seed"]),
                "base_model": str(
                    self.recipe["model"]["path"] or self.recipe["model"]["architecture"]["model_type"]
                ),
                "world_size": str(self.workers.world),
                "gpu_model": torch.cuda.get_device_name() if self.workers.device.type == "cuda" else "none",
                "code_sha": digest_of_code(self.code),
                "upstream_run_id": ",".join(sorted(set(self.upstream_runs.values()))),
            },
            derived={f"upstream.{name}": digest for name, digest in self.upstream.items()},
            resume_at=offset,
            copy_to=self.out,
            enabled=self.job.tracking,
        )
        return self.run

    def __enter__(self) -> TrainingJob:
        self.workers.watch.at("loading")
        self.workers.begin_watch(self.checkpoints.folder / POSITIONS)
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        """Close the metric log: as FAILED after an exception, as KILLED after a request to stop.

        A failure that would repeat leaves a marker, at which the next start ends at once.
        """
        if error is not None:
            try:
                self.checkpoints.wait()
            except BaseException as lost:
                log.warning("the last checkpoint is not complete: %r", lost)
        self.workers.watch.stop()
        if isinstance(error, TrainingFailure) and self.workers.is_main:
            (self.checkpoints.folder / FAILED).write_text(str(error), encoding="utf-8")
        if self.run is not None:
            self.run.__exit__(kind, error, trace)
        if error is not None and is_out_of_memory(error):
            raise self._smaller(error) from error

    def _smaller(self, error: BaseException) -> UserError:
        """Return the error for a lack of memory, whose remedy is half the micro-batch."""
        name, of_tuning = "micro_batch_size", "micro_batch"
        if any(frame.name == "score" for frame in traceback.extract_tb(error.__traceback__)):
            name, of_tuning = "scoring_micro_batch_size", "scoring_micro_batch"
        now = getattr(self.tuning or self.settings.training, of_tuning if self.tuning else name)
        group = SECTIONS.get(self.stage) or f"method_settings.{self.recipe['method']}"
        remedy = f"set {group}.{name}: {1 if now == 'auto' else now // 2}"
        if now == 1:
            remedy = (
                "set model.activation_checkpointing: true, launch.strategy: fsdp2, or lower data.max_length"
            )
        steps = self.checkpoints.steps()
        kept = f"the checkpoint of step {steps[-1]} is kept" if steps else "there is no checkpoint yet"
        return UserError(
            f"out of memory ({self.workers.device.type}, rank {self.workers.rank}) with {name} {now}; {kept}",
            where=self.stage,
            remedy=f"{remedy}, and start the same command again",
        )

    def finish(self, metrics: dict[str, Any]) -> None:
        """Write the results next to the weights, close the metric log, delete the checkpoints."""
        metrics = {
            **metrics,
            "peak_memory_mb": self.workers.peak_memory_mb(),
            "world_size": self.workers.world,
        }
        self.workers.watch.at("writing the results")
        self.run.finish(final=metrics)
        if self.workers.is_main:
            folder = self.checkpoints.folder
            for name in (LOG, COSTS, RUN_ID):
                if (folder / name).is_file():
                    shutil.copyfile(folder / name, self.out / name)
            write_json(self.out / ENVIRONMENT, made_on())
            write_json(
                self.out / "recipe.json",
                {
                    "recipe": self.recipe,
                    "tuning": None if self.tuning is None else vars(self.tuning),
                    "code": self.code,
                    "upstream": self.upstream,
                    "sources": self.sources,
                },
            )
            write_json(self.out / METRICS, metrics)
        self.workers.watch.stop()  # its files are in the folder of the checkpoints
        self.workers.barrier()
        self.checkpoints.remove()
        self.workers.leave()


def without_micro_batches(recipe: dict[str, Any]) -> dict[str, Any]:
    """Return a recipe without micro-batch sizes, which change results by rounding only and may change on a resume."""
    sizes = ("micro_batch_size", "scoring_micro_batch_size")
    training = {name: value for name, value in recipe["training"].items() if name not in sizes}
    return recipe | {"training": training}


def seconds_since_start() -> float:
    """Return the seconds since the start of torchrun, or of this process without torchrun."""
    here = psutil.Process()
    started = (here.parent() or here) if WORKER in os.environ else here
    return time.time() - started.create_time()


def run_id_of(path: Path) -> str:
    """Return the id of the MLflow run of an upstream result; empty without one."""
    for folder in (path, path.parent):
        with contextlib.suppress(OSError):
            return (folder / RUN_ID).read_text().strip()
    return ""


def mean_and_error(values: torch.Tensor) -> tuple[float, float]:
    """Return the mean of [n] values, and its standard error."""
    exact = values.double()
    return exact.mean().item(), exact.std().item() / len(exact) ** 0.5
