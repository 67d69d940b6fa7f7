"""Selector `perplexity_difference`: drops or flips pairs whose chosen response is the more surprising one.

    difference = log perplexity(chosen) - log perplexity(rejected)

Source: Kong et al. 2024, "Perplexity-aware Correction for Robust Alignment with Noisy Preferences" (PerpCorrect),
NeurIPS 2024. A flipped label negates the difference, so its density over the data is a mixture of two normals,

    share N(-centre, deviation^2) + (1 - share) N(centre, deviation^2)

and pairs beyond the point where both parts are equally likely are flipped. The paper aligns a surrogate model on
clean pairs first, in several iterations; here the surrogate is the reference or the policy itself. The authors' code
averages over the tokens of prompt and response; here it is over those of the response.
"""

import math
from typing import Any, Literal

import torch
from torch import Tensor

from sams.scheduling.selectors.base import Choice, Selector, Setup, View, top_k
from sams.scheduling.selectors.values import per_token, policy, reference

MEMORY = 4096
"""Number of the last differences that the mixture is fitted to."""
STEPS = 10
"""Steps of expectation maximisation in a round; the fit goes on from that of the round before."""


class PerplexityDifference(Selector):
    """Chooses the k pairs with the smallest difference, or the clearest ones and flips the labels of some.

    Args:
        setup: inputs of the training job.
        use: `filter` chooses the k pairs with the smallest difference. `flip` chooses the k pairs whose difference
            is farthest from the threshold (with ratio 1 every pair), and flips the labels of those above it.
        model: the model whose perplexity it is.
        threshold: difference above which a label is flipped; None for that of the fitted mixture.
    """

    needs_reference = True

    def __init__(
        self,
        setup: Setup,
        use: Literal["filter", "flip"] = "filter",
        model: Literal["reference", "policy"] = "reference",
        threshold: float | None = None,
    ) -> None:
        super().__init__(setup)
        self.use, self.model, self.threshold = use, model, threshold
        self.needs_scores = model == "policy"
        self.last = torch.empty(0, dtype=torch.float64)
        """[up to MEMORY] differences of the last pairs."""
        self.mixture = (0.75, 0.0, 0.0)
        """Share, centre and deviation."""

    def differences(self, view: View) -> Tensor:
        """Return the difference of each pair: [n] float64."""
        chosen, rejected = per_token(view, reference(view) if self.model == "reference" else policy(view))
        return rejected - chosen

    def observe(self, view: View) -> dict[str, float | Tensor]:
        """Fit the mixture to the last differences, this batch's included."""
        if self.use == "filter" or self.threshold is not None:
            return {}
        self.last = torch.cat([self.last, self.differences(view)])[-MEMORY:]
        self.mixture = fitted(self.last, self.mixture)
        return {"selector/clean_share": self.mixture[0], "selector/threshold": threshold_of(self.mixture)}

    def choose(self, view: View, k: int) -> Tensor | Choice:
        differences = self.differences(view)
        if self.use == "filter":
            return top_k(-differences, k)
        threshold = threshold_of(self.mixture) if self.threshold is None else self.threshold
        beyond = differences - min(threshold, differences.max().item())
        indices = top_k(beyond.abs(), k)
        return Choice(indices, labels=(beyond[indices] <= 0).float())

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "last": self.last, "mixture": self.mixture}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.last, self.mixture = state["last"], state["mixture"]


def fitted(values: Tensor, mixture: tuple[float, float, float]) -> tuple[float, float, float]:
    """Return share, centre (at least 0) and deviation of the mixture after `STEPS` steps from the given ones."""
    share, centre, deviation = mixture
    if deviation == 0:  # not yet fitted
        centre, deviation = values.abs().mean().item(), max(values.std(correction=0).item(), 1e-6)
    for _ in range(STEPS):
        log_odds = math.log(share / (1 - share)) - 2 * centre * values / deviation**2
        clean = log_odds.sigmoid()
        centre = max(((1 - 2 * clean) * values).mean().item(), 0.0)
        share = min(max(clean.mean().item(), 0.5), 1 - 1e-6)
        deviation = max((values.square().mean().item() - centre**2), 1e-12) ** 0.5
    return share, centre, deviation


def threshold_of(mixture: tuple[float, float, float]) -> float:
    """Return the difference at which both parts of the mixture are equally likely; infinity for centre 0."""
    share, centre, deviation = mixture
    return deviation**2 * math.log(share / (1 - share)) / (2 * centre) if centre > 0 else math.inf
