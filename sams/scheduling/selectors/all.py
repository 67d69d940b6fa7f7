"""Selector `all`: plain training on every pair."""

from typing import Any

import torch
from torch import Tensor

from sams.scheduling.selectors.base import View


class All:
    """Chooses every pair of the batch."""

    needs_view = False
    needs_contexts = False

    def observe(self, view: View | None) -> dict[str, float]:
        return {}

    def choose(self, view: View | None, n: int, k: int) -> Tensor:
        return torch.arange(n)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass
