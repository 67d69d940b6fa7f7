"""Selector `low_margin`: the hardest pairs."""

from torch import Tensor

from sams.scheduling.selectors.base import Stateless, View, top_k


class LowMargin(Stateless):
    """Chooses the k pairs with the lowest implicit reward margin."""

    def choose(self, view: View | None, n: int, k: int) -> Tensor:
        assert view is not None
        return top_k(-view.margins, k)
