"""Report the progress of a long stage: a bar on a terminal, lines in a log file."""

import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

log = logging.getLogger(__name__)

SECONDS = "SAMS_PROGRESS_SECONDS"
"""Environment variable: seconds between two lines of a log file."""
SECONDS_BETWEEN_LINES = 30.0


class Progress:
    """Counts the finished items of a stage and reports them.

    Args:
        what: name of the stage.
        total: number of items; None if it is not known.
        unit: name of the items, in the plural.
        done: number of items that an earlier start has finished.
        cost: returns the cost so far as text, empty while it is not known.
    """

    def __init__(
        self, what: str, total: int | None, unit: str, *, done: int = 0, cost: Callable[[], str] = lambda: ""
    ) -> None:
        self.what = what
        self.total = total
        self.unit = unit
        self.done = self.first = done
        self.cost = cost
        self.started = self.logged = time.monotonic()
        self.between = float(os.environ.get(SECONDS, SECONDS_BETWEEN_LINES))
        self.bar = None
        if sys.stderr.isatty() and total != 1:
            from tqdm import tqdm

            # A bar that is complete within a second would only leave its line.
            self.bar = tqdm(total=total, initial=done, desc=what, unit=f" {unit}", delay=1.0)

    def add(self, count: int = 1, *, kept: bool = False) -> None:
        """Count finished items; `kept` ones are from an earlier start and do not count for the rate."""
        self.done += count
        if kept:
            self.first += count
        if self.bar is not None:
            if cost := self.cost():
                self.bar.set_postfix_str(cost, refresh=False)
            self.bar.update(count)
        elif (now := time.monotonic()) - self.logged >= self.between:
            self.logged = now
            log.info("%s", str(self))

    @property
    def left(self) -> int:
        """Number of unfinished items; 0 if the total is not known."""
        return (self.total or self.done) - self.done

    def __str__(self) -> str:
        """`reference: 1200 of 9600 pairs (12 %), 40.0 pairs/s, 3 min 30 s left`."""
        here, seconds = self.done - self.first, max(1e-9, time.monotonic() - self.started)
        rate = here / seconds
        known = self.total is not None
        share = f" of {self.total} {self.unit} ({100 * self.done / max(1, self.total or 1):.0f} %)"
        parts: list[str] = [f"{self.done}{share if known else f' {self.unit}'}"]
        parts.append(f"{rate:.1f} {self.unit}/s" if rate >= 1 else f"{seconds / max(1, here):.1f} s each")
        if self.total is not None and here:
            parts.append(f"{duration((self.total - self.done) / rate)} left")
        if cost := self.cost():
            parts.append(f"{cost} so far")
        return f"{self.what}: {', '.join(parts)}"

    def close(self) -> None:
        """Close the bar."""
        if self.bar is not None:
            self.bar.close()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def progress(items: Iterable[T], what: str, total: int | None, unit: str, *, done: int = 0) -> Iterator[T]:
    """Yield the items and report their progress."""
    with Progress(what, total, unit, done=done) as counter:
        for item in items:
            yield item
            counter.add()


def duration(seconds: float) -> str:
    """Format seconds in at most two units: `45 s`, `3 min 30 s`, `2 h 5 min`, `3 d 4 h`."""
    rest = round(seconds)
    units = [("d", 86400), ("h", 3600), ("min", 60), ("s", 1)]
    parts: list[str] = []
    for name, size in units:
        count, rest = divmod(rest, size)
        if count or (name == "s" and not parts):
            parts.append(f"{count} {name}")
        elif parts:
            break
    return " ".join(parts[:2])


def quiet_loading() -> None:
    """Turn off the progress bars of transformers in a log file."""
    if not sys.stderr.isatty():
        from transformers.utils import logging as of_transformers

        of_transformers.disable_progress_bar()
