"""Selector `low_margin`: the hardest pairs."""

from torch import Tensor

from sams.scheduling.selectors.base import Selector, View, top_k


class LowMargin(Selector):
    """Chooses the k pairs with the lowest implicit reward margin."""

    def choose(self, view: View, k: int) -> Tensor:
        return top_k(-view.margins, k)
