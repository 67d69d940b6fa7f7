"""R-DPO: DPO with a penalty on the length."""

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import logsigmoid

from sams.losses.base import PairLogps, PairLoss


@dataclass(frozen=True, kw_only=True)
class RDPO(PairLoss):
    """R-DPO: -log sigmoid(reward margin + alpha * (tokens of the chosen - tokens of the rejected)).

    Source: Park et al. 2024, "Disentangling length from quality in DPO", Eq. 9: DPO for the reward less
    alpha per token. The sign is plus: the policy need not learn the part of a preference that length
    explains, so a pair with a longer chosen response has less weight. `rewards` leave out the penalty.
    """

    alpha: float = 0.05

    def preference(self, logps: PairLogps) -> Tensor:
        extra_tokens = (logps.chosen_tokens - logps.rejected_tokens).to(logps.chosen.dtype)
        return -logsigmoid(self.beta * self.difference(logps) + self.alpha * extra_tokens)
