"""Selector `beta_dpo`: DPO with a beta for each batch, or for each pair.

    beta_batch = [1 + alpha (mean of M - M_0)] beta        beta_i = [1 + alpha (M_i - M_0)] beta

M_i is the log-ratio (log policy - log reference) of the chosen minus that of the rejected response, without the
factor beta, and M_0 its running mean. Source: Wu et al. 2024, "beta-DPO: Direct Preference Optimization with Dynamic
beta", arXiv 2407.08639. As in the authors' code, alpha is 0.6, the mean of M is over the pairs that are kept, M_0
includes the batch, and beta is at least 0.001.
"""

from typing import Annotated, Literal

from pydantic import Field

from sams.scheduling.selectors.base import Choice, Setup, View
from sams.scheduling.selectors.beta_dpo_filter import BetaDpoFilter

LEAST_BETA = 1e-3


class BetaDpo(BetaDpoFilter):
    """Chooses as `beta_dpo_filter` does, with a dynamic beta; with ratio 1 there is no filter.

    Args:
        setup: inputs of the training job.
        alpha: how much beta follows the margin.
        level: whether there is one beta for a batch (the paper's choice) or one for each pair.
    """

    def __init__(
        self,
        setup: Setup,
        alpha: Annotated[float, Field(ge=0)] = 0.6,
        level: Literal["batch", "pair"] = "batch",
    ) -> None:
        super().__init__(setup)
        self.alpha, self.level = alpha, level

    def choose(self, view: View, k: int) -> Choice:
        indices = self.draw(view, k)
        deviations = (view.margins.cpu().double()[indices] - self.mean) / self.setup.beta
        if self.level == "batch":
            deviations = deviations.mean().expand(len(indices))
        scales = (1 + self.alpha * deviations).clamp(min=LEAST_BETA / self.setup.beta)
        return Choice(indices, beta_scales=scales.float())
