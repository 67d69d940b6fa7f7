"""Where each process of a training job is, and the end of a job in which nothing moves any more.

A collective call that waits for a process that never comes ends by torch's own time-out, but nobody learns where
that process was. Here each process keeps its position, and a thread beside it looks at how old it is. The first that
is too old lets all processes print theirs, with their stacks, before the job ends.
"""

import contextlib
import faulthandler
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

EXIT_HUNG = 70
"""Exit status of a process of a job that was ended because nothing moved in it (EX_SOFTWARE of sysexits.h)."""

LONGEST_LOOK = 5.0  # seconds between two looks, at most
ALARM = "hangs"


class Position(NamedTuple):
    """What a process does, of which step, since when (monotonic seconds)."""

    phase: str
    step: int
    since: float

    def told(self) -> dict[str, str | float]:
        """For the other processes, which have clocks of their own."""
        step = f"step {self.step}" if self.step else "before the first step"
        return {"where": f"{step}, {self.phase}", "seconds": round(time.monotonic() - self.since, 1)}


class Watch:
    """The position of this process, and a thread that ends the job when it is too old.

    Args:
        rank: number of this process.
        world: number of processes.
        limit: seconds that a position may last.
    """

    def __init__(self, rank: int, world: int, limit: float) -> None:
        self.rank, self.world, self.limit = rank, world, limit
        self.step = 0
        self._look = min(LONGEST_LOOK, limit / 10)
        self._position = Position("start", 0, time.monotonic())
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def at(self, phase: str) -> None:
        """This process begins a phase of its step."""
        self._position = Position(phase, self.step, time.monotonic())

    @contextlib.contextmanager
    def waiting(self, call: str) -> Iterator[None]:
        """The block is a collective call, which waits for the other processes."""
        before = self._position
        self.at(f"{before.phase}: waits for the others in {call}")
        try:
            yield
        finally:
            self.at(before.phase)

    def start(self, folder: Path) -> None:
        """Look at the position from now on; `folder` is empty and the same for all processes."""
        self.at(self._position.phase)
        self._over.clear()
        self._tell(folder, answered=False)  # a process may be stopped before its first look
        self._thread = threading.Thread(target=self._follow, args=(folder,), name="watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        if self._thread is not None:
            self._over.set()
            self._thread.join()
            self._thread = None
            faulthandler.cancel_dump_traceback_later()

    def _follow(self, folder: Path) -> None:
        told: Position | None = None
        while not self._over.wait(self._look):
            position = self._position
            # Of a process that cannot run Python any more, the C library's thread prints the stacks.
            faulthandler.dump_traceback_later(self.limit + 6 * self._look, exit=True)
            if position != told:
                self._tell(folder, answered=False)
                told = position
            if (folder / ALARM).exists():
                self._end(folder)
            if time.monotonic() - position.since > self.limit:
                with contextlib.suppress(OSError), (folder / ALARM).open("x"):
                    self._end(folder, first=True)
                self._end(folder)

    def _tell(self, folder: Path, *, answered: bool) -> None:
        place = folder / f"rank{self.rank}.json"
        part = place.with_suffix(".part")
        with contextlib.suppress(OSError):  # a full disk, or a folder that goes with the job's end
            part.write_text(json.dumps(self._position.told() | {"answered": answered}))
            part.replace(place)

    def _end(self, folder: Path, *, first: bool = False) -> None:
        """Print where this process is, and end it; the first to notice tells where all are."""
        self._tell(folder, answered=True)
        here = self._position.told()
        print(f"rank {self.rank}: {here['where']}, for {here['seconds']} s", file=sys.stderr, flush=True)
        faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        # The others need one look to notice. Their end ends this process too, so the first goes first.
        time.sleep(self._look * (2 if first else 4))
        if first:
            ranks = "; ".join(f"rank {rank}: {self._of(folder, rank)}" for rank in range(self.world))
            print(
                f"error: nothing has moved for {self.limit / 60:g} min ({ranks}); look at the rank that waits for "
                "none, and start again: the run goes on from its last checkpoint (limit: launch.timeout_minutes)",
                file=sys.stderr,
                flush=True,
            )
        os._exit(EXIT_HUNG)

    def _of(self, folder: Path, rank: int) -> str:
        try:
            told = json.loads((folder / f"rank{rank}.json").read_text())
        except (OSError, ValueError):
            return "tells nothing"
        if not told["answered"]:  # stopped, or in the kernel
            return f"last told of {told['where']}, and answers no more"
        return f"{told['where']}, for {told['seconds']} s"
