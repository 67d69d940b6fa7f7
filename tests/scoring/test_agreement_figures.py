"""Figures of two judges' agreement, compared with scipy, scikit-learn and known truths."""

from typing import Any

import numpy as np
import pytest
from scipy.stats import kendalltau, pearsonr, spearmanr
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import cohen_kappa_score

from sams.scoring.agreement_figures import (
    PENALTY,
    Draws,
    Pairs,
    by_margin,
    figures_of,
    length_coefficient,
    model_figures,
    win_rates,
    with_intervals,
)

NO_DRAWS = Draws(np.zeros(0, int), np.zeros(0, int))
FLIPPED, LEANS = 0.15, {"record": 0.3, "judge": 0.8}


def made(rng: np.random.Generator, instructions: int, models: int = 2, *, lean: float | None = None) -> Pairs:
    """Return pairs of a record that leans to length, and of a judge with a known rate of errors or a known lean.

    Errors come by instruction: some are hard for all models.
    """
    item, model = np.repeat(np.arange(instructions), models), np.tile(np.arange(models), instructions)
    log_length = rng.normal(-0.2, 0.8, len(item))
    quality = 0.7 * (model - models / 2)
    chance = 1 / (1 + np.exp(-(quality + LEANS["record"] * log_length)))
    record = (rng.random(len(item)) < chance).astype(float)
    if lean is None:
        error = rng.beta(0.3, 0.3 * (1 - FLIPPED) / FLIPPED, instructions)[item]
        judge = np.where(rng.random(len(item)) < error, 1 - record, record)
    else:
        judge = (rng.random(len(item)) < 1 / (1 + np.exp(-(quality + lean * log_length)))).astype(float)
    return Pairs(item, model, record, judge, np.column_stack([judge, judge]), log_length)


def soft(rng: np.random.Generator, count: int = 300) -> Pairs:
    """Return pairs with preferences that are neither 0 nor 1, some of them equal."""
    record = np.round(rng.random(count), 1)
    judge = np.clip(np.round(record + rng.normal(0, 0.3, count), 1), 0, 1)
    orders = np.clip(np.column_stack([judge - 0.2, judge + 0.2]), 0, 1)
    item, model = np.arange(count) // 3, np.arange(count) % 3
    return Pairs(item, model, record, judge, orders, np.round(rng.normal(size=count), 1))


def test_figures_are_those_of_scipy_and_scikit_learn() -> None:
    pairs = soft(np.random.default_rng(1))
    found = figures_of(pairs)
    sharp = pairs.take((pairs.record != 0.5) & (pairs.judge != 0.5))
    sharp_found = figures_of(sharp)
    ours, theirs = sharp.judge > 0.5, sharp.record > 0.5
    assert sharp_found["kappa"] == pytest.approx(cohen_kappa_score(ours, theirs))
    assert sharp_found["agreement"] == pytest.approx(100 * np.mean(ours == theirs))
    assert sharp_found["agreement_baseline"] == pytest.approx(100 * np.mean(~theirs))
    for figures, rows in ((found, pairs), (sharp_found, sharp)):
        assert figures["pearson"] == pytest.approx(pearsonr(rows.judge, rows.record).statistic)
        assert figures["spearman"] == pytest.approx(spearmanr(rows.judge, rows.record).statistic)
        assert figures["difference"] == pytest.approx(np.mean(np.abs(rows.judge - rows.record)))
    rates = win_rates(pairs, NO_DRAWS, 3)
    assert model_figures(np.array([3.0, 1, 2, 2]), np.array([9.0, 2, 2, 4])) == pytest.approx(
        {
            "win_rate_shift": -2.25,
            "models_pearson": pearsonr([3, 1, 2, 2], [9, 2, 2, 4]).statistic,
            "models_spearman": spearmanr([3, 1, 2, 2], [9, 2, 2, 4]).statistic,
            "models_kendall": kendalltau([3, 1, 2, 2], [9, 2, 2, 4]).statistic,
        }
    )
    assert rates[0] == pytest.approx([100 * pairs.judge[pairs.model == model].mean() for model in range(3)])

    # Soft preferences as two weighted rows each; the intercepts are hardly penalised there either.
    design = np.column_stack([pairs.log_length, pairs.model[:, None] == np.arange(3)])
    fitted = LogisticRegression(C=1 / PENALTY, fit_intercept=False, tol=1e-8).fit(
        np.vstack([design, design]),
        np.repeat([1, 0], len(pairs)),
        sample_weight=np.concatenate([pairs.record, 1 - pairs.record]),
    )
    assert length_coefficient(pairs, pairs.record) == pytest.approx(fitted.coef_[0, 0], abs=1e-4)


