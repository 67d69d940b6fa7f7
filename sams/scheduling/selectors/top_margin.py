"""Selector `top_margin`: the easiest pairs."""

from torch import Tensor

from sams.scheduling.selectors.base import Stateless, View, top_k


class TopMargin(Stateless):
    """Chooses the k pairs with the highest implicit reward margin."""

    def choose(self, view: View | None, n: int, k: int) -> Tensor:
        assert view is not None
        return top_k(view.margins, k)
