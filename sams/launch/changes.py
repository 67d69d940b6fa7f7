"""Find what has changed since a job's last run, from the parameters of its rule then and now."""

import ast
import json
from collections.abc import Iterable, Iterator
from typing import Any

from sams.runtime.files import canonical_json

SHOWN = 5

SECTIONS = {
    frozenset({"method", "training", "scheduler"}): "preference",
    frozenset({"training", "watching"}): "sft",
    frozenset({"training", "scheduler"}): "pretrain",
}
"""Section of the config that is `training` in a recipe, by keys of the recipe."""


def code_text(code: dict[str, str]) -> str:
    """Return the rule parameter with the digests of a job's modules."""
    return canonical_json({"code": code})


def sources_text(sources: dict[str, str]) -> str:
    """Return the rule parameter with the digests of a job's sources."""
    return canonical_json({"sources": sources})


def changes(before: Iterable[str], now: Iterable[str]) -> str:
    """Return settings, modules and sources that differ, at most `SHOWN` of them; empty if there is none.

    Args:
        before: `repr` of the parameters of the last run that the rule no longer has.
        now: `repr` of the parameters that are new.
    """
    old, new = _read(before), _read(now)
    texts = [
        f"{key}: {_shown(old['settings'], key)} -> {_shown(new['settings'], key)}"
        for key in _differing(old["settings"], new["settings"])
    ]
    code = _differing(old["code"], new["code"])
    # If a setting names another loss or selector, modules that were added or removed are not listed.
    common = old["code"].keys() & new["code"].keys()
    texts += [
        f"code of {module}" for module in code if module in common or (not texts and not common & set(code))
    ]
    texts += [f"{source} (source changed)" for source in _differing(old["sources"], new["sources"])]
    rest = f" and {len(texts) - SHOWN} more" if len(texts) > SHOWN else ""
    return ", ".join(texts[:SHOWN]) + rest


def _differing(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Return keys whose values differ, or that only one mapping has."""
    return sorted(key for key in old.keys() | new.keys() if _shown(old, key) != _shown(new, key))


def _shown(values: dict[str, Any], key: str) -> str:
    return json.dumps(values[key], ensure_ascii=False) if key in values else "not set"


def _read(parameters: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Parse a rule's parameters: settings by dotted key, digests of modules and of sources."""
    read: dict[str, dict[str, Any]] = {"settings": {}, "code": {}, "sources": {}}
    for parameter in parameters:
        try:
            value = json.loads(ast.literal_eval(parameter))
        except (ValueError, SyntaxError, TypeError, RecursionError):
            continue
        if not isinstance(value, dict):
            continue
        for kind in ("code", "sources"):
            if value.keys() == {kind}:
                read[kind] |= value[kind]
                break
        else:
            read["settings"] |= dict(_flat(_sections(value)))
    return read


def _sections(recipe: dict[str, Any]) -> dict[str, Any]:
    """Return a recipe in which `training` has the name of its config section."""
    section = next((name for keys, name in SECTIONS.items() if keys <= recipe.keys()), "training")
    return {section if key == "training" else key: value for key, value in recipe.items()}


def _flat(value: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, inner in value.items():
        if isinstance(inner, dict) and inner:
            yield from _flat(inner, f"{above}{key}.")
        else:
            yield f"{above}{key}", inner
