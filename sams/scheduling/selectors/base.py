"""What a selector is: it sees the whole global batch and names the K pairs to train on."""

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor


@dataclass
class View:
    """What the policy says of a global batch before its update, the same on every process.

    All values are finite: the trainer stops at a batch with a loss that is not, before a selector sees it.

    Attributes:
        losses: [n] the run's own loss of each pair.
        margins: [n] implicit reward of the chosen minus the rejected response.
        chosen_logps: [n] log-prob of the chosen response, summed over its tokens.
        contexts: [n, responses, layers, width] hidden states averaged over each response, chosen first; None
            unless the selector needs them.
        flipped: [n] bool, which labels are known to be swapped (controlled noise); None if not known of every pair.
        chosen_tokens: [n] tokens of the chosen response; None where the sum over them must be taken.
        margin_rounding: margins no further apart than that differ by rounding alone.
    """

    losses: Tensor
    margins: Tensor
    chosen_logps: Tensor
    contexts: Tensor | None = None
    flipped: Tensor | None = None
    chosen_tokens: Tensor | None = None
    margin_rounding: float = 0.0

    def confidence(self, uncertainty: str) -> Tensor:
        """Log-prob of the chosen response for Eq. 7's uncertainty term: `sum` over its tokens, or `mean`: [n]."""
        if uncertainty == "sum" or self.chosen_tokens is None:
            return self.chosen_logps
        return self.chosen_logps / self.chosen_tokens


class Selector(Protocol):
    """A rule that picks pairs. Writing one is one file here and one test.

    A round goes: `observe` what the policy now says of the batch (and so of the last update), then
    `choose` from it. Everything random comes from a generator of the selector's own.
    """

    needs_view: bool
    """Whether the scoring pass is needed; without it `choose` and `observe` are given None."""
    needs_contexts: bool
    """Whether the scoring pass must return contexts too."""

    @property
    def trained_weights(self) -> int:
        """Weights of networks of its own. Memory is kept for them: gradients and moments come with the first fit."""
        ...

    def observe(self, view: View | None) -> dict[str, float]:
        """Learn from a new batch what the last choice was worth; return metrics of the round."""
        ...

    def choose(self, view: View | None, n: int, k: int) -> Tensor:
        """Choose k of the n pairs (some rounds are full: k = n): [k] int64 indices on the CPU, ascending."""
        ...

    def accept(self, choice: Tensor) -> None:
        """Take the choice that all processes train on: that of rank 0, which may differ from the process's own."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        ...


class Stateless:
    """Base of a selector that neither learns nor draws random numbers: `choose` is all it adds."""

    needs_view = True
    needs_contexts = False
    trained_weights = 0

    def observe(self, view: View | None) -> dict[str, float]:
        return {}

    def accept(self, choice: Tensor) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def top_k(scores: Tensor, k: int) -> Tensor:
    """The k highest of [n] scores, the lower index where they are equal: [k] int64 on the CPU, ascending."""
    return scores.cpu().argsort(descending=True, stable=True)[:k].sort().values
