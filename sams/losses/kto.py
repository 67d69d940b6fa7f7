"""KTO on pairs."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sams.losses.base import PairLogps, PairLoss


@dataclass(frozen=True, kw_only=True)
class KTO(PairLoss):
    """KTO on pairs: the mean of the losses of one desirable and one undesirable example.

    A half is weight * (1 - sigmoid(+-(reward - beta * KL))). Source: Ethayarajh et al. 2024, Eq. 7.
    """

    needs_kl: ClassVar[bool] = True
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0

    def preference(self, logps: PairLogps) -> Tensor:
        assert logps.kl is not None
        chosen, rejected = self.scores(logps)
        # 1 - sigmoid(x) = sigmoid(-x), which keeps its digits where the reward is large.
        desirable = torch.sigmoid(self.beta * (logps.kl - chosen))
        undesirable = torch.sigmoid(self.beta * (rejected - logps.kl))
        return (self.desirable_weight * desirable + self.undesirable_weight * undesirable) / 2
