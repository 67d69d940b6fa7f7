"""Mistakes a user can mend: one line that names the place, what is wrong and what to do."""

import difflib

LONGEST = 300  # characters that are quoted of what somebody else's code says


class UserError(Exception):
    """A mistake in the input, the settings or the machine, told in one line.

    Args:
        problem: what is wrong and what was expected, without a full stop.
        where: the file, row or config key concerned (``data/train.jsonl, row 7, key 'chosen'``).
        remedy: what to do about it, without a full stop.
    """

    def __init__(self, problem: str, *, where: str = "", remedy: str = "") -> None:
        text = f"{where}: {problem}" if where else problem
        if remedy:
            text = f"{text}; {remedy}"
        super().__init__(" ".join(text.split()))


def first_line(error: BaseException) -> str:
    """What an error of somebody else's code says first, or its name where it says nothing."""
    said = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return said if len(said) <= LONGEST else f"{said[:LONGEST]} ..."


def nearest(name: object, known: list[str]) -> str:
    """``; did you mean X?`` for the known name that is most like a given one; empty if none is."""
    near = difflib.get_close_matches(str(name), known, n=1)
    return f"; did you mean {near[0]}?" if near else ""
