"""Figures of how well two judges agree on the same pairs, with bootstrap intervals over instructions.

Preferences are for the model's output, from 0 (the baseline's) to 1; 0.5 is a draw. Shares are in percent.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Indices = NDArray[np.intp]

RESAMPLES = 1000
LEVEL = 95
LEAST_MODELS = 3  # of a correlation over models
SHARES = ("agreement", "agreement_both_orders", "consistency", "first")
"""Figures that can be 0 or 100 % in every resample."""
MARGINS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.99, 1.0)
"""Limits of the record's probability of the preferred output, by which `by_margin` divides pairs."""
# Weight of the penalty on the logistic coefficients: without it, pairs that are all of one kind have none.
PENALTY = 0.01


@dataclass(frozen=True)
class Pairs:
    """Pairs of two different outputs, with the preferences of the recording judge and of the tested one.

    Args:
        item: number of the instruction.
        model: number of the model.
        record: recorded preference.
        judge: preference of the tested judge, computed as a scoring computes it.
        orders: its preferences with the baseline first and with the model first, (pairs, 2); NaN if not judged.
        log_length: log of the ratio of the lengths in characters, model to baseline, each plus 1.
    """

    item: "Indices"
    model: "Indices"
    record: "Floats"
    judge: "Floats"
    orders: "Floats"
    log_length: "Floats"

    def __len__(self) -> int:
        return len(self.item)

    def take(self, chosen: Any) -> Self:
        """Return some of the pairs."""
        return type(self)(**{field.name: getattr(self, field.name)[chosen] for field in fields(self)})


@dataclass(frozen=True)
class Draws:
    """Preferences without a call: each model's number of identical outputs, which are draws of both judges."""

    item: "Indices"
    model: "Indices"

    def take(self, chosen: Any) -> Self:
        """Return some of them."""
        return type(self)(self.item[chosen], self.model[chosen])


def figures_of(pairs: Pairs) -> dict[str, float]:
    """Return the figures of pairs; NaN where there are too few.

    * `agreement`: how often both judges prefer the same output. Draws of the record are left out; those of the judge
      count one half. `agreement_longer` and `agreement_baseline` are the same of two rules: prefer the longer output,
      prefer the baseline's. `kappa` is Cohen's. `agreement_both_orders` is that of the mean over both orders.
    * `pearson`, `spearman`, `difference`: correlations and mean absolute difference of the preferences.
    * `consistency`: how often the same output is preferred in both orders; `first`: how often the one shown first is.
    * `longer_judge`, `longer_record`, `longer_shift`: how often the longer output is preferred, and the difference.
    * `length_judge`, `length_record`, `length_shift`: coefficients of the log of the length ratio in a logistic
      regression of the preferences, with an intercept for each model, and the difference.
    """
    import numpy as np

    decided = pairs.take(pairs.record != 0.5)
    chosen = decided.record > 0.5
    of_judge, longer = _hard(decided.judge), _hard(0.5 + decided.log_length)
    observed, p_judge, p_record = _agreement(of_judge, chosen), _mean(of_judge), _mean(chosen)
    by_chance = p_judge * p_record + (1 - p_judge) * (1 - p_record)
    both = pairs.take(~np.isnan(pairs.orders).any(axis=1))
    hard = _hard(both.orders)
    decided_both = decided.take(~np.isnan(decided.orders).any(axis=1))
    unequal = pairs.take(pairs.log_length != 0)
    favours_longer = {
        name: 100 * _mean(np.where(unequal.log_length > 0, hard_value, 1 - hard_value))
        for name, hard_value in (("judge", _hard(unequal.judge)), ("record", _hard(unequal.record)))
    }
    slopes = {
        "judge": length_coefficient(pairs, pairs.judge),
        "record": length_coefficient(pairs, pairs.record),
    }
    return {
        "agreement": 100 * observed,
        "agreement_longer": 100 * _agreement(longer, chosen),
        "agreement_baseline": 100 * (1 - p_record),
        "kappa": (observed - by_chance) / (1 - by_chance) if by_chance < 1 else math.nan,
        "agreement_both_orders": 100
        * _agreement(_hard(decided_both.orders.mean(axis=1)), decided_both.record > 0.5),
        "pearson": _correlation(pairs.judge, pairs.record),
        "spearman": _correlation(_ranks(pairs.judge), _ranks(pairs.record)),
        "difference": _mean(abs(pairs.judge - pairs.record)),
        "consistency": 100 * _mean(1 - abs(hard[:, 0] - hard[:, 1])),
        "first": 100 * _mean((1 - hard[:, 0] + hard[:, 1]) / 2),
        "longer_judge": favours_longer["judge"],
        "longer_record": favours_longer["record"],
        "longer_shift": favours_longer["judge"] - favours_longer["record"],
        "length_judge": slopes["judge"],
        "length_record": slopes["record"],
        "length_shift": slopes["judge"] - slopes["record"],
    }


