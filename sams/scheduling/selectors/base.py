"""Interface of selectors: a selector sees the complete global batch and returns the K pairs to train on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

import torch
from torch import Tensor

if TYPE_CHECKING:
    from sams.scheduling.selection import Selection
    from sams.study.settings import Scheduler as SchedulerSettings


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Inputs of a training job for building a selector.

    Attributes:
        seed: seed of the run.
        selection: the rounds of the run and K of each.
        scheduler: settings of the scheduler; None unless the selector's entry says `reads_scheduler`.
        weights: file with pretrained weights of the scheduler; None for fresh networks.
        train_encoder: whether the scheduler's encoder is trained, as in pretraining.
        layers, width: number of blocks and hidden width of the policy.
        device: device of the policy.
        folder: folder for files that the selector appends to during the run.
        rank, world: rank of this process and number of processes.
        sum: function that sums a tensor over all processes, on the CPU; a collective call.
    """

    seed: int
    selection: Selection
    scheduler: SchedulerSettings | None
    weights: Path | None
    train_encoder: bool
    layers: int
    width: int
    device: torch.device
    folder: Path
    rank: int
    world: int
    sum: Callable[[Tensor], Tensor]


@dataclass
class View:
    """Values of a global batch under the policy before its update, equal on every process.

    All values are finite: training stops at a batch with a loss that is not, before a selector sees it.

    Attributes:
        losses: [n] loss of each pair, under the loss of the run.
        margins: [n] implicit reward of the chosen minus the rejected response.
        chosen_logps: [n] log-prob of the chosen response, summed over its tokens.
        contexts: [n, responses, layers, width] hidden states averaged over each response, chosen first; None
            unless the selector needs them.
        flipped: [n] bool, which labels are known to be swapped (controlled noise); None unless known for every pair.
        chosen_tokens: [n] tokens of the chosen response; None where only the sum over them is defined.
        margin_rounding: margins that differ by no more than this differ by rounding alone.
    """

    losses: Tensor
    margins: Tensor
    chosen_logps: Tensor
    contexts: Tensor | None = None
    flipped: Tensor | None = None
    chosen_tokens: Tensor | None = None
    margin_rounding: float = 0.0

    def rounding_share(self) -> Tensor:
        """Return how much of the span of the margins may be rounding: a scalar between 0 and 1."""
        span = self.margins.max() - self.margins.min()
        return self.margin_rounding / span.clamp(min=max(self.margin_rounding, 1e-30))

    def confidence(self, uncertainty: str) -> Tensor:
        """Return the chosen log-prob for the uncertainty term (Eq. 7), `sum` or `mean` over tokens: [n]."""
        if uncertainty == "sum" or self.chosen_tokens is None:
            return self.chosen_logps
        return self.chosen_logps / self.chosen_tokens


class Selector(Protocol):
    """A rule that chooses pairs.

    In each round, `observe` first gets the values of the batch under the policy, which show the effect of the last
    update; then `choose` returns the pairs. All random numbers come from the selector's own generator.
    """

    needs_view: bool
    """Whether the scoring pass is needed; without it `choose` and `observe` are given None."""
    needs_contexts: bool
    """Whether the scoring pass must return contexts too."""

    @classmethod
    def build(cls, setup: Setup) -> Self:
        """Build the selector of a run."""
        ...

    @property
    def trained_weights(self) -> int:
        """Number of weights of the selector's own networks; memory is reserved for their gradients and moments."""
        ...

    def observe(self, view: View | None) -> Mapping[str, float | Tensor]:
        """Learn from a new batch how useful the last choice was; return metrics of the round.

        Metrics that are tensors of one element stay on their device until they are logged.
        """
        ...

    def choose(self, view: View | None, n: int, k: int) -> Tensor:
        """Choose k of the n pairs (some rounds are full: k = n): [k] int64 indices on the CPU, ascending."""
        ...

    def accept(self, choice: Tensor) -> None:
        """Store the choice that all processes train on: that of rank 0, which may differ from this process's."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a resumed run needs."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        ...


class Stateless:
    """Base class of selectors that neither learn nor draw random numbers: a subclass adds `choose`."""

    needs_view = True
    needs_contexts = False
    trained_weights = 0

    @classmethod
    def build(cls, setup: Setup) -> Self:
        return cls()

    def observe(self, view: View | None) -> dict[str, float]:
        return {}

    def accept(self, choice: Tensor) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def top_k(scores: Tensor, k: int) -> Tensor:
    """Return indices of the k highest of [n] scores, ties to the lower index: [k] int64 on the CPU, ascending."""
    return scores.cpu().argsort(descending=True, stable=True)[:k].sort().values
