"""Error that the judge adds to a score, from repeated judgments."""

import math
import statistics
from collections.abc import Sequence

from sams.judge.ask import Judgment


def judge_standard_error(judgments: Sequence[Judgment], scale: float = 1.0) -> float | None:
    """Return the standard error that the judge's noise gives to the mean over judgments.

    With k judgments of each of n items it is sqrt(sum of the items' variances / k) / n: the spread of the score if
    the same answers were judged again. It is a part of the standard error over items, not an addition to it: an
    item's mean varies by its quality and by the judge. Items that need no call, with one value, have no noise.

    Args:
        judgments: an item each; missing ones are left out.
        scale: factor between a value and the score.

    Returns:
        None without repeated judgments.
    """
    values = [[reading.value for reading in judgment.readings] for judgment in judgments if judgment.readings]
    repeated = [of for of in values if len(of) > 1]
    if not repeated:
        return None
    return scale * math.sqrt(sum(statistics.variance(of) / len(of) for of in repeated)) / len(values)
