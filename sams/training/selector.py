"""Build the selector of a training job, and save a pretrained scheduler."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel

from sams.policy.blocks import blocks
from sams.runtime.errors import UserError
from sams.runtime.files import whole_folder
from sams.scheduling.selection import Selection
from sams.scheduling.selectors.base import Selector, Setup
from sams.scheduling.selectors.table import find, settings_of
from sams.training.job import TrainingJob
from sams.training.tasks.base import Selectable

if TYPE_CHECKING:
    from sams.study.settings import Scheduler as SchedulerSettings

REPLAY = "replay"
WEIGHTS = "scheduler.pt"


def build_selector(
    name: str,
    settings: SchedulerSettings | None,
    selection: Selection,
    *,
    task: Selectable,
    own: dict[str, Any] | None = None,
    beta: float = 0.1,
    model: PreTrainedModel,
    job: TrainingJob,
    train_encoder: bool = False,
    pretrained: Path | None = None,
) -> Selector:
    """Build a selector.

    Args:
        name: name of the selector, or its path.
        settings: settings of the scheduler; None for selectors that do not read them.
        selection: the rounds of the run.
        task: the pairs of the data.
        own: settings of the selector.
        beta: the loss's inverse temperature.
        model: the policy.
        job: the training job.
        train_encoder: whether the scheduler's encoder is trained, as in pretraining.
        pretrained: folder with pretrained weights of the scheduler; None starts with fresh networks.

    Raises:
        UserError: there is no such selector or setting, or the data does not have a column that it needs.
    """
    workers = job.workers
    setup = Setup(
        seed=job.recipe["seed"],
        pairs=len(task.ids),
        beta=beta,
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
    selector = find(name).load().build(setup, **settings_of(name, own or {}))
    known = getattr(task, "columns", {})
    for column in selector.columns:
        if column not in known:
            raise UserError(
                f"selector {name} needs the column '{column}', and the data keeps {', '.join(known) or 'none'}",
                where="data.keep_columns",
                remedy=f"add {column}",
            )
    return selector


def save_scheduler(selector: Any, out: Path, job: TrainingJob) -> None:
    """Write the weights of a pretrained scheduler, as a folder with a manifest."""
    if job.workers.is_main:
        with whole_folder(out) as part:
            torch.save(selector.scheduler.weights(), part / WEIGHTS)
