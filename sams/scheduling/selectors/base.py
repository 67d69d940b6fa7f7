"""What a selector is: it sees the whole global batch and names the K pairs to train on."""

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor


@dataclass
class View:
    """What the policy says of a global batch before its update, the same on every process.

    Attributes:
        losses: [n] the run's own loss of each pair.
        margins: [n] implicit reward of the chosen minus the rejected response.
        chosen_logps: [n] log-prob of the chosen response, summed over its tokens.
        contexts: [n, layers, width] merged contexts; None unless the selector needs them.
    """

    losses: Tensor
    margins: Tensor
    chosen_logps: Tensor
    contexts: Tensor | None = None


class Selector(Protocol):
    """A rule that picks pairs. Writing one is one file here and one test.

    A round goes: `observe` what the policy now says of the batch (and so of the last update), then
    `choose` from it. Everything random comes from a generator of the selector's own.
    """

    needs_view: bool
    """Whether the scoring pass is needed; without it `choose` and `observe` are given None."""
    needs_contexts: bool
    """Whether the scoring pass must return contexts too."""

    def observe(self, view: View | None) -> dict[str, float]:
        """Learn from a new batch what the last choice was worth; return metrics of the round."""
        ...

    def choose(self, view: View | None, n: int, k: int) -> Tensor:
        """Choose k of the n pairs: [k] int64 indices, ascending."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        ...
