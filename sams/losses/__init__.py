"""Preference losses: functions of log-probs, one class per published objective.

A loss gives n pairs n values, so that a selector, a mean or a weight can be applied outside. Log-probs are
sums over the tokens of a response; "per token" means divided by their number. The likelihood term that some
objectives have is that of the pair's own chosen response: the mean over pairs weighs every pair the same,
where TRL's CPO and ORPO average over all tokens of a batch.

A new loss is one subclass of `PairLoss` and its name in `LOSSES`.
"""

import difflib
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields
from typing import ClassVar, Protocol

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


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


class Loss(Protocol):
    """What training asks of a loss."""

    needs_reference: ClassVar[bool]
    """Whether log-probs under a reference are needed; without, none are ever computed."""
    needs_kl: ClassVar[bool]
    """Whether `PairLogps.kl` is needed."""

    @property
    def beta(self) -> float:
        """What scales log-probs into implicit rewards."""
        ...

    def rewards(self, logps: PairLogps) -> tuple[Tensor, Tensor]:
        """The loss's own implicit rewards of the chosen and of the rejected responses: [n], [n]."""
        ...

    def __call__(self, logps: PairLogps) -> Tensor:
        """The loss of each pair: [n]."""
        ...


_POSITIVE = {"range": "above 0", "holds": lambda value: 0 < value < math.inf}
_NOT_NEGATIVE = {"range": "at least 0", "holds": lambda value: 0 <= value < math.inf}
_FLIP_RATE = {"range": "in [0, 0.5)", "holds": lambda value: 0 <= value < 0.5}


@dataclass(frozen=True, kw_only=True)
class PairLoss(ABC):
    """What the losses share: how responses are scored, checked settings, and an optional SFT term.

    A response's score is its log-prob under the policy, less that under the reference (`needs_reference`),
    per token (`per_token`); beta times the score is its implicit reward.

    Args:
        beta: scale of the implicit reward, and what else the loss says of it.
        sft_weight: weight of an added SFT term, the negative log-prob per token of the chosen response.

    Raises:
        ValueError: naming a setting that is out of its range.
    """

    needs_reference: ClassVar[bool] = True
    needs_kl: ClassVar[bool] = False
    per_token: ClassVar[bool] = False
    beta: float = field(metadata=_POSITIVE)
    sft_weight: float = field(default=0.0, metadata=_NOT_NEGATIVE)

    def __post_init__(self) -> None:
        for setting in fields(self):
            value = getattr(self, setting.name)
            if not setting.metadata["holds"](value):
                raise ValueError(f"`{setting.name}` must be {setting.metadata['range']}, not {value}")

    @abstractmethod
    def preference(self, logps: PairLogps) -> Tensor:
        """The published objective of each pair: [n]."""

    def __call__(self, logps: PairLogps) -> Tensor:
        losses = self.preference(logps)
        return losses + self.sft_weight * nll_per_token(logps) if self.sft_weight else losses

    def rewards(self, logps: PairLogps) -> tuple[Tensor, Tensor]:
        chosen, rejected = self.scores(logps)
        return self.beta * chosen, self.beta * rejected

    def scores(self, logps: PairLogps) -> tuple[Tensor, Tensor]:
        """Scores of the chosen and of the rejected responses: [n], [n]."""
        chosen, rejected = logps.chosen, logps.rejected
        if self.needs_reference:
            assert logps.reference_chosen is not None and logps.reference_rejected is not None
            chosen, rejected = chosen - logps.reference_chosen, rejected - logps.reference_rejected
        if self.per_token:
            chosen, rejected = chosen / logps.chosen_tokens, rejected / logps.rejected_tokens
        return chosen, rejected

    def difference(self, logps: PairLogps) -> Tensor:
        """Score of the chosen minus that of the rejected response: [n]."""
        chosen, rejected = self.scores(logps)
        return chosen - rejected


def nll_per_token(logps: PairLogps) -> Tensor:
    """Negative log-prob of the chosen response, mean over its tokens: [n]."""
    return -logps.chosen / logps.chosen_tokens


@dataclass(frozen=True, kw_only=True)
class Sigmoid(PairLoss):
    """DPO: -log sigmoid of the reward margin. Source: Rafailov et al. 2023, Eq. 7; SamS Eq. 2."""

    def preference(self, logps: PairLogps) -> Tensor:
        return -logsigmoid(self.beta * self.difference(logps))