def counts_of(pairs: Pairs) -> dict[str, int]:
    """Return the numbers of pairs that figures are computed from.

    All, those that the record decides, those judged in both orders, both, and those of outputs of unequal length.
    """
    import numpy as np

    decided, both = pairs.record != 0.5, ~np.isnan(pairs.orders).any(axis=1)
    return {
        "pairs": len(pairs),
        "decided": int(decided.sum()),
        "both_orders": int(both.sum()),
        "decided_both_orders": int((decided & both).sum()),
        "unequal": int((pairs.log_length != 0).sum()),
    }


def win_rates(pairs: Pairs, draws: Draws, models: int) -> "tuple[Floats, Floats]":
    """Return the win rate of each model in percent, by the judge and by the record; identical outputs are draws."""
    import numpy as np

    halves = np.bincount(draws.model, minlength=models)
    counts = np.bincount(pairs.model, minlength=models) + halves
    with np.errstate(invalid="ignore"):
        rates = [
            100 * (np.bincount(pairs.model, values, minlength=models) + 0.5 * halves) / counts
            for values in (pairs.judge, pairs.record)
        ]
    return rates[0], rates[1]


def model_figures(judge: "Floats", record: "Floats") -> dict[str, float]:
    """Return the mean shift of win rates and, for three models or more, their correlations.

    Models without a judged pair, whose win rates are NaN, are left out.
    """
    import numpy as np

    known = ~np.isnan(judge)
    judge, record = judge[known], record[known]
    enough = len(judge) >= LEAST_MODELS
    return {
        "win_rate_shift": _mean(judge - record),
        "models_pearson": _correlation(judge, record) if enough else math.nan,
        "models_spearman": _correlation(_ranks(judge), _ranks(record)) if enough else math.nan,
        "models_kendall": _correlation(_signs(judge), _signs(record)) if enough else math.nan,
    }


