"""Results of the checks of `sams verify`."""

from typing import NamedTuple

from sams.runtime.terminal import Readable, print_table

SHOWN = 3  # problems named in one finding


class Finding(NamedTuple):
    """Result of one check: its name, the path relative to the folder, whether it holds, and a description."""

    check: str
    where: str
    holds: bool
    text: str


def summary(problems: list[str], good: str) -> str:
    """Text of a finding: the first problems, or `good` if there are none."""
    more = f" and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    return "; ".join(problems[:SHOWN]) + more if problems else good


def print_findings(findings: list[Finding]) -> None:
    """Print the checks, and the number of those that fail."""
    rows: list[list[tuple[str, ...]]] = [
        [("ok" if finding.holds else "FAILED",), (finding.check,), (finding.where,), (finding.text,)]
        for finding in findings
    ]
    print_table("", Readable(["", "check", "where", "result"], rows))
    broken = sum(not finding.holds for finding in findings)
    print(f"{len(findings)} checks: {f'{broken} failed' if broken else 'all passed'}")
