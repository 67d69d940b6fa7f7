"""Selector `oracle`: avoids pairs with flipped labels; for controlled noise only."""

import torch
from torch import Tensor

from sams.runtime.errors import UserError
from sams.scheduling.selectors.base import View
from sams.scheduling.selectors.random import Random


class Oracle(Random):
    """Draws k pairs uniformly from the clean ones, and flipped ones only if the clean ones do not suffice."""

    needs_scores = True  # for the records of all pairs; the choice needs none

    def choose(self, view: View, k: int) -> Tensor:
        """Return the first k of the clean pairs in random order, followed by the flipped ones in random order.

        Raises:
            UserError: the data does not say which labels are flipped.
        """
        if view.flipped is None:
            raise UserError(
                "selector oracle requires to know which labels are flipped, and the data does not say",
                where="preference.selector",
                remedy="train on the synthetic world (`data.world`), which knows, or choose another selector",
            )
        order = torch.randperm(view.n, generator=self.generator)
        clean_first = view.flipped.cpu()[order].int().argsort(stable=True)
        return order[clean_first][:k].sort().values
