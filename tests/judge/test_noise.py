import math
import random
import statistics

import pytest

from sams.judge.ask import Judgment
from sams.judge.calls import Reading
from sams.judge.noise import judge_standard_error

REPEATS, SCORINGS = 3, 500


def test_the_estimate_is_the_spread_of_a_score_that_is_judged_again() -> None:
    """Half of 40 items have a noisy judge of known variance, 20 are certain, and one of these needs no call."""
    rng = random.Random(0)
    quality = [rng.random() for _ in range(40)]
    noise = [0.3 * (number % 2) for number in range(40)]
    scores, estimates = [], []
    for _ in range(SCORINGS):
        judged = [
            Judgment("", tuple(Reading(rng.gauss(mean, spread)) for _ in range(REPEATS if index else 1)))
            for index, (mean, spread) in enumerate(zip(quality, noise, strict=True))
        ]
        scores.append(100 * statistics.fmean(item.value for item in judged))
        estimates.append(judge_standard_error(judged, 100))
    known = 100 * math.sqrt(20 * 0.3**2 / REPEATS) / 40
    assert statistics.stdev(scores) == pytest.approx(known, rel=0.08)
    assert math.sqrt(statistics.fmean(one**2 for one in estimates)) == pytest.approx(known, rel=0.04)


def test_one_judgment_an_item_says_nothing_of_the_judge() -> None:
    assert judge_standard_error([Judgment("", (Reading(1.0),)), Judgment("", missing="refused")]) is None
