"""Interface of selectors: a selector sees a global batch and answers which pairs to train on, and how.

A selector is a subclass of `Selector` with at least `choose`. It is named in `sams.scheduling.selectors.table`, by an
entry point of another package, or by its path, ``package.module:Class`` (docs/selectors.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

if TYPE_CHECKING:
    from sams.scheduling.selection import Selection
    from sams.study.settings import Scheduler as SchedulerSettings


def _nothing() -> Tensor:
    return torch.empty(0)


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Inputs of a training job for building a selector.

    Attributes:
        seed: seed of the run.
        pairs: number of pairs of the training data, which `View.numbers` count.
        beta: the loss's inverse temperature.
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

    seed: int = 0
    pairs: int = 0
    beta: float = 0.1
    selection: Selection | None = None
    scheduler: SchedulerSettings | None = None
    weights: Path | None = None
    train_encoder: bool = False
    layers: int = 0
    width: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    folder: Path = Path()
    rank: int = 0
    world: int = 1
    sum: Callable[[Tensor], Tensor] = lambda tensor: tensor


@dataclass
class View:
    """A global batch of n pairs before its update, equal on every process.

    Values under the policy are finite: training stops at a batch with a loss that is not, before a selector sees it.
    They are empty, [0], unless the selector says `needs_scores`.

    Attributes:
        losses: [n] loss of each pair, under the loss of the run.
        margins: [n] implicit reward of the chosen minus the rejected response.
        chosen_logps, rejected_logps: [n] log-probs of the responses under the policy, summed over their tokens.
        contexts: [n, responses, layers, width] hidden states averaged over each response, chosen first; None
            unless the selector says `needs_contexts`.
        flipped: [n] bool, which labels are known to be swapped (controlled noise); None unless known for every pair.
        chosen_tokens, rejected_tokens: [n] tokens of the responses; None where only sums over them are defined.
        margin_rounding: margins that differ by no more than this differ by rounding alone.
        ids: [n] names of the pairs in the data.
        numbers: [n] int64, positions of the pairs in the data, for state that a selector keeps of each pair.
        round, epoch: counted from 1.
        reference_chosen, reference_rejected: [n] log-probs of the responses under the reference; None unless the
            loss or the selector needs a reference.
        seen, trained: [n] int64, rounds before this one that had the pair in their batch, and that trained on it;
            None unless the selector says `needs_counts`.
        columns: values of each pair in the columns that the selector names; numbers as [n] float64.
    """

    losses: Tensor = field(default_factory=_nothing)
    margins: Tensor = field(default_factory=_nothing)
    chosen_logps: Tensor = field(default_factory=_nothing)
    contexts: Tensor | None = None
    flipped: Tensor | None = None
    chosen_tokens: Tensor | None = None
    margin_rounding: float = 0.0
    rejected_logps: Tensor = field(default_factory=_nothing)
    rejected_tokens: Tensor | None = None
    ids: Sequence[str] = ()
    numbers: Tensor = field(default_factory=_nothing)
    round: int = 1
    epoch: int = 1
    reference_chosen: Tensor | None = None
    reference_rejected: Tensor | None = None
    seen: Tensor | None = None
    trained: Tensor | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)

    @property
    def n(self) -> int:
        """Number of pairs."""
        return max(len(self.numbers), len(self.losses))

    def rounding_share(self) -> Tensor:
        """Return how much of the span of the margins may be rounding: a scalar between 0 and 1."""
        span = self.margins.max() - self.margins.min()
        return self.margin_rounding / span.clamp(min=max(self.margin_rounding, 1e-30))

    def confidence(self, uncertainty: str) -> Tensor:
        """Return the chosen log-prob for the uncertainty term (Eq. 7), `sum` or `mean` over tokens: [n]."""
        if uncertainty == "sum" or self.chosen_tokens is None:
            return self.chosen_logps
        return self.chosen_logps / self.chosen_tokens


@dataclass(frozen=True)
class Choice:
    """The pairs of a batch to train on, and how.

    Attributes:
        indices: [k] int64, positions in the batch, ascending.
        weights: [k] float, above 0: the loss of the step is the mean over the chosen pairs of weight times loss. None
            for 1.
        labels: [k] float from 0 to 1, probability that the response called chosen is the better one. The loss of a
            pair is label times its loss plus (1 - label) times the loss with both responses swapped: 0 flips a
            label, and 1 - eps is conservative DPO. None for 1.
        beta_scales: [k] float, above 0: factors of the loss's beta. None for 1.
    """

    indices: Tensor
    weights: Tensor | None = None
    labels: Tensor | None = None
    beta_scales: Tensor | None = None

    @classmethod
    def weighted(cls, weights: Tensor, labels: Tensor | None = None) -> Choice:
        """Return the choice of the pairs with a weight, of n weights and n labels: 0 leaves a pair out."""
        indices = weights.cpu().nonzero()[:, 0]
        return cls(indices, weights.cpu()[indices], None if labels is None else labels.cpu()[indices])

    @property
    def is_plain(self) -> bool:
        """Whether the loss is the plain mean over the chosen pairs."""
        return self.weights is None and self.labels is None and self.beta_scales is None

    def take(self, positions: list[int]) -> Choice:
        """Return the choice of some of the chosen pairs, by their positions among these."""
        more = (self.weights, self.labels, self.beta_scales)
        return Choice(self.indices[positions], *(None if part is None else part[positions] for part in more))

    def rows(self, n: int) -> Tensor:
        """Return all values as one tensor of a fixed size, for an exchange between processes: [4, n] float64.

        The first row is 1 at the chosen pairs; a row of values that are None is NaN.
        """
        rows = torch.full((4, n), torch.nan, dtype=torch.float64)
        rows[0] = torch.zeros(n, dtype=torch.float64).index_fill(0, self.indices, 1)
        for row, value in zip(rows[1:], (self.weights, self.labels, self.beta_scales), strict=True):
            if value is not None:
                row[self.indices] = value.cpu().double()
        return rows

    @classmethod
    def from_rows(cls, rows: Tensor) -> Choice:
        """Return the choice with these `rows`."""
        indices = rows[0].cpu().nonzero()[:, 0]
        values = rows[1:, indices].cpu().float()
        return cls(indices, *(None if value.isnan().any() else value for value in values))


def checked(answer: Tensor | Choice, n: int, k: int) -> Choice:
    """Return the answer of a selector as a choice, checked.

    Raises:
        ValueError: the answer is not 1 to k ascending indices of n pairs, or has other values out of their ranges.
    """
    choice = answer if isinstance(answer, Choice) else Choice(answer)
    indices = choice.indices
    if indices.dtype != torch.int64 or indices.dim() != 1 or indices.device.type != "cpu":
        raise ValueError(
            f"the answer is {indices.dtype} {list(indices.shape)} on {indices.device}: give [k] int64 on the CPU"
        )
    chosen = indices.tolist()
    if not 1 <= len(chosen) <= k:
        raise ValueError(f"the answer has {len(chosen)} pairs, of {n} pairs and k = {k}: give 1 to k")
    if chosen != sorted(set(chosen)) or chosen[0] < 0 or chosen[-1] >= n:
        raise ValueError(f"the answer has other values than ascending indices of {n} pairs: {chosen}")
    for part in fields(choice)[1:]:
        values = getattr(choice, part.name)
        if values is None:
            continue
        low, high = (values >= 0, values <= 1) if part.name == "labels" else (values > 0, values.isfinite())
        if len(values) != len(chosen) or not bool((low & high).all()):
            wanted = "from 0 to 1" if part.name == "labels" else "above 0"
            raise ValueError(
                f"the answer's {part.name} are not {len(chosen)} numbers {wanted}: {values.tolist()}"
            )
    return choice


class Selector:
    """Base class of selectors.

    In each round, `observe` first gets the batch under the policy, which shows the effect of the last update; then
    `choose` answers. All random numbers come from `generator`, and the state is in every checkpoint. Every process
    runs the selector on the same tensors, and the answer of rank 0 counts on all.

    Settings of a selector are the parameters of its `__init__` after `setup`, with types and defaults.

    Args:
        setup: inputs of the training job.
    """

    needs_scores: bool = True
    """Whether the scoring pass is needed: one forward pass over all n pairs."""
    needs_contexts: bool = False
    """Whether the scoring pass must return contexts too."""
    needs_reference: bool = False
    """Whether log-probs under a reference are needed, whatever the loss."""
    needs_counts: bool = False
    """Whether `View.seen` and `View.trained` are needed."""
    columns: Sequence[str] = ()
    """Columns of the data that are needed; may be set by `__init__`."""
    trained_weights: int = 0
    """Number of weights of the selector's own networks; memory is reserved for their gradients and moments."""

    @classmethod
    def build(cls, setup: Setup, **settings: Any) -> Self:
        """Build the selector of a run."""
        return cls(setup, **settings)

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.generator = torch.Generator().manual_seed(setup.seed)

    def observe(self, view: View) -> Mapping[str, float | Tensor]:
        """Learn from a new batch; return metrics of the round.

        Metrics that are tensors of one element stay on their device until they are logged.
        """
        return {}

    def choose(self, view: View, k: int) -> Tensor | Choice:
        """Choose k of the n pairs (some rounds are full: k = n).

        Returns:
            [k] int64 indices on the CPU, ascending; or a `Choice` of at most k pairs.
        """
        raise NotImplementedError

    def accept(self, choice: Choice) -> None:
        """Note the choice that all processes train on: that of rank 0, which may differ from this process's."""

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a resumed run needs."""
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.generator.set_state(state["generator"])


def top_k(scores: Tensor, k: int) -> Tensor:
    """Return indices of the k highest of [n] scores, ties to the lower index: [k] int64 on the CPU, ascending."""
    return scores.cpu().argsort(descending=True, stable=True)[:k].sort().values
