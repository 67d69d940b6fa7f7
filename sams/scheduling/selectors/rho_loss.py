"""Selector `rho_loss`: the pairs with the highest reducible loss.

    loss under the policy - loss under a model trained on held-out data

Source: Mindermann et al. 2022, "Prioritized Training on Points that are Learnable, Worth Learning, and Not Yet
Learnt", arXiv 2206.07137. Wrong labels have a high held-out loss too, and pairs already learned a low loss.
"""

from torch import Tensor

from sams.scheduling.selectors.base import Selector, Setup, View, top_k
from sams.scheduling.selectors.values import column


class RhoLoss(Selector):
    """Chooses the k pairs with the highest loss minus held-out loss.

    Args:
        setup: inputs of the training job.
        column: column of the data with the held-out (irreducible) loss of each pair, under the loss of the run.
    """

    def __init__(self, setup: Setup, column: str) -> None:
        super().__init__(setup)
        self.columns = (column,)

    def choose(self, view: View, k: int) -> Tensor:
        return top_k(view.losses.cpu().double() - column(view, self.columns[0]), k)
