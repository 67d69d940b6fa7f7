"""The selector that a recipe names, with its scheduler where it has one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel

from sams.policy.model import blocks
from sams.scheduling.pool import ReplayPool
from sams.scheduling.scheduler import Scheduler, context_width
from sams.scheduling.selection import Selection
from sams.scheduling.selectors import (
    All,
    BetaDpoFilter,
    LowMargin,
    Oracle,
    Random,
    Reward,
    Sams,
    Selector,
    TopLoss,
    TopMargin,
)
from sams.training.job import TrainingJob

if TYPE_CHECKING:
    from sams.study.settings import Preference
    from sams.study.settings import Scheduler as SchedulerSettings

REPLAY = "replay"


def build_selector(
    training: Preference,
    settings: SchedulerSettings | None,
    selection: Selection,
    *,
    model: PreTrainedModel,
    job: TrainingJob,
    pretrained: Path | None,
) -> Selector:
    """The selector of a preference recipe."""
    seed = job.recipe["seed"]
    if training.selector == "sams":
        assert settings is not None
        return build_sams(
            settings,
            selection,
            gamma=settings.gamma,
            model=model,
            job=job,
            train_encoder=False,
            pretrained=pretrained,
        )
    if training.selector == "reward":
        assert settings is not None
        return Reward(settings.delta, settings.uncertainty)
    if training.selector == "random":
        return Random(seed)
    if training.selector == "beta_dpo_filter":
        return BetaDpoFilter(seed)
    if training.selector == "oracle":
        return Oracle(seed)
    # `selective` has chosen before the training: what it is given, it takes.
    plain: dict[str, type[Selector]] = {
        "all": All,
        "selective": All,
        "top_margin": TopMargin,
        "low_margin": LowMargin,
        "top_loss": TopLoss,
    }
    return plain[training.selector]()


def build_sams(
    settings: SchedulerSettings,
    selection: Selection,
    *,
    gamma: float,
    model: PreTrainedModel,
    job: TrainingJob,
    train_encoder: bool,
    pretrained: Path | None = None,
) -> Sams:
    """The scheduler of a job, fresh or with the weights that pretraining left, and its replay pool."""
    seed, workers = job.recipe["seed"], job.workers
    scheduler = Scheduler(
        settings,
        layers=len(blocks(model)),
        width=context_width(model.config.hidden_size, settings.merge),
        seed=seed,
        device=workers.device,
        train_encoder=train_encoder,
        pool=ReplayPool(
            job.checkpoints.folder / REPLAY,
            max_arms=min(settings.replay_rounds, selection.rounds) * selection.largest,
            max_bytes=settings.replay_bytes,
            generator=torch.Generator().manual_seed(seed),
            rank=workers.rank,
            world=workers.world,
            exchange=workers.sum_on_cpu,
        ),
    )
    if pretrained is not None:
        scheduler.load_weights(torch.load(pretrained / "scheduler.pt", map_location="cpu", weights_only=True))
    return Sams(scheduler, gamma=gamma, seed=seed, trained=pretrained is not None)


def save_scheduler(selector: Sams, out: Path, job: TrainingJob) -> None:
    """Write the weights that pretraining leaves, as a folder with a manifest."""
    from sams.runtime.files import whole_folder

    if job.workers.is_main:
        with whole_folder(out) as part:
            torch.save(selector.scheduler.weights(), part / "scheduler.pt")
