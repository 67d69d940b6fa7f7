"""Running a stage or the command `sams` as a user does, in this process, to see how a mistake is told."""

import json
import re
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from sams import cli
from sams.runtime import stage

Refused = Callable[..., str]


class Case(NamedTuple):
    """A mistake: what is wrong, how it is made, and what the one line must say, as a regular expression."""

    name: str
    made: Any
    says: str


def cases(*groups: Any) -> pytest.MarkDecorator:
    """A table of cases as a parameter `case`."""
    rows = [Case(*row) for row in groups]
    assert len({row.name for row in rows}) == len(rows)
    return pytest.mark.parametrize("case", rows, ids=[row.name for row in rows])


def lines(*rows: Any) -> bytes:
    """JSON lines."""
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Refused:
    """Run a stage's `main` with options, or `sams` with words, which must end as `one_line` says."""

    def run(main: Callable[..., Any] | None, *words: str, says: str, **options: Any) -> str:
        for name, value in options.items():
            words += (f"--{name.replace('_', '-')}", str(value))
        monkeypatch.setattr(sys, "argv", ["sams", *words])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            if main is None:
                cli.main()
            else:
                stage.run(main)
        said = capfd.readouterr()
        return one_line(ended.value.code, said.err, said.out, says)

    return run


def one_line(status: Any, error: str, output: str, says: str) -> str:
    """Exit status 2, no traceback, and as the last thing one line that says what is expected, with a remedy."""
    lines = [line for line in error.splitlines() if line.strip()]
    assert status == 2 and "Traceback" not in error + output, error + output
    told = [line for line in lines if line.startswith("error: ")]
    assert len(told) == 1 and lines[-1] == told[0], error
    place, _, rest = told[0].removeprefix("error: ").partition(": ")
    assert place and rest, f"names no place: {told[0]}"
    assert re.search(r"(;|: give|: choose|: set|: drop|: rename|: write) ?\S+", rest), f"no remedy: {told[0]}"
    assert re.search(says, told[0]), f"{says!r} is not in {told[0]!r}"
    assert len(told[0]) < 900, "a line that nobody reads"
    return told[0]
