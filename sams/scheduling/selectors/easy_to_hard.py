"""Selector `easy_to_hard`: a curriculum by any score of the data.

The easiest share c(t) of a batch is open in round t of T:

    c(t) = min(1, sqrt(t / T (1 - c_0^2) + c_0^2))

Source: Platanios et al. 2019, "Competence-based Curriculum Learning for Neural Machine Translation", arXiv
1903.09848, the square root of its competences.
"""

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from sams.scheduling.selectors.base import Selector, Setup, View
from sams.scheduling.selectors.values import column


class EasyToHard(Selector):
    """Draws k pairs uniformly from the easiest share of the batch, which grows to all of it, and is never below k.

    Args:
        setup: inputs of the training job; its rounds are those of the run.
        column: column of the data with the difficulty of each pair.
        descending: whether high values are the easy ones.
        start: c_0, the first share.
        length: share of the run after which every pair is open: T is that share of the rounds.
    """

    needs_scores = False

    def __init__(
        self,
        setup: Setup,
        column: str,
        descending: bool = False,
        start: Annotated[float, Field(ge=0, le=1)] = 0.1,
        length: Annotated[float, Field(gt=0, le=1)] = 1.0,
    ) -> None:
        super().__init__(setup)
        self.columns = (column,)
        self.descending, self.start, self.length = descending, start, length

    def observe(self, view: View) -> dict[str, float | Tensor]:
        return {"selector/competence": self.competence(view.round)}

    def competence(self, t: int) -> float:
        """Return c(t), t counted from 1: the last round of the run has a competence of 1."""
        assert self.setup.selection is not None
        done = t / (self.length * self.setup.selection.rounds)
        return min(1.0, math.sqrt(done * (1 - self.start**2) + self.start**2))

    def choose(self, view: View, k: int) -> Tensor:
        order = column(view, self.columns[0]).argsort(descending=self.descending, stable=True)
        opened = order[: max(k, math.ceil(self.competence(view.round) * view.n))]
        return opened[torch.randperm(len(opened), generator=self.generator)[:k]].sort().values
