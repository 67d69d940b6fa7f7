"""Selector `small_loss`: the pairs with the highest average margin in all rounds so far.

The small-loss rule of Han et al. 2018, "Co-teaching", arXiv 1804.06872, with one network: networks learn clean labels
before they memorise wrong ones. The margin of one round is noisy, so those of a pair are averaged over the training.
Xia et al. 2021, arXiv 2106.00445, do so with losses, and add a bound of their uncertainty, which is left out here.
"""

import logging
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from sams.scheduling.selectors.base import Selector, Setup, View, top_k

log = logging.getLogger(__name__)


class SmallLoss(Selector):
    """Chooses the k pairs with the highest average margin, after a warm-up.

    The state is 8 bytes for each pair of the data.

    Args:
        setup: inputs of the training job.
        warmup_epochs: number of first epochs in which k pairs are drawn uniformly. `warmup_rounds` of the run are
            rounds on the full batch.
        momentum: m in average <- m average + (1 - m) margin; None for the mean of all margins.
    """

    def __init__(
        self,
        setup: Setup,
        warmup_epochs: Annotated[int, Field(ge=0)] = 1,
        momentum: Annotated[float, Field(ge=0, lt=1)] | None = None,
    ) -> None:
        super().__init__(setup)
        self.warmup_epochs, self.momentum = warmup_epochs, momentum
        rounds = setup.selection
        if rounds is not None and 0 < rounds.rounds * rounds.batch_size <= warmup_epochs * setup.pairs:
            log.warning(
                "selector small_loss: all epochs are warm-up (warmup_epochs), pairs are drawn at random"
            )
        self.average = torch.zeros(setup.pairs)
        self.count = torch.zeros(setup.pairs, dtype=torch.int32)

    def observe(self, view: View) -> dict[str, float | Tensor]:
        """Update the averages of the pairs of this batch."""
        numbers = view.numbers.cpu()
        self.count[numbers] += 1
        share = 1 / self.count[numbers]
        if self.momentum is not None:
            share = torch.where(share == 1, 1.0, 1 - self.momentum)
        self.average[numbers] += share * (view.margins.cpu().float() - self.average[numbers])
        return {"selector/average_margin": self.average[numbers].mean()}

    def choose(self, view: View, k: int) -> Tensor:
        if view.epoch <= self.warmup_epochs:
            return torch.randperm(view.n, generator=self.generator)[:k].sort().values
        return top_k(self.average[view.numbers.cpu()], k)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "average": self.average, "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.average, self.count = state["average"], state["count"]
