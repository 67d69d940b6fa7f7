"""Run a stage or the command `sams` as a user does, in this process, and check how an error is reported."""

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
    """An error: its name, how it is made, and a regular expression for the one line."""

    name: str
    made: Any
    says: str


def cases(*groups: Any) -> pytest.MarkDecorator:
    """Parametrise a test by cases."""
    rows = [Case(*row) for row in groups]
    assert len({row.name for row in rows}) == len(rows)
    return pytest.mark.parametrize("case", rows, ids=[row.name for row in rows])


def lines(*rows: Any) -> bytes:
    """JSON lines."""
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Refused:
    """Run a stage's `main` with options, or `sams` with words; it must end as `one_line` checks."""

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
    """Check for exit status 2, no traceback, and a last line with location, problem and remedy; return the line."""
    lines = [line for line in error.splitlines() if line.strip()]
    assert status == 2 and "Traceback" not in error + output, error + output
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1 and lines[-1] == errors[0], error
    location, _, rest = errors[0].removeprefix("error: ").partition(": ")
    assert location and rest, f"names no location: {errors[0]}"
    assert re.search(r"(;|: give|: choose|: set|: drop|: rename|: write) ?\S+", rest), (
        f"no remedy: {errors[0]}"
    )
    assert re.search(says, errors[0]), f"{says!r} is not in {errors[0]!r}"
    assert len(errors[0]) < 900, "the line is too long"
    return errors[0]
