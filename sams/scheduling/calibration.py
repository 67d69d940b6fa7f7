"""How well the scheduler's scores order the arms by what they turned out to be worth."""

from torch import Tensor


def ranks(values: Tensor) -> Tensor:
    """Ranks of [n] values from 0, equal values sharing the mean of their ranks: [n] float64."""
    values = values.double().cpu()
    below = (values[:, None] > values).sum(dim=1)
    equal = (values[:, None] == values).sum(dim=1)
    return below + (equal - 1).double() / 2


def rank_correlation(one: Tensor, other: Tensor) -> float:
    """Spearman's rank correlation of [n] and [n], between -1 and 1; 0 where one of them is constant.

    Within a round r_B is one number, so the rewards are ordered by Eq. 7 alone: a scheduler that adds nothing
    over selector `reward` has at best correlation 1 here.
    """
    first, second = (ranks(values) - (len(values) - 1) / 2 for values in (one, other))
    scale = (first.square().sum() * second.square().sum()).sqrt()
    return (first @ second / scale).item() if scale > 0 else 0.0
