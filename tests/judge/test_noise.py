import math
import random
import statistics

import pytest

from sams.judge.ask import Judgment
from sams.judge.calls import Reading
from sams.judge.noise import judge_standard_error
from sams.scoring.alpaca_eval import judge_outputs
from sams.study.recipes import ScoreRecipe
from sams.study.settings import Judge
from tests.judge.endpoint import KEY, Endpoint, serving

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


def test_repeats_of_a_pair_keep_their_variance_over_both_orders(monkeypatch: pytest.MonkeyPatch) -> None:
    """AlpacaEval by a judge without log-probs that says m twice for the first order, then m and M for the second."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    orders: list[str] = []

    def fault(request: str, time: int) -> str:
        orders.append(request)
        return "text:M" if request != orders[0] and time == 2 else "text:m"

    with serving(Endpoint(fault)) as endpoint:
        settings = {"kind": "openai", "base_url": endpoint.base_url, "model": "judge", "concurrency": 1}
        judge = Judge.model_validate(settings | {"log_probs": False, "repeats": 2})
        row = {"instruction": "in order : 2 3 5", "output": "2", "generator": "them", "dataset": ""}
        recipe = ScoreRecipe(judge=judge, world=None)
        _, [[judgment]] = judge_outputs(recipe, [row], [[{**row, "output": "7"}]], {}, store=None)
    assert sorted(reading.value for reading in judgment.readings) in ([1.5, 2.0], [1.0, 1.5])
    assert judge_standard_error([judgment], 100) == pytest.approx(100 * math.sqrt(0.125 / 2))
