"""Preference losses: pure functions of log-probs, one per published objective.

Every loss takes the log-probs of n pairs and returns n values, so that a selector, a mean or a weight can
be applied outside.
"""

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import logsigmoid


@dataclass
class PairLogps:
    """Summed completion log-probs of n pairs under the policy and the reference, each [n] float32."""

    chosen: Tensor
    rejected: Tensor
    reference_chosen: Tensor
    reference_rejected: Tensor

    def rewards(self, beta: float) -> tuple[Tensor, Tensor]:
        """Implicit rewards of chosen and rejected, beta * log(pi / ref): [n], [n] (DPO, Eq. 5 without Z)."""
        return beta * (self.chosen - self.reference_chosen), beta * (self.rejected - self.reference_rejected)


def sigmoid(logps: PairLogps, beta: float) -> Tensor:
    """DPO's loss, -log sigmoid of the difference of implicit rewards: [n].

    Source: Rafailov et al. 2023, Eq. 7; SamS Eq. 2.
    """
    chosen, rejected = logps.rewards(beta)
    return -logsigmoid(chosen - rejected)
