"""SimPO: rewards per token without a reference, and a target margin."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import logsigmoid

from sams.losses.base import PairLogps, PairLoss


@dataclass(frozen=True, kw_only=True)
class SimPO(PairLoss):
    """SimPO: -log sigmoid(margin of rewards per token - gamma), gamma being `gamma_beta_ratio` * beta.

    Source: Meng et al. 2024, Eq. 4 (the reward) and Eq. 6.
    """

    needs_reference: ClassVar[bool] = False
    per_token: ClassVar[bool] = True
    gamma_beta_ratio: float = 0.5

    def preference(self, logps: PairLogps) -> Tensor:
        return -logsigmoid(self.beta * (self.difference(logps) - self.gamma_beta_ratio))