def test_draws_orders_and_lengths_by_hand() -> None:
    """Four pairs: agreed, not agreed, a draw of the judge, a draw of the record."""
    nan = float("nan")
    pairs = Pairs(
        item=np.arange(4),
        model=np.array([0, 0, 0, 1]),
        record=np.array([0.9, 0.2, 0.6, 0.5]),
        judge=np.array([0.7, 0.8, 0.5, 0.1]),
        orders=np.array([[0.7, 0.9], [0.4, 0.8], [nan, 0.5], [0.1, 0.1]]),
        log_length=np.array([1.0, -1.0, 0.0, 1.0]),
    )
    found = figures_of(pairs)
    assert found["agreement"] == pytest.approx(50.0)  # 1, 0 and a half of three
    assert found["agreement_longer"] == pytest.approx(100 * 2.5 / 3)
    assert found["agreement_baseline"] == pytest.approx(100 / 3)
    assert found["agreement_both_orders"] == pytest.approx(50.0)  # 0.8 agrees, 0.6 does not
    assert found["consistency"] == pytest.approx(200 / 3)
    assert found["first"] == pytest.approx(200 / 3)  # 0 1, 1 1, 1 0
    assert found["longer_judge"] == pytest.approx(100 / 3)
    assert found["longer_record"] == pytest.approx(100 * 2.5 / 3)
    # Two identical outputs of the second model.
    judge, record = win_rates(pairs, Draws(np.array([7, 8]), np.array([1, 1])), 2)
    assert judge == pytest.approx([100 * 2.0 / 3, 100 * 1.1 / 3])
    assert record == pytest.approx([100 * 1.7 / 3, 50.0])
    assert [(each["from"], each["n"], each["value"]) for each in by_margin(pairs)] == [
        (0.5, 1, 50.0),
        (0.7, 1, 0.0),
        (0.8, 1, 100.0),
    ]


def test_intervals_are_over_instructions() -> None:
    """The width is that of the standard error of a mean of clusters, not of single pairs."""
    pairs = made(np.random.default_rng(3), 400, models=3)
    figures, rates = with_intervals(pairs, NO_DRAWS, 3, resamples=400)
    right = (pairs.judge == pairs.record).reshape(400, 3)
    clustered = 100 * right.mean(axis=1).std(ddof=1) / 400**0.5
    single = 100 * right.std(ddof=1) / 1200**0.5
    width = (figures["agreement"]["high"] - figures["agreement"]["low"]) / 3.92
    assert width == pytest.approx(clustered, rel=0.1) and clustered > 1.2 * single
    by_model = 100 * pairs.judge[pairs.model == 1].std(ddof=1) / 400**0.5
    judge = rates[1]["judge"]
    assert (judge["high"] - judge["low"]) / 3.92 == pytest.approx(by_model, rel=0.1)


def test_full_agreement_has_an_interval() -> None:
    pairs = made(np.random.default_rng(4), 20, models=1)
    same = Pairs(**{**vars(pairs), "judge": pairs.record})
    figures, _ = with_intervals(same, NO_DRAWS, 1, resamples=10)
    # 20 of 20 have a probability of 2.5 %.
    assert figures["agreement"]["low"] == pytest.approx(100 * 0.025 ** (1 / 20))
    assert figures["agreement"]["high"] == 100.0 and figures["pearson"]["value"] == pytest.approx(1.0)
    assert np.isnan(figures["models_pearson"]["value"])  # of one model


def test_a_model_without_judgments_is_left_out() -> None:
    pairs = made(np.random.default_rng(6), 30, models=3)
    pairs = pairs.take(pairs.model != 1)
    figures, rates = with_intervals(pairs, NO_DRAWS, 3, resamples=10)
    assert np.isnan(rates[1]["judge"]["value"]) and np.isnan(figures["models_pearson"]["value"])
    shifts = [rates[model]["judge"]["value"] - rates[model]["record"]["value"] for model in (0, 2)]
    assert figures["win_rate_shift"]["value"] == pytest.approx(np.mean(shifts))
    assert figures["win_rate_shift"]["low"] < figures["win_rate_shift"]["high"]


def covered(simulations: int, resamples: int, instructions: int) -> dict[str, float]:
    """Return the share of simulations whose interval holds the truth."""
    rng = np.random.default_rng(5)
    hits: dict[str, list[bool]] = {"agreement": [], "length_judge": [], "length_shift": []}
    truth = {
        "agreement": 100 * (1 - FLIPPED),
        "length_judge": LEANS["judge"],
        "length_shift": LEANS["judge"] - LEANS["record"],
    }

    def note(name: str, figures: dict[str, Any]) -> None:
        hits[name].append(figures[name]["low"] <= truth[name] <= figures[name]["high"])

    for seed in range(simulations):
        pairs = made(rng, instructions)
        note("agreement", with_intervals(pairs, NO_DRAWS, 2, resamples=resamples, seed=seed)[0])
        pairs = made(rng, instructions, lean=LEANS["judge"])
        figures, _ = with_intervals(pairs, NO_DRAWS, 2, resamples=resamples, seed=seed)
        note("length_judge", figures)
        note("length_shift", figures)
    return {name: float(np.mean(each)) for name, each in hits.items()}


@pytest.mark.slow
def test_intervals_cover_the_truth() -> None:
    """Of 200 intervals of 95 %, at least 90 % hold a known rate of errors and a known lean to length."""
    shares = covered(200, 200, 100)
    assert all(0.90 <= share <= 0.99 for share in shares.values()), shares
