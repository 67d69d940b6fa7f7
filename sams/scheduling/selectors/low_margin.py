"""Selector `low_margin`: the pairs that the policy tells apart worst."""

from torch import Tensor

from sams.scheduling.selectors.base import Stateless, View, top_k


class LowMargin(Stateless):
    """Chooses the k hardest pairs: those whose implicit reward margin is lowest."""

    def choose(self, view: View | None, n: int, k: int) -> Tensor:
        assert view is not None
        return top_k(-view.margins, k)
