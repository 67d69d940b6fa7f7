"""Expand tuning grids: one method for each point, and the same number of points for every method."""

import itertools
import random
from typing import Any

from sams.runtime.errors import UserError
from sams.study.study import BASE_METHOD, Study, with_point

Point = dict[str, float]


def points(study: Study, method: str) -> list[Point]:
    """Return the points to try for a method, first the method's values in the study.

    If a grid has more points than `tuning_budget`, the other points are a random sample, the same in every call, so
    that every method is tuned with the same number of runs.
    """
    axes = study.grids[method].axes
    own = own_point(study, method)
    others = [
        point
        for values in itertools.product(*(axis.values for axis in axes.values()))
        if (point := dict(zip(axes, values, strict=True))) != own
    ]
    if study.tuning_budget is not None:
        others = random.Random(f"grid/{method}").sample(others, study.tuning_budget - 1)
    return [own, *others]


def own_point(study: Study, method: str) -> Point:
    """Return the point of the grid with the method's values in the study."""
    settings = study.preference_of(method)
    point = {}
    for key in study.grids[method].axes:
        group, _, name = key.rpartition(".")
        point[key] = getattr(settings, group)[name] if group else getattr(settings, name)
    return point


def written_out(study: Study, methods: list[str] | None = None) -> dict[str, Any]:
    """Return an overlay in which every point is a method: `rrhf-grid0` has the values of the study.

    The overlay scores nothing: compare its runs by test accuracy, or score them in a study that names them.

    Raises:
        UserError: a method has no grid.
    """
    chosen = methods or [method for method in study.preference_methods if method in study.grids]
    made: dict[str, Any] = {}
    for method in chosen:
        if method not in study.grids or method not in study.preference_methods:
            raise UserError(
                f"method '{method}' has no grid",
                where="--method",
                remedy=f"choose of {', '.join(study.grids)}",
            )
        for number, point in enumerate(points(study, method)):
            made[f"{method}-grid{number}"] = with_point(study.method_settings[method].model_dump(), point)
    return {
        "study": f"{study.study}-grid",
        "methods": [BASE_METHOD, *made],
        "method_settings": made,
        "benchmarks": {"alpaca_eval": None, "mt_bench": None},
    }
