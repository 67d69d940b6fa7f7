"""Selectors: who is trained on, behind one small interface (`base.Selector`)."""

from sams.scheduling.selectors.all import All
from sams.scheduling.selectors.base import Selector, Stateless, View, top_k
from sams.scheduling.selectors.beta_dpo_filter import BetaDpoFilter
from sams.scheduling.selectors.low_margin import LowMargin
from sams.scheduling.selectors.oracle import Oracle
from sams.scheduling.selectors.random import Random
from sams.scheduling.selectors.reward import Reward
from sams.scheduling.selectors.sams import Sams
from sams.scheduling.selectors.top_loss import TopLoss
from sams.scheduling.selectors.top_margin import TopMargin

__all__ = [
    "All",
    "BetaDpoFilter",
    "LowMargin",
    "Oracle",
    "Random",
    "Reward",
    "Sams",
    "Selector",
    "Stateless",
    "TopLoss",
    "TopMargin",
    "View",
    "top_k",
]
