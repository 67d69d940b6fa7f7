"""RRHF: a ranking loss on log-probs per token, and a likelihood term."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sams.losses.base import PairLogps, PairLoss


@dataclass(frozen=True, kw_only=True)
class RRHF(PairLoss):
    """RRHF: max(0, -difference of log-probs per token) - nll_weight * summed log-prob of the chosen.

    Source: Yuan et al. 2023, Eq. 1 to 4. `beta` scales the reported rewards only.
    """

    needs_reference: ClassVar[bool] = False
    per_token: ClassVar[bool] = True
    nll_weight: float = 1.0

    def preference(self, logps: PairLogps) -> Tensor:
        return torch.relu(-self.difference(logps)) - self.nll_weight * logps.chosen
