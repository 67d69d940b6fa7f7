"""Selector `random`: a uniform draw, the baseline for all others."""

import torch
from torch import Tensor

from sams.scheduling.selectors.base import Selector, View


class Random(Selector):
    """Chooses k pairs uniformly, without replacement."""

    needs_scores = False

    def choose(self, view: View, k: int) -> Tensor:
        return torch.randperm(view.n, generator=self.generator)[:k].sort().values
