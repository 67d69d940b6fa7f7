"""Paired tests over seeds, against figures worked out by hand and by scipy."""

import random

import pytest
from scipy import stats

from sams.runtime.errors import UserError
from sams.tables.repeats import least_p, over_repeats


def test_t_interval_and_p_are_those_of_scipy() -> None:
    draw = random.Random(0)
    method, base = ([draw.gauss(mean, 1.0) for _ in range(5)] for mean in (1.0, 0.0))
    found = over_repeats([one - other for one, other in zip(method, base, strict=True)])
    expected = stats.ttest_rel(method, base)
    interval = expected.confidence_interval(0.95)
    assert found.p_t == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))


def test_sign_flips_by_hand() -> None:
    # Of the eight sums of ±1 ±2 ±3, 6 and -6 are as far from 0 as 6; of those of 3 - 2 - 1 = 0, all are.
    assert over_repeats([1.0, 2.0, 3.0]).p_sign_flip == 2 / 8 == least_p(3)
    assert over_repeats([3.0, -2.0, -1.0]).p_sign_flip == 1.0
    assert over_repeats([3.0, -1.0]).p_sign_flip == 1.0 and over_repeats([3.0, 1.0]).p_sign_flip == 0.5
    # Of 0.1, 0.2 and -0.3 all sums that are 0 but for rounding count.
    assert over_repeats([0.1, 0.2, -0.3]).p_sign_flip == 1.0


def test_sign_flips_are_exact_and_agree_with_scipy() -> None:
    differences = [0.8, -0.1, 0.5, 0.9, 0.3, 0.2]
    expected = stats.permutation_test(
        (differences, [0.0] * 6), lambda x, y: (x - y).sum(), permutation_type="samples", n_resamples=10_000
    )
    assert over_repeats(differences).p_sign_flip == pytest.approx(expected.pvalue)


def test_equal_differences_and_none() -> None:
    assert over_repeats([2.0, 2.0]).p_t == 0.0 and over_repeats([0.0, 0.0]).p_t == 1.0
    assert over_repeats([0.0, 0.0]).p_sign_flip == 1.0


def test_many_seeds_are_refused_and_twenty_are_not_slow() -> None:
    assert over_repeats([1.0] * 19 + [2.0]).p_sign_flip == least_p(20)
    with pytest.raises(UserError, match="21 seeds"):
        over_repeats([1.0] * 21)
