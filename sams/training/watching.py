"""Train a scheduler on the SFT loss, before preference training (SamS Eq. 12 to 14).

Stage `pretrain_scheduler` uses it with a frozen policy; stage `train_sft` uses it while the policy learns, if its
recipe has `watching`. SFT without `watching` does not depend on this module: `sams.training.sft` imports it by name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sams.policy.policy import bare
from sams.scheduling.selection import Selection
from sams.scheduling.selectors.base import View
from sams.training.batches import Batches
from sams.training.job import TrainingJob
from sams.training.loop import Selecting
from sams.training.selector import build_selector, save_scheduler
from sams.training.tasks.base import Items, Selectable
from sams.training.tasks.sft import SftTask

if TYPE_CHECKING:
    from pathlib import Path

    from sams.study.settings import Scheduler


class WatchedTask(SftTask, Selectable):
    """Supervised responses as a scheduler sees them.

    The per-token log-prob stands for the margin and the *summed* log-prob for the uncertainty. With one quantity
    for both, the two terms of Eq. 13 would cancel to a constant: hence `uncertainty: mean` has no effect here, and
    the view has no token counts.
    """

    def view(self, items: list[int], values: Items, contexts: Tensor | None) -> View:
        return View(
            ids=[self.ids[item] for item in items],
            numbers=torch.tensor(items),
            losses=values["loss"],
            margins=-values["loss"],
            chosen_logps=values["logps/chosen"],
            contexts=contexts,
        )


class Watching(Selecting):
    """A scheduler in training: chooses arms from each batch and learns from their rewards."""

    def __init__(
        self,
        settings: Scheduler,
        task: Selectable,
        batches: Batches,
        *,
        ratio: float,
        policy: nn.Module,
        job: TrainingJob,
    ) -> None:
        selection = Selection(batches.size, batches.steps, (ratio,))
        model = bare(policy).model
        selector = build_selector(
            "sams", settings, selection, task=task, model=model, job=job, train_encoder=True
        )
        super().__init__(selector, task, selection, batches.per_epoch)

    def save(self, out: Path, job: TrainingJob) -> None:
        """Write the scheduler's weights as a folder with a manifest."""
        save_scheduler(self.selector, out, job)
