"""Losses against a hand form in float64 and at their limits."""

import math

import pytest
import torch

from sams import losses


def draw(seed: int, n: int = 8) -> losses.PairLogps:
    generator = torch.Generator().manual_seed(seed)
    return losses.PairLogps(
        *(-100 * torch.rand(n, generator=generator, dtype=torch.float64) for _ in range(4))
    )


@pytest.mark.parametrize("seed", range(50))
def test_sigmoid_equals_the_hand_form(seed: int) -> None:
    logps = draw(seed)
    found = losses.sigmoid(logps, 0.1)
    for place in range(8):
        logits = (logps.chosen[place] - logps.reference_chosen[place]) - (
            logps.rejected[place] - logps.reference_rejected[place]
        )
        expected = math.log1p(math.exp(-0.1 * logits.item()))
        assert found[place].item() == pytest.approx(expected, abs=1e-10)


def test_sigmoid_is_log_2_where_policy_and_reference_agree() -> None:
    same = torch.tensor([-3.0, -70.0])
    logps = losses.PairLogps(same, 2 * same, same, 2 * same)
    assert losses.sigmoid(logps, 0.1).tolist() == pytest.approx([math.log(2)] * 2, abs=1e-7)


@pytest.mark.parametrize("far", [1e4, -1e4])
def test_sigmoid_is_finite_far_out(far: float) -> None:
    chosen = torch.tensor([far], requires_grad=True)
    zero = torch.zeros(1)
    loss = losses.sigmoid(losses.PairLogps(chosen, zero, zero, zero), 1.0)
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert chosen.grad is not None
    assert torch.isfinite(chosen.grad).all()


def test_a_better_margin_lowers_the_loss() -> None:
    zero = torch.zeros(1)
    worse, better = (losses.PairLogps(torch.tensor([value]), zero, zero, zero) for value in (0.0, 1.0))
    assert losses.sigmoid(better, 0.1) < losses.sigmoid(worse, 0.1)
