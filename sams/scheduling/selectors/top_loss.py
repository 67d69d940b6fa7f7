"""Selector `top_loss`: the pairs with the highest loss."""

from torch import Tensor

from sams.scheduling.selectors.base import Stateless, View, top_k


class TopLoss(Stateless):
    """Chooses the k pairs with the highest loss, under the loss of the run."""

    def choose(self, view: View | None, n: int, k: int) -> Tensor:
        assert view is not None
        return top_k(view.losses, k)
