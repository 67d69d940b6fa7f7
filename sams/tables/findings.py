"""Results of the checks of `sams verify`."""

from typing import NamedTuple

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
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table("", "check", "where", "result", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for finding in findings:
        mark = "ok" if finding.holds else "FAILED"
        shown.add_row(
            mark, *(Text(text, overflow="fold") for text in (finding.check, finding.where, finding.text))
        )
    console = Console()
    console.print(shown)
    broken = sum(not finding.holds for finding in findings)
    console.print(f"{len(findings)} checks: {f'{broken} failed' if broken else 'all passed'}")
