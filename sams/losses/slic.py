"""SLiC-HF: a hinge on log-probs with a likelihood term."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sams.losses.base import PairLogps, PairLoss


@dataclass(frozen=True, kw_only=True)
class SLiCHF(PairLoss):
    """SLiC-HF: max(0, delta - difference of log-probs) - nll_weight * log-prob of the chosen, all summed.

    Source: Zhao et al. 2023, Eq. 1, the chosen response being the target of its second term. `beta` scales
    the reported rewards only.
    """

    needs_reference: ClassVar[bool] = False
    delta: float = 1.0
    nll_weight: float = 0.1

    def preference(self, logps: PairLogps) -> Tensor:
        return torch.relu(self.delta - self.difference(logps)) - self.nll_weight * logps.chosen
