"""Selector `reward`: Top-K by the sample-level reward (SamS Eq. 7), without a network.

An ablation of `sams`, whose scheduler adds memory across rounds.
"""

from typing import Any, Self

from torch import Tensor

from sams.scheduling.rewards import sample_reward
from sams.scheduling.selectors.base import Selector, Setup, View, top_k


class Reward(Selector):
    """Chooses the k pairs with the highest sample-level reward (SamS Eq. 7).

    Args:
        delta: weight of the margin term against the uncertainty term.
        uncertainty: sum or mean of the chosen log-prob over tokens.
    """

    @classmethod
    def build(cls, setup: Setup, **_: Any) -> Self:
        assert setup.scheduler is not None
        return cls(setup, setup.scheduler.delta, setup.scheduler.uncertainty)

    def __init__(self, setup: Setup, delta: float, uncertainty: str = "sum") -> None:
        super().__init__(setup)
        self.delta = delta
        self.uncertainty = uncertainty

    def choose(self, view: View, k: int) -> Tensor:
        rewards = sample_reward(
            view.margins, view.confidence(self.uncertainty), self.delta, view.margin_rounding
        )
        return top_k(rewards, k)
