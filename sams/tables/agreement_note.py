"""The note below scores on how well their judge agrees with recorded judgments (`judge.agreement`)."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from sams.runtime.errors import UserError
from sams.runtime.files import sha256_of
from sams.study.settings import Judge

COMMAND = "sams judge-agreement"
DIGITS = 12
"""Digits of the file's SHA-256 in the note."""
KEYS = ("judge", "requested", "record", "n", "figures", "date")


def read_agreement(path: Path) -> dict[str, Any]:
    """Read an agreement.json.

    Raises:
        UserError: it cannot be read, or is another file.
    """
    where = f"benchmarks.judge.agreement: {path}"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        problem = "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read: {error}"
        raise UserError(problem, where=where, remedy=f"make it with `{COMMAND}`") from None
    if not isinstance(content, dict) or any(key not in content for key in KEYS):
        raise UserError(f"not a file of `{COMMAND}`", where=where, remedy="give its agreement.json")
    return content


def agreement_notes(settings: Judge, judges: Collection[str]) -> list[str]:
    """Return the note on a judge's agreement, or a warning if the named file says nothing about these scores.

    Args:
        settings: the study's judge.
        judges: names of the judges that gave the scores shown.
    """
    if settings.agreement is None:
        return []
    path = Path(settings.agreement)
    try:
        content = read_agreement(path)
    except UserError as error:
        return [f"Warning: {error}."]
    figures, record, judge = content["figures"], content["record"]["judge"], content["judge"]
    source = f"{path.name}, SHA-256 {sha256_of(path)[:DIGITS]}, {content['date'][:10]}"
    others = sorted(set(judges) - {judge})
    asked = {key: content["requested"].get(key) for key in settings.asked_with}
    if others or asked != settings.asked_with:
        here = ", ".join(others) or f"{judge} asked with {json.dumps(settings.asked_with)}"
        there = judge if others else f"{judge} asked with {json.dumps(asked)}"
        return [
            f"Warning: the agreement file ({source}) is of judge {there}, the scores are of {here}: it says nothing "
            "about them."
        ]
    models = content["n"]["models"]
    return [
        f"Judge {judge} prefers the same output as {record} in {_shown(figures['agreement'])} of "
        f"{content['n']['decided']:,} recorded pairs (always preferring the longer output: "
        f"{_number(figures['agreement_longer']['value'])} %). Win rates of {models} model{'s' * (models > 1)} differ "
        f"by {_shown(figures['win_rate_shift'], ' points', '+')} in the mean; the longer output is preferred in "
        f"{_number(figures['longer_judge']['value'])} %, by {record} in "
        f"{_number(figures['longer_record']['value'])} % ({source})."
    ]


def _shown(figure: dict[str, float | None], unit: str = " %", sign: str = "") -> str:
    """Return a value with its interval."""
    low, high = (_number(figure[key], sign) for key in ("low", "high"))
    return f"{_number(figure['value'], sign)}{unit} [{low}, {high}]"


def _number(value: float | None, sign: str = "") -> str:
    return "–" if value is None else f"{value:{sign}.1f}"
