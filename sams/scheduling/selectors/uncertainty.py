"""Selector `uncertainty`: the pairs that the policy is least sure about.

Uncertainty sampling (Lewis and Gale 1994, arXiv cmp-lg/9407020): the policy's probability that the chosen response is
the better one is sigmoid(margin), which is nearest to 1/2 where abs(margin) is smallest.
"""

from torch import Tensor

from sams.scheduling.selectors.base import Selector, View, top_k


class Uncertainty(Selector):
    """Chooses the k pairs with the smallest absolute margin."""

    def choose(self, view: View, k: int) -> Tensor:
        return top_k(-view.margins.abs(), k)
