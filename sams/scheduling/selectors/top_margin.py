"""Selector `top_margin`: the easiest pairs."""

from torch import Tensor

from sams.scheduling.selectors.base import Selector, View, top_k


class TopMargin(Selector):
    """Chooses the k pairs with the highest implicit reward margin."""

    def choose(self, view: View, k: int) -> Tensor:
        return top_k(view.margins, k)
