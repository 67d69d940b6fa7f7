"""Selector `beta_dpo_filter`: keeps pairs with a usual margin and drops outliers.

Source: Wu et al. 2024, "beta-DPO: Direct Preference Optimization with Dynamic beta", arXiv 2407.08639, its
beta-guided data filtering. `beta_dpo` adds the other half, a beta for each batch.
"""

from typing import Any

import torch
from torch import Tensor

from sams.scheduling.selectors.base import Choice, Selector, Setup, View, top_k

MOMENTUM = 0.9
"""Momentum m of both moving averages, as in the authors' code."""


class BetaDpoFilter(Selector):
    """Draws k pairs without replacement, with probability proportional to the density of their margin M_i.

    p(M_i) = exp(-(M_i - M_0)^2 / (2 sigma^2)) / (sqrt(2 pi) sigma), where M_0 and sigma follow the margins'
    mean and standard deviation: M_0 <- m M_0 + (1 - m) mean(M), sigma <- m sigma + (1 - m) sqrt(var(M)). Both
    start at 0, as in the authors' code, so the density is narrower in the first rounds. The scale of the margins
    cancels: the factor beta does not change the choice.
    """

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.mean = 0.0
        self.deviation = 0.0

    def observe(self, view: View) -> dict[str, float]:
        """Update M_0 and sigma with this batch, before the choice."""
        margins = view.margins.double()
        self.mean = MOMENTUM * self.mean + (1 - MOMENTUM) * margins.mean().item()
        self.deviation = MOMENTUM * self.deviation + (1 - MOMENTUM) * margins.std(correction=0).item()
        return {"selector/margin_mean": self.mean, "selector/margin_deviation": self.deviation}

    def choose(self, view: View, k: int) -> Tensor | Choice:
        return self.draw(view, k)

    def draw(self, view: View, k: int) -> Tensor:
        """Return the k highest of log p(M_i) + Gumbel noise: k draws without replacement (Kool et al. 2019).

        Logs, since far from M_0 the densities themselves underflow to 0.
        """
        noise = -torch.empty(view.n, dtype=torch.float64).exponential_(generator=self.generator).log()
        if self.deviation == 0:  # all margins were equal so far
            return top_k(noise, k)
        log_densities = -((view.margins.cpu().double() - self.mean) / self.deviation).square() / 2
        return top_k(log_densities + noise, k)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "mean": self.mean, "deviation": self.deviation}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.mean, self.deviation = state["mean"], state["deviation"]
