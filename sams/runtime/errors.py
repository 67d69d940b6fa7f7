"""Errors that users can correct, reported in one line with location, problem and remedy."""

import difflib

LONGEST = 300  # characters of a library's message that are quoted


class UserError(Exception):
    """Error in the input, the settings or the machine, reported in one line.

    Args:
        problem: the problem and the expected value, without a full stop.
        where: file, row or settings key (``data/train.jsonl, row 7, key 'chosen'``).
        remedy: how to correct it, without a full stop.
    """

    def __init__(self, problem: str, *, where: str = "", remedy: str = "") -> None:
        text = f"{where}: {problem}" if where else problem
        if remedy:
            text = f"{text}; {remedy}"
        super().__init__(" ".join(text.split()))
        self.problem = problem


def first_line(error: BaseException) -> str:
    """Return the first line of a library's error message, shortened, or the error's class if it has no message."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return line if len(line) <= LONGEST else f"{line[:LONGEST]} ..."


def nearest(name: object, known: list[str]) -> str:
    """Return ``; did you mean X?`` for the known name that is most similar to `name`, or an empty text."""
    near = difflib.get_close_matches(str(name), known, n=1)
    return f"; did you mean {near[0]}?" if near else ""
