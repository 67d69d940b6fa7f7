"""What the training stages share around the loop: processes, upstream digests, metric log, results."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import torch
from torch import nn

from sams.policy.policy import bare
from sams.runtime.errors import UserError
from sams.runtime.faults import is_out_of_memory
from sams.runtime.files import MANIFEST, canonical_json, manifest_digest, refuse_damage, sha256_of, write_json
from sams.runtime.processes import WORKER
from sams.runtime.provenance import ENVIRONMENT, code_digest, made_on
from sams.training.checkpoints import Checkpoints, fingerprint
from sams.training.distribution import Workers
from sams.training.gates import TrainingFailure
from sams.training.tuning import Tuning

if TYPE_CHECKING:
    from sams.study.recipes import Job
    from sams.study.settings import Settings, Training
    from sams.tracking.log import Stage

LOG = "train.jsonl"
COSTS = "costs.jsonl"
METRICS = "train_metrics.json"
RUN_ID = "mlflow_run_id"
FAILED = "FAILED"
POSITIONS = "positions"
SECTIONS = {"train_sft": "sft", "pretrain_scheduler": "pretrain"}
"""Settings of the stages that have a group of their own; the others' are their method's."""


class TrainingJob:
    """One job of a training rule: its processes, what it builds on, where its results go.

    Args:
        stage: name of the rule.
        module: the entry point, whose code belongs to the fingerprint.
        recipe: the stage's recipe.
        job: study, launch settings, tracking.
        out: folder of the results.
        checkpoints: folder of the checkpoints.
        upstream: name -> folder or file that the job reads.
        part: which of several jobs of one method and seed this is.

    Raises:
        UserError: when something upstream is missing.
    """

    def __init__(
        self,
        stage: Stage,
        module: str,
        recipe: Settings,
        job: Job,
        *,
        out: Path,
        checkpoints: Path,
        upstream: dict[str, Path],
        part: str = "",
    ) -> None:
        self.stage = stage
        self.part = part
        self.settings: Any = recipe
        self.recipe = recipe.model_dump(mode="json")
        self.job = job
        self.out = out
        self.upstream = {name: digest_of(path) for name, path in upstream.items()}
        self.upstream_runs = {name: text for name, path in upstream.items() if (text := run_id_of(path))}
        self.code = code_digest(module)
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
        start = "" if "model" in upstream else self.start_digest(self.recipe["model"]["path"])
        settings = canonical_json(without_micro_batches(self.recipe))
        run = fingerprint(settings, self.code, canonical_json(self.upstream), part, start)
        self.checkpoints = Checkpoints(checkpoints, run, self.workers)
        failed = self.checkpoints.folder / FAILED
        if failed.is_file():
            raise UserError(
                f"this run has failed before, and would fail again: {failed.read_text(encoding='utf-8')}",
                remedy=f"change what it names, or delete {failed} to try once more",
            )

    def start_digest(self, model: str | None) -> str:
        """What a local model's config and weights are, by their content, which rank 0 reads for all."""
        return self.workers.gather(digest_of_start(model) if self.workers.is_main else "")[0]

    def publish(self, policy: nn.Module, training: Training, name: str = "trained") -> None:
        """Write the trained weights as a folder of this name in the results."""
        self.workers.watch.at("writing the weights")
        lora = None if training.lora is None else training.lora.model_dump()
        self.checkpoints.publish(policy, self.out / name, config=bare(policy).model.config, lora=lora)

    def open_run(self, offset: int | None) -> Any:
        """Start or resume the metric log; processes other than rank 0 get a silent one."""
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
                "dataset": f"{self.job.study}/{self.job.setting}, tokens {self.upstream['tokens']}",
                "seed": str(self.recipe["seed"]),
                "base_model": str(
                    self.recipe["model"]["path"] or self.recipe["model"]["architecture"]["model_type"]
                ),
                "world_size": str(self.workers.world),
                "gpu_model": torch.cuda.get_device_name() if self.workers.device.type == "cuda" else "none",
                "code_sha": self.code,
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
        """Close the metric log: FAILED after an exception, KILLED after a request to stop.

        A failure that would come again leaves a marker, at which a retry ends at once.
        """
        self.workers.watch.stop()
        if isinstance(error, TrainingFailure) and self.workers.is_main:
            (self.checkpoints.folder / FAILED).write_text(str(error), encoding="utf-8")
        if self.run is not None:
            self.run.__exit__(kind, error, trace)
        if error is not None and is_out_of_memory(error):
            raise self._smaller(error) from error

    def _smaller(self, error: BaseException) -> UserError:
        """What to set where memory ran out: half of the micro-batch that did not fit."""
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
        """Write the results beside the weights, close the run, and remove the checkpoints."""
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
                },
            )
            write_json(self.out / METRICS, metrics)
        self.workers.watch.stop()  # its positions lie among the checkpoints
        self.workers.barrier()
        self.checkpoints.remove()
        self.workers.leave()


def without_micro_batches(recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe without what changes its result by rounding alone: a run goes on with smaller micro-batches."""
    sizes = ("micro_batch_size", "scoring_micro_batch_size")
    training = {name: value for name, value in recipe["training"].items() if name not in sizes}
    return recipe | {"training": training}


def seconds_since_start() -> float:
    """Seconds since this job was started: since torchrun was, or without it this process."""
    here = psutil.Process()
    started = (here.parent() or here) if WORKER in os.environ else here
    return time.time() - started.create_time()


def digest_of(path: Path) -> str:
    """Digest of an upstream file, or of a folder sealed by a manifest, whose files are what was written.

    Rank 0 alone reads them for that: it ends the others when they are not.

    Raises:
        UserError: when it is not there, or damaged.
    """
    if path.is_dir() and (path / MANIFEST).is_file():
        if os.environ.get("RANK", "0") == "0":
            refuse_damage(path)
        return manifest_digest(path)
    if path.is_file():
        return sha256_of(path)[:16]
    raise UserError(
        "no such file, or a folder without its manifest", where=str(path), remedy="run its rule first"
    )


def digest_of_start(model: str | None) -> str:
    """Sixteen hex digits for config and weights of a local model; empty for one of a hub or a fresh one."""
    if model is None or not Path(model).is_dir():
        return ""
    files = sorted(
        file for pattern in ("config.json", "*.safetensors", "*.bin") for file in Path(model).glob(pattern)
    )
    return fingerprint(*(f"{file.name} {sha256_of(file)}" for file in files))


def run_id_of(path: Path) -> str:
    """MLflow run that made an upstream result; empty when it had none."""
    for folder in (path, path.parent):
        with contextlib.suppress(OSError):
            return (folder / RUN_ID).read_text().strip()
    return ""


def mean_and_error(values: torch.Tensor) -> tuple[float, float]:
    """Mean of [n] values and its standard error over items."""
    exact = values.double()
    return exact.mean().item(), exact.std().item() / len(exact) ** 0.5
