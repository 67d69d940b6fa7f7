"""Selector `lossdiff_irm`: pairs of medium influence on a validation set.

    LossDiff = loss under the policy - loss under a model trained on validation data
    IRM      = implicit reward margin under the policy

Source: Zhang et al. 2025, "Towards Understanding Valuable Preference Data for Large Language Model Alignment", arXiv
2510.13212. Both are proxies of the influence function; pairs with a small influence are noise, those with a large one
are overfitted. The paper keeps the pairs for which both are in a middle interval of percentiles, 50 to 64 % of the
data, after one epoch of plain training (`warmup_rounds`).
"""

import torch
from torch import Tensor

from sams.scheduling.selectors.base import Selector, Setup, View, top_k
from sams.scheduling.selectors.values import column


class LossDiffIrm(Selector):
    """Chooses the k pairs for which both proxies are in a middle interval of percentiles, the narrowest that holds k.

    The paper computes percentiles once, over the data; here they are those of the batch, under the current policy.

    Args:
        setup: inputs of the training job.
        column: column of the data with the loss of each pair under a model trained on validation data, under the
            loss of the run.
    """

    def __init__(self, setup: Setup, column: str) -> None:
        super().__init__(setup)
        self.columns = (column,)

    def choose(self, view: View, k: int) -> Tensor:
        difference = view.losses.cpu().double() - column(view, self.columns[0])
        distances = [from_middle(difference), from_middle(view.margins.cpu())]
        return top_k(-torch.stack(distances).amax(dim=0), k)


def from_middle(values: Tensor) -> Tensor:
    """Return the distance of the rank of each value from the middle rank: [n], ties ranked by index."""
    ranks = values.argsort(stable=True).argsort()
    return (ranks - (len(values) - 1) / 2).abs()
