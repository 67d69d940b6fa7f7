"""Hinge loss on the reward margin, as in RSO."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sams.losses.base import PairLogps, PairLoss


@dataclass(frozen=True, kw_only=True)
class Hinge(PairLoss):
    """Hinge on the reward margin: max(0, 1 - margin), so 1 / beta is the margin in log-ratios.

    Source: Liu et al. 2024, "Statistical rejection sampling", the hinge-norm loss.
    """

    def preference(self, logps: PairLogps) -> Tensor:
        return torch.relu(1 - self.beta * self.difference(logps))
