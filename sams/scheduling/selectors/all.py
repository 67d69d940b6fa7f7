"""Selector `all`: plain training on every pair."""

import torch
from torch import Tensor

from sams.scheduling.selectors.base import Stateless, View


class All(Stateless):
    """Chooses every pair of the batch."""

    needs_view = False

    def choose(self, view: View | None, n: int, k: int) -> Tensor:
        return torch.arange(n)
