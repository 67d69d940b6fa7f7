"""Selector `oracle`: what avoiding every flipped label would give; for controlled noise only."""

import torch
from torch import Tensor

from sams.runtime.errors import UserError
from sams.scheduling.selectors.base import View
from sams.scheduling.selectors.random import Random


class Oracle(Random):
    """Draws k pairs uniformly from the clean ones; flipped ones only once the clean ones are used up.

    Args:
        seed: of the draws.
    """

    needs_view = True

    def choose(self, view: View | None, n: int, k: int) -> Tensor:
        """Clean pairs in random order, then flipped ones in random order: the first k.

        Raises:
            UserError: when the data set does not say which labels are flipped.
        """
        assert view is not None
        if view.flipped is None:
            raise UserError(
                "selector oracle must know of every pair whether its labels are flipped, and the data do not say",
                where="preference.selector",
                remedy="train on the synthetic world (`data.world`), which knows, or choose another selector",
            )
        order = torch.randperm(n, generator=self.generator)
        clean_first = view.flipped.cpu()[order].int().argsort(stable=True)
        return order[clean_first][:k].sort().values
