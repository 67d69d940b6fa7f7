"""The scheduler's rewards (SamS Eq. 6 to 8)."""

import math

import torch
from torch import Tensor


def batch_reward(previous_loss: float, loss: float) -> float:
    """Batch-level reward of the previous round (SamS Eq. 6), between -1 and 1.

    Positive when the update of round t - 1 made the next batch's loss lower. The printed form
    (e^A - e^B) / max(e^A, e^B) overflows; sign(A - B) * (1 - e^-|A - B|) is the same number.

    Args:
        previous_loss: A, mean loss of batch t - 1 before its update.
        loss: B, mean loss of batch t under the updated policy.
    """
    difference = previous_loss - loss
    return math.copysign(-math.expm1(-abs(difference)), difference)


def min_max(values: Tensor, tolerance: float = 0.0) -> Tensor:
    """Scale [n] values to [0, 1]; 0.5 everywhere when they differ by at most `tolerance`."""
    low, high = values.min(), values.max()
    if high - low <= tolerance:
        return torch.full_like(values, 0.5)
    return (values - low) / (high - low)


def sample_reward(margins: Tensor, chosen_logps: Tensor, delta: float, rounding: float = 0.0) -> Tensor:
    """Sample-level reward of every pair of the global batch (SamS Eq. 7): [n] in [0, 1].

    Args:
        margins: [n] implicit reward of the chosen minus that of the rejected response.
        chosen_logps: [n] log-prob of the chosen response, summed over its tokens (or their mean).
        delta: weight of the margin term against the uncertainty term.
        rounding: margins that differ by no more are equal. Before its first update the policy is the reference, and
            all margins are rounding errors that min-max would scale up to [0, 1].
    """
    certainty = min_max(margins.double(), rounding)
    return delta * certainty + (1 - delta) * (1 - min_max(chosen_logps.double()))


def reward(batch: float, sample: Tensor, gamma: float) -> Tensor:
    """Reward of each arm (SamS Eq. 8), with one sigmoid per term: [k] in (0, 1).

    Args:
        batch: r_B, one scalar of the optimiser step.
        sample: [k] r_S of the arms selected in that step.
        gamma: weight of the batch-level reward.
    """
    return gamma / (1 + math.exp(-batch)) + (1 - gamma) * torch.sigmoid(sample)
