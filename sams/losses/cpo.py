"""CPO: DPO without a reference, and a likelihood term."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import logsigmoid

from sams.losses.base import PairLogps, PairLoss, nll_per_token


@dataclass(frozen=True, kw_only=True)
class CPO(PairLoss):
    """CPO: DPO's loss without a reference + nll_weight * negative log-prob per token of the chosen response.

    Source: Xu et al. 2024, Eq. 3 and its likelihood term, per token as in TRL (there `cpo_alpha`).
    """

    needs_reference: ClassVar[bool] = False
    nll_weight: float = 1.0

    def preference(self, logps: PairLogps) -> Tensor:
        return -logsigmoid(self.beta * self.difference(logps)) + self.nll_weight * nll_per_token(logps)
