"""ORPO: likelihood and log odds ratio."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from sams.losses.base import PairLogps, PairLoss, nll_per_token


@dataclass(frozen=True, kw_only=True)
class ORPO(PairLoss):
    """ORPO: negative log-prob per token of the chosen response - beta * log sigmoid of the log odds ratio.

    Source: Hong et al. 2024, Eq. 4, 6 and 7, on probabilities per token; `beta` is the paper's lambda, as in
    TRL. The likelihood term covers the response only (in TRL the prompt too).
    """

    needs_reference: ClassVar[bool] = False
    per_token: ClassVar[bool] = True

    def preference(self, logps: PairLogps) -> Tensor:
        chosen, rejected = self.scores(logps)
        return nll_per_token(logps) - self.beta * logsigmoid(log_odds(chosen) - log_odds(rejected))


def log_odds(logp: Tensor) -> Tensor:
    """Return log(p / (1 - p)) of p = e^logp, precise near p = 1; a p that rounds to 1 counts as one step below."""
    logp = logp.clamp(max=-torch.finfo(logp.dtype).eps)
    return logp - torch.log(-torch.expm1(logp))
