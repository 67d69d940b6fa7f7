"""Selector `all`: plain training on every pair."""

import torch
from torch import Tensor

from sams.scheduling.selectors.base import Selector, View


class All(Selector):
    """Chooses every pair of the batch."""

    needs_scores = False

    def choose(self, view: View, k: int) -> Tensor:
        return torch.arange(view.n)