@dataclass(frozen=True, kw_only=True)
class CDPO(PairLoss):
    """Conservative DPO: the losses of the label and of its opposite, mixed by a flip rate, `label_smoothing`.

    Source: Mitchell 2023, "A note on DPO with noisy preferences", Eq. 3.
    """

    label_smoothing: float = field(default=0.1, metadata=_FLIP_RATE)

    def preference(self, logps: PairLogps) -> Tensor:
        margin = self.beta * self.difference(logps)
        return -(1 - self.label_smoothing) * logsigmoid(margin) - self.label_smoothing * logsigmoid(-margin)


@dataclass(frozen=True, kw_only=True)
class Robust(PairLoss):
    """Robust DPO: its mean over labels flipped at the rate `label_smoothing` is DPO's loss under clean ones.

    Source: Chowdhury et al. 2024, "Provably robust DPO", the unbiased loss. It may be negative.
    """

    label_smoothing: float = field(default=0.1, metadata=_FLIP_RATE)

    def preference(self, logps: PairLogps) -> Tensor:
        margin = self.beta * self.difference(logps)
        mixed = -(1 - self.label_smoothing) * logsigmoid(margin) + self.label_smoothing * logsigmoid(-margin)
        return mixed / (1 - 2 * self.label_smoothing)


@dataclass(frozen=True, kw_only=True)
class IPO(PairLoss):
    """IPO on log-ratios per token: (difference - 1 / (2 beta))^2, beta being the paper's tau.

    Source: Azar et al. 2024, Eq. 17, normalised by length as its authors ran it and as TRL's `ipo`. The
    rewards are per token too, as the loss sees them; TRL reports them summed.
    """

    per_token: ClassVar[bool] = True

    def preference(self, logps: PairLogps) -> Tensor:
        return (self.difference(logps) - 1 / (2 * self.beta)) ** 2


@dataclass(frozen=True, kw_only=True)
class IPOSum(IPO):
    """IPO on summed log-ratios, as printed. Source: Azar et al. 2024, Eq. 17."""

    per_token: ClassVar[bool] = False


@dataclass(frozen=True, kw_only=True)
class Hinge(PairLoss):
    """Hinge on the reward margin: max(0, 1 - margin), so 1 / beta is the margin in log-ratios.

    Source: Liu et al. 2024, "Statistical rejection sampling", the hinge-norm loss.
    """

    def preference(self, logps: PairLogps) -> Tensor:
        return torch.relu(1 - self.beta * self.difference(logps))


@dataclass(frozen=True, kw_only=True)
class SLiCHF(PairLoss):
    """SLiC-HF: max(0, delta - difference of log-probs) - nll_weight * log-prob of the chosen, all summed.

    Source: Zhao et al. 2023, Eq. 1, the chosen response being the target of its second term. `beta` scales
    the reported rewards only.
    """

    needs_reference: ClassVar[bool] = False
    delta: float = field(default=1.0, metadata=_NOT_NEGATIVE)
    nll_weight: float = field(default=0.1, metadata=_NOT_NEGATIVE)

    def preference(self, logps: PairLogps) -> Tensor:
        return torch.relu(self.delta - self.difference(logps)) - self.nll_weight * logps.chosen


@dataclass(frozen=True, kw_only=True)
class SimPO(PairLoss):
    """SimPO: -log sigmoid(margin of rewards per token - gamma), gamma being `gamma_beta_ratio` * beta.

    Source: Meng et al. 2024, Eq. 4 (the reward) and Eq. 6.
    """

    needs_reference: ClassVar[bool] = False
    per_token: ClassVar[bool] = True
    gamma_beta_ratio: float = field(default=0.5, metadata=_NOT_NEGATIVE)

    def preference(self, logps: PairLogps) -> Tensor:
        return -logsigmoid(self.beta * (self.difference(logps) - self.gamma_beta_ratio))


@dataclass(frozen=True, kw_only=True)
class KTO(PairLoss):
    """KTO on pairs: the mean of the losses of one desirable and one undesirable example.

    A half is weight * (1 - sigmoid(+-(reward - beta * KL))). Source: Ethayarajh et al. 2024, Eq. 7.
    """

    needs_kl: ClassVar[bool] = True
    desirable_weight: float = field(default=1.0, metadata=_POSITIVE)
    undesirable_weight: float = field(default=1.0, metadata=_POSITIVE)

    def preference(self, logps: PairLogps) -> Tensor:
        assert logps.kl is not None
        chosen, rejected = self.scores(logps)
        # 1 - sigmoid(x) = sigmoid(-x), which keeps its digits where the reward is large.
        desirable = torch.sigmoid(self.beta * (logps.kl - chosen))
        undesirable = torch.sigmoid(self.beta * (rejected - logps.kl))
        return (self.desirable_weight * desirable + self.undesirable_weight * undesirable) / 2


