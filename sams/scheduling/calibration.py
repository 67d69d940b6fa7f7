"""Agreement between the scheduler's scores and the rewards that the arms later get."""

import torch
from scipy.stats import rankdata
from torch import Tensor


def rank_correlation(one: Tensor, other: Tensor) -> float:
    """Spearman's rank correlation of [n] and [n], between -1 and 1; 0 where one of them is constant.

    Within a round r_B is one number, so Eq. 7 alone orders the rewards: a scheduler that only learns what selector
    `reward` computes has at best correlation 1.
    """
    ranks = (torch.from_numpy(rankdata(values.double().cpu().numpy())) for values in (one, other))
    first, second = (values - (len(values) + 1) / 2 for values in ranks)
    scale = (first.square().sum() * second.square().sum()).sqrt()
    return (first @ second / scale).item() if scale > 0 else 0.0
