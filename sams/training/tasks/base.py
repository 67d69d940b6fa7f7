"""The interface between tasks and passes, and how a task reads its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from sams.data.tokens import read_columns
from sams.policy.policy import Scores
from sams.policy.rows import Item
from sams.runtime.errors import UserError

if TYPE_CHECKING:
    from sams.scheduling.selectors.base import Choice, View

Items = dict[str, Tensor]
"""Named values of B items, each [B] float32; `loss` carries the gradient, all others are detached."""


class Scored(Protocol):
    """A set of items that the policy can score."""

    ids: list[str]
    lengths: list[int]
    """Tokens of each item, over all its sequences: the prompt counts once per completion."""
    packed_lengths: list[int]
    """Tokens of each item in a packed row: the prompt counts once."""
    kl_task: Scored | None = None
    """Items on which the KL term of the loss is estimated; None for a loss without a KL term."""

    def sequences(self, items: list[int]) -> list[Item]:
        """Token ids of each item: its prompt and its completions."""
        ...

    def items(
        self, scores: Scores, items: list[int], kl: Tensor | None = None, choice: Choice | None = None
    ) -> Items:
        """Values of each item, from the scores of `sequences(items)` and the KL term of their batch.

        With `choice`, which is of these items, losses have its weights, labels and scales of beta.
        """
        ...

    def kl(self, values: Items, items: list[int]) -> Tensor:
        """KL term of a batch, from the values of `kl_task`'s items: a float32 scalar."""
        raise TypeError(f"the loss of {type(self).__name__} has no KL term")


class Task(Scored, Protocol):
    """A set of items to learn from; `loss` is one of the values of its items."""

    weights: list[int]
    """Weight of each item in the mean loss."""

    def traits(self, items: list[int]) -> dict[str, float]:
        """Means over items of values that do not depend on the policy: tokens, share of flipped labels."""
        ...


class Selectable(Task, Protocol):
    """A task from which a selector can choose."""

    def view(self, items: list[int], values: Items, contexts: Tensor | None) -> View:
        """A batch as selectors see it: scored, or with values {}; contexts are [n, sequences, layers, width]."""
        ...


def read_tokens(tokens: Path, split: str) -> dict[str, Sequence[Any]]:
    """Return the columns of one split of the tokenised data; token ids stay on disk until a batch needs them.

    Raises:
        UserError: when the split is missing or empty.
    """
    folder = tokens / split
    if not folder.is_dir():
        raise UserError("no such tokenised split", where=str(folder), remedy="run the rule `tokenise` first")
    columns = read_columns(folder)
    if not columns["id"]:
        raise UserError("the split is empty", where=str(folder), remedy="see report.json next to it")
    return columns


def mean(values: list[int] | list[float]) -> float:
    """Return the mean of a list of numbers."""
    return sum(values) / len(values)
