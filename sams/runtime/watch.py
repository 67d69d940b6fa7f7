"""Watch a training job for processes that hang, and end it with the position of each process.

torch's time-out ends a collective call that waits for another process, but does not say where that process is. Here
each process records its position, and a thread checks the age of that position. When one is too old, all processes
print their positions and stacks, and the job ends.
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
"""Exit status of the processes of a job that hung (EX_SOFTWARE of sysexits.h)."""

LONGEST_INTERVAL = 5.0  # seconds between two checks, at most
ALARM = "hangs"


class Position(NamedTuple):
    """Phase and step of a process, and their start in monotonic seconds."""

    phase: str
    step: int
    since: float

    def as_dict(self) -> dict[str, str | float]:
        """Return the position with its age, which other processes can read: their clocks differ."""
        step = f"step {self.step}" if self.step else "before the first step"
        return {"where": f"{step}, {self.phase}", "seconds": round(time.monotonic() - self.since, 1)}


class Watch:
    """The position of this process, and a thread that ends the job when it is too old.

    Args:
        rank: rank of this process.
        world: number of processes.
        limit: seconds that a position may last.
    """

    def __init__(self, rank: int, world: int, limit: float) -> None:
        self.rank, self.world, self.limit = rank, world, limit
        self.step = 0
        self._interval = min(LONGEST_INTERVAL, limit / 10)
        self._position = Position("start", 0, time.monotonic())
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def at(self, phase: str) -> None:
        """Record that this process begins a phase of its step."""
        self._position = Position(phase, self.step, time.monotonic())

    @contextlib.contextmanager
    def waiting(self, call: str) -> Iterator[None]:
        """Record that the block is a collective call, which waits for the other processes."""
        before = self._position
        self.at(f"{before.phase}: waits for the others in {call}")
        try:
            yield
        finally:
            self.at(before.phase)

    def start(self, folder: Path) -> None:
        """Start the checks; `folder` is empty and the same for all processes."""
        self.at(self._position.phase)
        self._stopped.clear()
        self._write(folder, answered=False)  # a process may be stopped before its first check
        self._thread = threading.Thread(target=self._check, args=(folder,), name="watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop the checks."""
        if self._thread is not None:
            self._stopped.set()
            self._thread.join()
            self._thread = None
            faulthandler.cancel_dump_traceback_later()

    def _check(self, folder: Path) -> None:
        written: Position | None = None
        while not self._stopped.wait(self._interval):
            position = self._position
            # If this process can run no Python any more, a thread of faulthandler prints the stacks.
            faulthandler.dump_traceback_later(self.limit + 6 * self._interval, exit=True)
            if position != written:
                self._write(folder, answered=False)
                written = position
            if (folder / ALARM).exists():
                self._end(folder)
            if time.monotonic() - position.since > self.limit:
                with contextlib.suppress(OSError), (folder / ALARM).open("x"):
                    self._end(folder, first=True)
                self._end(folder)

    def _write(self, folder: Path, *, answered: bool) -> None:
        path = folder / f"rank{self.rank}.json"
        part = path.with_suffix(".part")
        with contextlib.suppress(OSError):  # a full disk, or a folder that is deleted at the end of the job
            part.write_text(json.dumps(self._position.as_dict() | {"answered": answered}))
            part.replace(path)

    def _end(self, folder: Path, *, first: bool = False) -> None:
        """Print the position of this process (of all processes if it is the `first`) and end this process."""
        self._write(folder, answered=True)
        here = self._position.as_dict()
        print(f"rank {self.rank}: {here['where']}, for {here['seconds']} s", file=sys.stderr, flush=True)
        faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        # The others need one interval to notice. As their end ends this process too, the first process prints first.
        time.sleep(self._interval * (2 if first else 4))
        if first:
            ranks = "; ".join(f"rank {rank}: {self._of(folder, rank)}" for rank in range(self.world))
            print(
                f"error: nothing has moved for {self.limit / 60:g} min ({ranks}); look at the rank that waits for "
                "no other, and start again: the run resumes from its last checkpoint (limit: launch.timeout_minutes)",
                file=sys.stderr,
                flush=True,
            )
        os._exit(EXIT_HUNG)

    def _of(self, folder: Path, rank: int) -> str:
        try:
            read = json.loads((folder / f"rank{rank}.json").read_text())
        except (OSError, ValueError):
            return "no position"
        if not read["answered"]:  # stopped, or in the kernel
            return f"last seen at {read['where']}, does not answer"
        return f"{read['where']}, for {read['seconds']} s"
