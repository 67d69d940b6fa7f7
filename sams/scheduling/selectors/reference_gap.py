"""Selector `reference_gap`: pairs whose label the reference agrees with.

    gap = log ref(rejected) - log ref(chosen)

A large gap means that the reference prefers the rejected response: the label is likely wrong, or the pair is hard.
Source of the gap: Chen et al. 2024, "Preference Learning Algorithms Do Not Learn Preference Rankings", arXiv
2405.19534, where it measures how hard a pair is: the policy ranks it right if and only if its DPO loss is at most
-log sigmoid(beta gap).
"""

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from sams.scheduling.selectors.base import Choice, Selector, Setup, View, top_k
from sams.scheduling.selectors.values import mean_one, per_token, reference


class ReferenceGap(Selector):
    """Chooses the k pairs with the smallest gap.

    Args:
        setup: inputs of the training job.
        use: `filter` only chooses. `weight` also weights each of them by p = sigmoid(-gap / temperature), scaled
            to a mean of 1; `label` also takes p as the probability that its label is right. With ratio 1 both use
            every pair.
        length: whether the log-probs are summed over the tokens (`sum`) or averaged (`mean`).
        temperature: scale of the gap in p; p is the reference's own preference, in the sense of Bradley and Terry,
            at 1.
    """

    needs_scores = False
    needs_reference = True

    def __init__(
        self,
        setup: Setup,
        use: Literal["filter", "weight", "label"] = "filter",
        length: Literal["sum", "mean"] = "mean",
        temperature: Annotated[float, Field(gt=0)] = 1.0,
    ) -> None:
        super().__init__(setup)
        self.use, self.length, self.temperature = use, length, temperature

    def choose(self, view: View, k: int) -> Tensor | Choice:
        logps = reference(view)
        chosen, rejected = logps if self.length == "sum" else per_token(view, logps)
        agreement = chosen - rejected
        indices = top_k(agreement, k)
        if self.use == "filter":
            return indices
        log_odds = agreement[indices] / self.temperature
        if self.use == "label":
            return Choice(indices, labels=log_odds.sigmoid().float())
        return Choice(indices, weights=mean_one(logsigmoid(log_odds)))
