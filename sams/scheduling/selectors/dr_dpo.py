"""Selector `dr_dpo`: weights all pairs as distributionally robust DPO does.

Source: Wu et al. 2024, "Towards Robust Alignment of Language Models: Distributionally Robustifying Direct Preference
Optimization", arXiv 2407.07880. Its objective over the losses l of a batch, and the gradient of that:

    -beta' log mean exp(-l / beta')        mean of w grad l,   w = exp(-l / beta') / mean exp(-l / beta')

Pairs with a high loss, likely mislabelled, count less. The authors' code takes the mean over the pairs of one
process; here it is over the global batch. Works with every loss.
"""

from typing import Annotated

from pydantic import Field

from sams.scheduling.selectors.base import Choice, Selector, Setup, View, top_k
from sams.scheduling.selectors.values import mean_one


class DrDpo(Selector):
    """Chooses every pair, with weight w.

    Args:
        setup: inputs of the training job.
        beta_prime: beta', the temperature; at infinity all weights are 1.
    """

    def __init__(self, setup: Setup, beta_prime: Annotated[float, Field(gt=0)] = 1.0) -> None:
        super().__init__(setup)
        self.beta_prime = beta_prime

    def choose(self, view: View, k: int) -> Choice:
        scores = -view.losses.cpu().double() / self.beta_prime
        indices = top_k(scores, k)
        return Choice(indices, weights=mean_one(scores[indices]))
