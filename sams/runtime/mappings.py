"""Nested mappings as flat ones, without torch or MLflow: figures of a metrics file, settings of a recipe."""

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any

from sams.runtime.files import canonical_json


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Return the finite numbers of a metrics.json; nested keys are joined by `/` (`categories/math`)."""
    figures: dict[str, float] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            figures.update({f"{key}/{inner}": number for inner, number in numbers(value).items()})
        elif not isinstance(value, bool) and isinstance(value, Real) and math.isfinite(value):
            figures[key] = float(value)
    return figures


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested settings as text by dotted key (`training.beta`); lists and null as JSON."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, str) else canonical_json(value)
    return flat