@dataclass(frozen=True, kw_only=True)
class ORPO(PairLoss):
    """ORPO: negative log-prob per token of the chosen response - beta * log sigmoid of the log odds ratio.

    Source: Hong et al. 2024, Eq. 4, 6 and 7, on probabilities per token; `beta` is the paper's lambda, as in
    TRL. The likelihood term covers the response alone (TRL's takes in the prompt).
    """

    needs_reference: ClassVar[bool] = False
    per_token: ClassVar[bool] = True

    def preference(self, logps: PairLogps) -> Tensor:
        chosen, rejected = self.scores(logps)
        return nll_per_token(logps) - self.beta * logsigmoid(log_odds(chosen) - log_odds(rejected))


def log_odds(logp: Tensor) -> Tensor:
    """log(p / (1 - p)) of p = e^logp, precise near p = 1; a p that rounds to 1 counts as one step below."""
    logp = logp.clamp(max=-torch.finfo(logp.dtype).eps)
    return logp - torch.log(-torch.expm1(logp))


@dataclass(frozen=True, kw_only=True)
class CPO(PairLoss):
    """CPO: DPO's loss without a reference + nll_weight * negative log-prob per token of the chosen response.

    Source: Xu et al. 2024, Eq. 3 and its likelihood term, per token as in TRL (there `cpo_alpha`).
    """

    needs_reference: ClassVar[bool] = False
    nll_weight: float = field(default=1.0, metadata=_NOT_NEGATIVE)

    def preference(self, logps: PairLogps) -> Tensor:
        return -logsigmoid(self.beta * self.difference(logps)) + self.nll_weight * nll_per_token(logps)


@dataclass(frozen=True, kw_only=True)
class RDPO(PairLoss):
    """R-DPO: -log sigmoid(reward margin + alpha * (tokens of the chosen - tokens of the rejected)).

    Source: Park et al. 2024, "Disentangling length from quality in DPO", Eq. 9: DPO for the reward less
    alpha per token. The sign is plus: what length explains of a preference, the policy need not learn, so a
    pair whose chosen response is the longer one pulls less. `rewards` are net of the penalty.
    """

    alpha: float = field(default=0.05, metadata=_NOT_NEGATIVE)

    def preference(self, logps: PairLogps) -> Tensor:
        extra_tokens = (logps.chosen_tokens - logps.rejected_tokens).to(logps.chosen.dtype)
        return -logsigmoid(self.beta * self.difference(logps) + self.alpha * extra_tokens)


@dataclass(frozen=True, kw_only=True)
class RRHF(PairLoss):
    """RRHF: max(0, -difference of log-probs per token) - nll_weight * summed log-prob of the chosen.

    Source: Yuan et al. 2023, Eq. 1 to 4. `beta` scales the reported rewards only.
    """

    needs_reference: ClassVar[bool] = False
    per_token: ClassVar[bool] = True
    nll_weight: float = field(default=1.0, metadata=_NOT_NEGATIVE)

    def preference(self, logps: PairLogps) -> Tensor:
        return torch.relu(-self.difference(logps)) - self.nll_weight * logps.chosen


LOSSES: dict[str, type[PairLoss]] = {
    "sigmoid": Sigmoid,
    "cdpo": CDPO,
    "robust": Robust,
    "ipo": IPO,
    "ipo_sum": IPOSum,
    "hinge": Hinge,
    "slic-hf": SLiCHF,
    "simpo": SimPO,
    "kto": KTO,
    "orpo": ORPO,
    "cpo": CPO,
    "r-dpo": RDPO,
    "rrhf": RRHF,
}


def build_loss(name: str, *, beta: float, settings: dict[str, float], sft_weight: float) -> Loss:
    """Build the loss of this name; settings are its other hyper-parameters, by name.

    Raises:
        ValueError: naming an unknown loss, a setting the loss does not have, or one out of its range.
    """
    if name not in LOSSES:
        near = difflib.get_close_matches(name, LOSSES, n=1)
        hint = f": did you mean '{near[0]}'?" if near else "."
        raise ValueError(f"no loss is named '{name}'{hint} There are {', '.join(LOSSES)}.")
    known = [setting.name for setting in fields(LOSSES[name]) if setting.name not in ("beta", "sft_weight")]
    for setting in settings:
        if setting not in known:
            raise ValueError(f"loss '{name}' has no setting '{setting}'; it has {', '.join(known) or 'none'}")
    return LOSSES[name](beta=beta, sft_weight=sft_weight, **settings)