def with_intervals(
    pairs: Pairs, draws: Draws, models: int, *, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[dict[str, dict[str, float]], list[dict[str, dict[str, float]]]]:
    """Return all figures, and the win rates of each model, as {value, low, high}.

    The intervals of 95 % are percentiles of resamples of instructions, with all pairs of each. Models are not
    resampled: the figures are of these models.
    """
    import numpy as np

    def computed(sample: Pairs, drawn: Draws) -> list[float]:
        judge, record = win_rates(sample, drawn, models)
        return [*figures_of(sample).values(), *model_figures(judge, record).values(), *judge, *record]

    values = computed(pairs, draws)
    samples = np.array([computed(*drawn) for drawn in _resampled(pairs, draws, resamples, seed)])
    tail = (100 - LEVEL) / 2
    found = []
    for value, column in zip(values, samples.T, strict=True):
        known = column[~np.isnan(column)]
        # A figure that many resamples do not have has no interval.
        low, high = (
            np.percentile(known, [tail, 100 - tail])
            if len(known) > 0.9 * len(column)
            else (math.nan, math.nan)
        )
        found.append({"value": float(value), "low": float(low), "high": float(high)})
    names = [*figures_of(pairs), *model_figures(*win_rates(pairs, draws, models))]
    figures = dict(zip(names, found, strict=False))
    instructions = len(np.unique(pairs.item))
    for name in SHARES:
        figures[name] |= _at_the_end(figures[name], instructions)
    rates = found[len(names) :]
    by_model = [{"judge": rates[model], "record": rates[models + model]} for model in range(models)]
    return figures, by_model


def by_margin(pairs: Pairs) -> list[dict[str, float]]:
    """Return the agreement by the record's probability of the output that it prefers, with exact intervals."""
    import numpy as np
    from scipy.stats import binomtest

    sure = np.maximum(pairs.record, 1 - pairs.record)
    found = []
    for low, high in itertools.pairwise(MARGINS):
        inside = pairs.take((sure > low) & (sure <= high))
        if not len(inside):
            continue
        agreed = 1 - abs(_hard(inside.judge) - (inside.record > 0.5))
        interval = binomtest(round(agreed.sum()), len(inside)).proportion_ci()
        found.append(
            {
                "from": low,
                "to": high,
                "n": len(inside),
                "value": 100 * _mean(agreed),
                "low": 100 * float(interval.low),
                "high": 100 * float(interval.high),
            }
        )
    return found


def length_coefficient(pairs: Pairs, preferences: "Floats") -> float:
    """Return the coefficient of `log_length` in a logistic regression of preferences, by Newton's method.

    Its unit is that of the local judge's `length_lean`: logits per log of the length ratio.
    """
    import numpy as np

    models, model = np.unique(pairs.model, return_inverse=True)
    if not len(pairs):
        return math.nan
    design = np.column_stack([pairs.log_length, model[:, None] == np.arange(len(models))]).astype(float)
    weights = np.zeros(design.shape[1])
    for _ in range(50):
        fitted = 1 / (1 + np.exp(-np.clip(design @ weights, -30, 30)))
        slope = design.T @ (preferences - fitted) - PENALTY * weights
        curvature = (design * (fitted * (1 - fitted))[:, None]).T @ design
        step = np.linalg.solve(curvature + PENALTY * np.eye(len(weights)), slope)
        weights += np.clip(step, -3, 3)
        if abs(step).max() < 1e-6:
            break
    return float(weights[0])


def _resampled(pairs: Pairs, draws: Draws, count: int, seed: int) -> "Iterator[tuple[Pairs, Draws]]":
    """Yield resamples of the instructions."""
    import numpy as np

    rng = np.random.default_rng(seed)
    items = np.unique(np.concatenate([pairs.item, draws.item]))
    of_pairs, of_draws = np.searchsorted(items, pairs.item), np.searchsorted(items, draws.item)
    for _ in range(count):
        times = np.bincount(rng.integers(len(items), size=len(items)), minlength=len(items))
        yield (
            pairs.take(np.repeat(np.arange(len(pairs)), times[of_pairs])),
            draws.take(np.repeat(np.arange(len(draws.item)), times[of_draws])),
        )


def _at_the_end(figure: dict[str, float], instructions: int) -> dict[str, float]:
    """Return the interval of a share of 0 or 100 %, of which resampling shows no spread.

    It is the exact binomial one, as if each instruction were one trial.
    """
    from scipy.stats import binomtest

    if figure["value"] not in (0.0, 100.0):
        return {}
    interval = binomtest(round(instructions * figure["value"] / 100), instructions).proportion_ci()
    return {"low": 100 * float(interval.low), "high": 100 * float(interval.high)}


def _hard(preferences: "Floats") -> "Floats":
    """Return 1 for the model, 0 for the baseline and 0.5 for a draw."""
    import numpy as np

    return (np.sign(preferences - 0.5) + 1) / 2


def _agreement(hard: "Floats", chosen: "NDArray[np.bool_]") -> float:
    return _mean(1 - abs(hard - chosen))


def _mean(values: Any) -> float:
    return float(values.mean()) if len(values) else math.nan


def _ranks(values: "Floats") -> "Floats":
    """Return ranks; equal values have their mean rank."""
    import numpy as np

    _, index, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: Floats = (np.cumsum(counts) - (counts - 1) / 2)[index]
    return ranks


def _signs(values: "Floats") -> "Floats":
    """Return the signs of all differences; their correlation is Kendall's tau-b."""
    import numpy as np

    signs: Floats = np.sign(values[:, None] - values).ravel()
    return signs


def _correlation(first: "Floats", second: "Floats") -> float:
    """Return Pearson's correlation; NaN if one of both is constant."""
    import numpy as np

    if len(first) < LEAST_MODELS or np.ptp(first) == 0 or np.ptp(second) == 0:
        return math.nan
    return float(np.corrcoef(first, second)[0, 1])
