"""Agreement between the scheduler's scores and the rewards that the arms later get."""

from torch import Tensor


def rank_correlation(one: Tensor, other: Tensor) -> float:
    """Spearman's rank correlation of [n] and [n], between -1 and 1; 0 where one of them is constant.

    Within a round r_B is one number, so Eq. 7 alone orders the rewards: a scheduler that only learns what selector
    `reward` computes has at best correlation 1.
    """
    first, second = (ranks(values.double().cpu()) - (len(values) + 1) / 2 for values in (one, other))
    scale = (first.square().sum() * second.square().sum()).sqrt()
    return (first @ second / scale).item() if scale > 0 else 0.0


def ranks(values: Tensor) -> Tensor:
    """Return the ranks of [n] values from 1, in float64; equal values have the mean of their ranks."""
    _, group, counts = values.unique(return_inverse=True, return_counts=True)
    return (counts.cumsum(0) - (counts - 1) / 2).double()[group]
