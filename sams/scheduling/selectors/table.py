"""Table of the selectors: names and needs, without torch.

A new selector is one file with a class that has the methods of `sams.scheduling.selectors.base.Selector`, and one
entry here.
"""

import pkgutil
from dataclasses import dataclass
from typing import Any

from sams.runtime.errors import nearest


@dataclass(frozen=True)
class Entry:
    """One selector.

    Attributes:
        path: module and class, as ``module:class``.
        needs_view: whether the scoring pass is needed.
        reads_scheduler: whether settings of `scheduler` belong to its recipe.
        trains_scheduler: whether it trains the networks of `scheduler`, and can start from pretrained ones.
        full_batch: whether it trains on every pair, so that `ratio` is 1.
        crossfitted: whether its pairs are chosen before the training, by cross-fitted losses, with `ratio` as their
            share of the data.
    """

    path: str
    needs_view: bool = True
    reads_scheduler: bool = False
    trains_scheduler: bool = False
    full_batch: bool = False
    crossfitted: bool = False

    @property
    def module(self) -> str:
        """Return the name of the module."""
        return self.path.partition(":")[0]

    def load(self) -> Any:
        """Import the class, a `sams.scheduling.selectors.base.Selector`."""
        return pkgutil.resolve_name(self.path)


SELECTORS: dict[str, Entry] = {
    "all": Entry("sams.scheduling.selectors.all:All", needs_view=False, full_batch=True),
    "random": Entry("sams.scheduling.selectors.random:Random", needs_view=False),
    "top_margin": Entry("sams.scheduling.selectors.top_margin:TopMargin"),
    "low_margin": Entry("sams.scheduling.selectors.low_margin:LowMargin"),
    "top_loss": Entry("sams.scheduling.selectors.top_loss:TopLoss"),
    "reward": Entry("sams.scheduling.selectors.reward:Reward", reads_scheduler=True),
    "beta_dpo_filter": Entry("sams.scheduling.selectors.beta_dpo_filter:BetaDpoFilter"),
    "selective": Entry("sams.scheduling.selectors.all:All", needs_view=False, crossfitted=True),
    "oracle": Entry("sams.scheduling.selectors.oracle:Oracle"),
    "sams": Entry("sams.scheduling.selectors.sams:Sams", reads_scheduler=True, trains_scheduler=True),
}


def check_selector(name: str) -> None:
    """Check the name of a selector.

    Raises:
        ValueError: naming an unknown selector.
    """
    if name not in SELECTORS:
        raise ValueError(
            f"no selector is named '{name}' (there are {', '.join(SELECTORS)}){nearest(name, list(SELECTORS))}"
        )
