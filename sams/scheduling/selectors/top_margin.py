"""Selector `top_margin`: the pairs that the policy already tells apart best."""

from torch import Tensor

from sams.scheduling.selectors.base import Stateless, View, top_k


class TopMargin(Stateless):
    """Chooses the k easiest pairs: those whose implicit reward margin is highest."""

    def choose(self, view: View | None, n: int, k: int) -> Tensor:
        assert view is not None
        return top_k(view.margins, k)
