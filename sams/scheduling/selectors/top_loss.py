"""Selector `top_loss`: the pairs with the highest loss."""

from torch import Tensor

from sams.scheduling.selectors.base import Selector, View, top_k


class TopLoss(Selector):
    """Chooses the k pairs with the highest loss, under the loss of the run."""

    def choose(self, view: View, k: int) -> Tensor:
        return top_k(view.losses, k)
