"""Judges whose retirement is announced or past, from `known.yaml`, and those that judged the paper's figures."""

import datetime
import functools
from collections.abc import Collection
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import Field

from sams.study.settings import Judge
from sams.study.settings.base import Settings

PAPERS = "gpt-4-1106-preview"
"""Judge of the paper, and of published AlpacaEval 2 scores."""
PUBLISHED = ("alpaca_eval", "mt_bench")
"""Benchmarks with published scores."""
SOON_DAYS = 90
STALE_DAYS = 180
REMEDY = "For others see config/judges and docs/judging.md."


class Entry(Settings):
    """A judge.

    Args:
        names: names of its model in calls.
        until: first day on which it does not answer; None if no date is announced.
        successor: model that its maker names instead.
        comparable: columns of the paper's tables that this judge scored.
        source: public address of the date.
    """

    names: list[str]
    until: datetime.date | None = None
    successor: str | None = None
    comparable: list[str] = Field([])
    source: str


class Known(Settings):
    """Contents of `known.yaml`: day of the last look at the sources, host of the endpoint, judges."""

    checked: datetime.date
    host: str
    judges: list[Entry]


@functools.cache
def known() -> Known:
    """Return the known judges."""
    import yaml

    return Known.model_validate(yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text("utf-8")))


def entry(judge: Judge) -> Entry | None:
    """Return what is known of a study's judge; None for one of another endpoint or name."""
    if judge.kind != "openai" or urlsplit(judge.base_url).hostname != known().host:
        return None
    return next((entry for entry in known().judges if judge.model in entry.names), None)


def comparable(column: str) -> list[str]:
    """Return the judges whose scores are comparable with the paper's in a column; empty for one without a judge."""
    return [name for entry in known().judges if column in entry.comparable for name in entry.names]


def judge_warnings(judge: Judge, today: datetime.date | None = None) -> list[str]:
    """Return a sentence for a judge that is retired or soon will be, and one if its dates were checked long ago.

    Args:
        judge: the study's judge.
        today: the day; None: that of this machine.
    """
    today = today or datetime.date.today()
    found = entry(judge)
    if found is None:
        return []
    age, sentences = (today - known().checked).days, []
    if found.until is not None and (left := (found.until - today).days) <= SOON_DAYS:
        when = "was shut down" if left <= 0 else f"will be shut down in {left} days,"
        after = f"; its successor {found.successor} gives other scores" if found.successor else ""
        sentences.append(f"Judge {judge.model} {when} on {found.until}{after}. {REMEDY}")
    if age > STALE_DAYS and not (found.until and found.until <= today):
        sentences.append(
            f"The dates of judge {judge.model} were checked on {known().checked}, {age} days ago: {found.source}"
        )
    return sentences


def published_note(benchmarks: Collection[str], judge: str | None) -> str:
    """Return the sentence on published scores that a judge's are not comparable with; empty if there are none."""
    if judge == PAPERS or not set(PUBLISHED).intersection(benchmarks):
        return ""
    return f"Published scores are of {papers_judge()}."


def papers_judge(today: datetime.date | None = None) -> str:
    """Return the name of the judge of published scores, with the day of its retirement if that is past."""
    found = next(entry for entry in known().judges if PAPERS in entry.names)
    gone = found.until is not None and found.until <= (today or datetime.date.today())
    return f"{PAPERS}, which was shut down on {found.until}" if gone else PAPERS


def table() -> str:
    """Return the table of docs/judging.md in Markdown."""
    rows = [
        f"| {', '.join(entry.names)} | {entry.until or 'no date'} | {entry.successor or '–'} "
        f"| [source]({entry.source}) |"
        for entry in known().judges
    ]
    return (
        "\n".join([f"| judge at {known().host} | until | successor | |", "|---|---|---|---|", *rows])
        + f"\n\nChecked on {known().checked}."
    )
