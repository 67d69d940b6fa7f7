"""IPO: a squared distance of the log-ratios from a target margin."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from sams.losses.base import PairLogps, PairLoss


@dataclass(frozen=True, kw_only=True)
class IPO(PairLoss):
    """IPO on log-ratios per token: (difference - 1 / (2 beta))^2, beta being the paper's tau.

    Source: Azar et al. 2024, Eq. 17, normalised by length as in the authors' runs and TRL's `ipo`. The
    rewards are per token too; TRL reports them summed.
    """

    per_token: ClassVar[bool] = True

    def preference(self, logps: PairLogps) -> Tensor:
        return (self.difference(logps) - 1 / (2 * self.beta)) ** 2


@dataclass(frozen=True, kw_only=True)
class IPOSum(IPO):
    """IPO on summed log-ratios, as published. Source: Azar et al. 2024, Eq. 17."""

    per_token: ClassVar[bool] = False
