"""Rewards: SamS Eq. 6 to 8 and the traps around them."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sams.scheduling.rewards import batch_reward, min_max, reward, sample_reward


@given(st.floats(0, 20), st.floats(0, 20))
def test_batch_reward_equals_the_printed_form(before: float, after: float) -> None:
    printed = (math.exp(before) - math.exp(after)) / max(math.exp(before), math.exp(after))
    assert batch_reward(before, after) == pytest.approx(printed, abs=1e-10)


@pytest.mark.parametrize("loss", [200.0, 2500.0])
def test_batch_reward_does_not_overflow(loss: float) -> None:
    assert batch_reward(loss, loss - 1e-3) == pytest.approx(1e-3, rel=1e-3)
    assert batch_reward(loss, 0.0) == 1.0
    assert batch_reward(0.0, loss) == -1.0


def test_an_improved_loss_raises_the_batch_reward() -> None:
    assert batch_reward(0.7, 0.6) > 0 > batch_reward(0.6, 0.7)
    assert batch_reward(0.6, 0.6) == 0


def test_min_max_of_equal_values_is_a_half() -> None:
    assert min_max(torch.zeros(4)).tolist() == [0.5] * 4


def test_values_are_scaled_whatever_their_range() -> None:
    assert min_max(torch.tensor([0.5, 0.25, 0.375])).tolist() == [1.0, 0.0, 0.5]
    narrow = torch.tensor([0.0, 0.25, 0.5])
    assert sample_reward(narrow, -narrow, delta=0.25).tolist() == pytest.approx([0.0, 0.5, 1.0])


def test_sample_reward_by_hand() -> None:
    found = sample_reward(torch.tensor([0.0, 1.0, 3.0]), torch.tensor([-10.0, -30.0, -20.0]), delta=0.25)
    expected = [0.25 * 0 + 0.75 * 0, 0.25 / 3 + 0.75 * 1, 0.25 * 1 + 0.75 * 0.5]
    assert found.tolist() == pytest.approx(expected)


def test_sample_reward_of_a_first_batch_is_finite() -> None:
    found = sample_reward(torch.zeros(4), torch.tensor([-1.0, -2.0, -3.0, -4.0]), delta=0.5)
    assert torch.isfinite(found).all()


def test_margins_that_differ_by_rounding_alone_count_as_equal() -> None:
    margins, logps = torch.tensor([0.0, 3e-6, -2e-6]), torch.tensor([-10.0, -30.0, -20.0])
    assert sample_reward(margins, logps, delta=1.0, rounding=1e-5).tolist() == [0.5] * 3
    assert sample_reward(margins, logps, delta=1.0, rounding=1e-6).tolist() == pytest.approx([0.4, 1.0, 0.0])


def test_one_sigmoid_each() -> None:
    found = reward(0.0, torch.tensor([0.0, 1.0], dtype=torch.float64), gamma=0.5)
    spread = 0.5 * (1 / (1 + math.exp(-1)) - 0.5)
    # A second sigmoid on r_S would leave a spread of 0.026.
    assert (found[1] - found[0]).item() == pytest.approx(spread) == pytest.approx(0.1155, abs=1e-3)
    assert found[0].item() == pytest.approx(0.5)


def test_gamma_weighs_batch_against_sample() -> None:
    samples = torch.tensor([0.0, 1.0])
    assert reward(math.log(3), samples, gamma=1.0).tolist() == pytest.approx([0.75, 0.75])
    assert reward(1.0, samples, gamma=0.0).tolist() == reward(-1.0, samples, gamma=0.0).tolist()
