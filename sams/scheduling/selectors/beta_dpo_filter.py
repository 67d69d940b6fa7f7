"""Selector `beta_dpo_filter`: keeps pairs with a usual margin and drops outliers.

Source: Wu et al. 2024, "beta-DPO: Direct Preference Optimization with Dynamic beta", arXiv 2407.08639, its
beta-guided data filtering. The other half of beta-DPO, a beta for each batch, would belong to the loss.
"""

from typing import Any, Self

import torch
from torch import Tensor

from sams.scheduling.selectors.base import Setup, View, top_k

MOMENTUM = 0.9
"""Momentum m of both moving averages, as in the authors' code."""


class BetaDpoFilter:
    """Draws k pairs without replacement, with probability proportional to the density of their margin M_i.

    p(M_i) = exp(-(M_i - M_0)^2 / (2 sigma^2)) / (sqrt(2 pi) sigma), where M_0 and sigma follow the margins'
    mean and standard deviation: M_0 <- m M_0 + (1 - m) mean(M), sigma <- m sigma + (1 - m) sqrt(var(M)). Both
    start at 0, as in the authors' code, so the density is narrower in the first rounds. The scale of the margins
    cancels: the factor beta does not change the choice.

    Args:
        seed: seed of the draws.
    """

    needs_view = True
    needs_contexts = False
    trained_weights = 0

    @classmethod
    def build(cls, setup: Setup) -> Self:
        return cls(setup.seed)

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.mean = 0.0
        self.deviation = 0.0

    def observe(self, view: View | None) -> dict[str, float]:
        """Update M_0 and sigma with this batch, before the choice."""
        assert view is not None
        margins = view.margins.double()
        self.mean = MOMENTUM * self.mean + (1 - MOMENTUM) * margins.mean().item()
        self.deviation = MOMENTUM * self.deviation + (1 - MOMENTUM) * margins.std(correction=0).item()
        return {"selector/margin_mean": self.mean, "selector/margin_deviation": self.deviation}

    def choose(self, view: View | None, n: int, k: int) -> Tensor:
        """Return the k highest of log p(M_i) + Gumbel noise: k draws without replacement (Kool et al. 2019).

        Logs, since far from M_0 the densities themselves underflow to 0.
        """
        assert view is not None
        noise = -torch.empty(n, dtype=torch.float64).exponential_(generator=self.generator).log()
        if self.deviation == 0:  # all margins were equal so far
            return top_k(noise, k)
        log_densities = -((view.margins.cpu().double() - self.mean) / self.deviation).square() / 2
        return top_k(log_densities + noise, k)

    def accept(self, choice: Tensor) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self.generator.get_state(), "mean": self.mean, "deviation": self.deviation}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["generator"])
        self.mean, self.deviation = state["mean"], state["deviation"]
