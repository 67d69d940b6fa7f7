"""Log-probs of preference pairs, and the interface and base class of losses on them.

A loss returns one value per pair, so that a selector, a mean or a weight can be applied outside. Log-probs are sums
over the tokens of a response; "per token" means divided by the number of tokens. The likelihood term of some losses
is that of the pair's own chosen response: the mean over pairs weighs all pairs equally, where TRL's CPO and ORPO
average over all tokens of a batch.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

from torch import Tensor


@dataclass
class PairLogps:
    """Log-probs of n pairs, summed over the tokens of each response.

    Attributes:
        chosen, rejected: [n] float32 under the policy.
        chosen_tokens, rejected_tokens: [n] tokens of the responses.
        reference_chosen, reference_rejected: [n] float32 under the reference; None for a loss without one.
        kl: 0-dim, KTO's estimate of the divergence from the reference: max(0, mean log-ratio of mismatched
            responses over the whole batch), without gradient; None for other losses.
    """

    chosen: Tensor
    rejected: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor
    reference_chosen: Tensor | None = None
    reference_rejected: Tensor | None = None
    kl: Tensor | None = None

    def swapped(self) -> "PairLogps":
        """Return the same pairs with both responses swapped: the opposite labels."""
        return PairLogps(
            self.rejected,
            self.chosen,
            self.rejected_tokens,
            self.chosen_tokens,
            self.reference_rejected,
            self.reference_chosen,
            self.kl,
        )


class Loss(Protocol):
    """Interface of a loss as training uses it."""

    needs_reference: ClassVar[bool]
    """Whether log-probs under a reference are needed; if not, none are computed."""
    needs_kl: ClassVar[bool]
    """Whether `PairLogps.kl` is needed."""

    @property
    def beta(self) -> float:
        """Scale from log-probs to implicit rewards."""
        ...

    def rewards(self, logps: PairLogps) -> tuple[Tensor, Tensor]:
        """Return the implicit rewards of the chosen and of the rejected responses: [n], [n]."""
        ...

    def __call__(self, logps: PairLogps) -> Tensor:
        """Return the loss of each pair: [n]."""
        ...

    def scaled(self, factors: Tensor) -> "Loss":
        """Return the same loss with beta multiplied by a factor of each pair: [n]."""
        ...


@dataclass(frozen=True, kw_only=True)
class PairLoss(ABC):
    """Base class of losses: scores of responses, and an optional SFT term.

    The score of a response is its log-prob under the policy, minus that under the reference (`needs_reference`),
    per token (`per_token`); beta times the score is the implicit reward. Settings of a loss are further fields;
    `sams.losses.table` lists them with their ranges.

    Args:
        beta: scale of the implicit reward; a loss that uses it otherwise documents that.
        sft_weight: weight of an added SFT term, the negative log-prob per token of the chosen response.
    """

    needs_reference: ClassVar[bool] = True
    needs_kl: ClassVar[bool] = False
    per_token: ClassVar[bool] = False
    beta: float
    sft_weight: float = 0.0

    @abstractmethod
    def preference(self, logps: PairLogps) -> Tensor:
        """Return the published objective of each pair: [n]."""

    def __call__(self, logps: PairLogps) -> Tensor:
        losses = self.preference(logps)
        return losses + self.sft_weight * nll_per_token(logps) if self.sft_weight else losses

    def scaled(self, factors: Tensor) -> "PairLoss":
        beta: Any = self.beta * factors
        return replace(self, beta=beta)

    def rewards(self, logps: PairLogps) -> tuple[Tensor, Tensor]:
        chosen, rejected = self.scores(logps)
        return self.beta * chosen, self.beta * rejected

    def scores(self, logps: PairLogps) -> tuple[Tensor, Tensor]:
        """Return the scores of the chosen and of the rejected responses: [n], [n]."""
        chosen, rejected = logps.chosen, logps.rejected
        if self.needs_reference:
            assert logps.reference_chosen is not None and logps.reference_rejected is not None
            chosen, rejected = chosen - logps.reference_chosen, rejected - logps.reference_rejected
        if self.per_token:
            chosen, rejected = chosen / logps.chosen_tokens, rejected / logps.rejected_tokens
        return chosen, rejected

    def difference(self, logps: PairLogps) -> Tensor:
        """Return the score of the chosen minus that of the rejected response: [n]."""
        chosen, rejected = self.scores(logps)
        return chosen - rejected


def nll_per_token(logps: PairLogps) -> Tensor:
    """Return the negative log-prob of the chosen response, averaged over its tokens: [n]."""
    return -logps.chosen / logps.chosen_tokens
