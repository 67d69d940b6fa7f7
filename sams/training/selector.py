"""Build the selector of a training job, and save a pretrained scheduler."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel

from sams.policy.blocks import blocks
from sams.runtime.files import whole_folder
from sams.scheduling.selection import Selection
from sams.scheduling.selectors.base import Selector, Setup
from sams.scheduling.selectors.table import SELECTORS
from sams.training.job import TrainingJob

if TYPE_CHECKING:
    from sams.study.settings import Scheduler as SchedulerSettings

REPLAY = "replay"
WEIGHTS = "scheduler.pt"


def build_selector(
    name: str,
    settings: SchedulerSettings | None,
    selection: Selection,
    *,
    model: PreTrainedModel,
    job: TrainingJob,
    train_encoder: bool = False,
    pretrained: Path | None = None,
) -> Selector:
    """Build a selector.

    Args:
        name: name of the selector in `SELECTORS`.
        settings: settings of the scheduler; None for selectors that do not read them.
        selection: the rounds of the run.
        model: the policy.
        job: the training job.
        train_encoder: whether the scheduler's encoder is trained, as in pretraining.
        pretrained: folder with pretrained weights of the scheduler; None starts with fresh networks.
    """
    workers = job.workers
    setup = Setup(
        seed=job.recipe["seed"],
        selection=selection,
        scheduler=settings,
        weights=None if pretrained is None else pretrained / WEIGHTS,
        train_encoder=train_encoder,
        layers=len(blocks(model)),
        width=model.config.get_text_config().hidden_size,
        device=workers.device,
        folder=job.checkpoints.folder / REPLAY,
        rank=workers.rank,
        world=workers.world,
        sum=workers.sum_on_cpu,
    )
    return SELECTORS[name].load().build(setup)


def save_scheduler(selector: Any, out: Path, job: TrainingJob) -> None:
    """Write the weights of a pretrained scheduler, as a folder with a manifest."""
    if job.workers.is_main:
        with whole_folder(out) as part:
            torch.save(selector.scheduler.weights(), part / WEIGHTS)
