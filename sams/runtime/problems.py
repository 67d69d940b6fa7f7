"""Pydantic's findings in the words of this project: one line with the key, what was expected and found, and the
nearest name that is known.
"""

import re
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from sams.runtime.errors import nearest


def first_problem(error: ValidationError, kind: type[BaseModel]) -> tuple[str, str]:
    """The first finding: its dotted key, and what is wrong there.

    Args:
        error: what pydantic found.
        kind: the settings that were validated, whose keys are suggested for unknown ones.
    """
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        return key, f"unknown key{nearest(first['loc'][-1], _keys(kind, first['loc'][:-1]))}"
    if first["type"] in ("missing", "value_error"):
        return key, message
    found = f"{message}, found {first['input']!r:.80}"
    if first["type"] == "float_type" and isinstance(first["input"], str):
        found += " (YAML reads 5e-7 as text: write 5.0e-7)"
    if first["type"] == "literal_error":
        found += nearest(first["input"], re.findall(r"'([^']*)'", first["ctx"]["expected"]))
    return key, found


def _keys(kind: type[BaseModel], place: tuple[int | str, ...]) -> list[str]:
    """Keys of the settings that lie at a place of others."""
    groups = [kind]
    for part in place:
        fields = [group.model_fields[part] for group in groups if part in group.model_fields]
        # A name in a mapping and an index of a list are no fields: what they hold is found already.
        groups = [found for field in fields for found in groups_in(field.annotation)] or groups
    return [key for group in groups for key in group.model_fields]


def groups_in(annotation: Any) -> list[type[BaseModel]]:
    """Return the groups of settings that an annotation names."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [group for part in get_args(annotation) for group in groups_in(part)]
