"""Errors of pydantic as one line: the key, the expected and the found value, and the nearest known name."""

import re
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from sams.runtime.errors import nearest


def first_problem(error: ValidationError, kind: type[BaseModel]) -> tuple[str, str]:
    """Return the dotted key and the message of the first error.

    Args:
        error: error of pydantic.
        kind: the validated settings, whose keys are suggested for unknown ones.
    """
    errors = error.errors(include_url=False)
    first = errors[0]
    path, message = first["loc"], first["msg"].removeprefix("Value error, ")
    # A value of several types, such as a boolean or 'auto', has an error for each, with the type in its location.
    types = [each for each in errors if each["loc"] and each["loc"][:-1] == path[:-1]]
    if any(str(each["loc"][-1]).startswith("literal[") for each in types):
        path = path[:-1]
        others = [each["msg"].removeprefix("Input should be ") for each in types[1:]]
        message = " or ".join([message, *others])
    key = ".".join(str(part) for part in path)
    if first["type"] == "extra_forbidden":
        return key, f"unknown key{nearest(first['loc'][-1], _keys(kind, first['loc'][:-1]))}"
    if first["type"] in ("missing", "value_error"):
        return key, message
    text = f"{message}, found {first['input']!r:.80}"
    if first["type"] == "float_type" and isinstance(first["input"], str):
        text += " (YAML reads 5e-7 as text: write 5.0e-7)"
    if first["type"] == "literal_error":
        text += nearest(first["input"], re.findall(r"'([^']*)'", first["ctx"]["expected"]))
    return key, text


def _keys(kind: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """Return the keys of the settings at a path."""
    groups = [kind]
    for part in path:
        fields = [group.model_fields[part] for group in groups if part in group.model_fields]
        # A key of a mapping or an index of a list is not a field: `groups` already holds the type of its value.
        groups = [inner for field in fields for inner in groups_in(field.annotation)] or groups
    return [key for group in groups for key in group.model_fields]


def groups_in(annotation: Any) -> list[type[BaseModel]]:
    """Return the groups of settings that an annotation names."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [group for part in get_args(annotation) for group in groups_in(part)]
