"""Selector `random`: a uniform draw, the baseline for all others."""

from typing import Any, Self

import torch
from torch import Tensor

from sams.scheduling.selectors.base import Setup, View


class Random:
    """Chooses k pairs uniformly, without replacement."""

    needs_view = False
    needs_contexts = False
    trained_weights = 0

    @classmethod
    def build(cls, setup: Setup) -> Self:
        return cls(setup.seed)

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def observe(self, view: View | None) -> dict[str, float]:
        return {}

    def choose(self, view: View | None, n: int, k: int) -> Tensor:
        return torch.randperm(n, generator=self.generator)[:k].sort().values

    def accept(self, choice: Tensor) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["generator"])
