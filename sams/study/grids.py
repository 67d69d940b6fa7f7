"""Expand tuning grids: one method for each point, and the same number of points for every method."""

import itertools
import random
from typing import Any

from sams.runtime.errors import UserError
from sams.study.recipes import recipe_of
from sams.study.settings import benchmark_settings
from sams.study.study import BASE_METHOD, Study, with_point

Point = dict[str, float]


def points(study: Study, method: str) -> list[Point]:
    """Return the points to try for a method, first the method's values in the study.

    If a grid has more points than `tuning_budget`, the other points are a random sample, the same in every call, so
    that every method is tuned with the same number of runs.

    Raises:
        UserError: the method's own value is not in its grid.
    """
    axes = study.grids[method].axes
    own = own_point(study, method)
    for key, value in own.items():
        if value not in axes[key].values:
            raise UserError(
                f"the method's own value {value} is not in {axes[key].values}",
                where=f"grids.{method}.axes.{key}",
                remedy="add it, so that the grid contains the study's own run",
            )
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
        point[key] = getattr(settings, group).get(name) if group else getattr(settings, name)
    return point


def written_out(study: Study, methods: list[str] | None = None) -> dict[str, Any]:
    """Return an overlay in which every point is a method with its values in its name: `dpo-lr1e-06-beta0.1`.

    The study's own point keeps the name of the method. The runs share the study's folder, and so its data, SFT model,
    reference and runs, unless these methods alone would change one of them: the study is `<study>-grid` then.
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
        settings = study.method_settings[method].model_dump()
        own, *others = points(study, method)
        made |= {method: settings} | {
            _name(method, point, own): with_point(settings, point) for point in others
        }
    overlay = {
        "methods": [BASE_METHOD, *made],
        "method_settings": made,
        "benchmarks": {name: None for name, kind in benchmark_settings().items() if kind.has_judge},
    }
    return ({} if _shares(study, [BASE_METHOD, *chosen]) else {"study": f"{study.study}-grid"}) | overlay


def _name(method: str, point: Point, own: Point) -> str:
    """Return the name of a method with the values of a point that are not those of the study."""
    keys = {key: key.rpartition(".")[2].replace("learning_rate", "lr") for key in point}
    return "-".join([method, *(f"{keys[key]}{value:g}" for key, value in point.items() if value != own[key])])


def _shares(study: Study, methods: list[str]) -> bool:
    """Return whether some of a study's methods have the same data, SFT model and reference as all of them."""
    part = study.model_copy(update={"methods": methods})
    stages = ["prepare_data", "tokenise", "compute_reference"]
    stages += ["train_sft"] if study.sft else []
    return all(recipe_of(part, stage) == recipe_of(study, stage) for stage in stages)
