"""What the process of a workflow sees to itself: one at a time on a study's results, and an end that saves."""

import base64
import fcntl
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from sams.runtime.errors import UserError
from sams.runtime.processes import EXIT_INTERRUPTED, STOP_SIGNALS

LOCK = ".lock"

_stopped: list[int] = []


def hold(folder: Path) -> None:
    """Take the results of a study for this process, until it ends.

    The kernel holds the lock and gives it back however the process ends: a stale one cannot be.

    Raises:
        UserError: another workflow has them, and which.
    """
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / LOCK
    lock = os.open(place, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(
            f"another workflow is at work on these results{_told(place)}",
            where=str(folder),
            remedy="wait for it, end it, or give this study another name (key 'study')",
        ) from None
    except OSError as error:  # a network file system without locks
        print(f"{place}: cannot be locked ({error.strerror}); start one workflow at a time", file=sys.stderr)
        return
    holder = {"process": os.getpid(), "machine": socket.gethostname(), "since": time.strftime("%F %T")}
    os.ftruncate(lock, 0)
    os.write(lock, json.dumps(holder).encode())


def forget_unfinished(found: Path) -> None:
    """Delete a file that a killed job of rule `preflight` may have left, which no file of results is made from.

    All jobs wait for it, as an `ancient` input. Where Snakemake makes such a file again, because the job that wrote
    it did not end, it forgets all jobs that come after (9.27), and would end with status 0 and nothing done.
    """
    marker = Path(".snakemake/incomplete") / base64.urlsafe_b64encode(str(found).encode()).decode()
    if marker.is_file() and not _is_held(found.parent):
        found.unlink(missing_ok=True)


def _is_held(folder: Path) -> bool:
    try:
        with (folder / LOCK).open("rb+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _told(place: Path) -> str:
    try:
        holder = json.loads(place.read_text(encoding="utf-8"))
        return f": process {holder['process']} on {holder['machine']}, since {holder['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def stop_jobs_on_signals() -> None:
    """Pass a request to stop on to the jobs, which save; Snakemake would wait for their end, however far it is.

    Call it before Snakemake sets its own handler of SIGTERM, which starts no more jobs and is called here too.
    """
    from snakemake.scheduling.job_scheduler import JobScheduler

    finish = JobScheduler.exit_gracefully

    def stop(number: int, frame: Any = None) -> None:
        _stopped.append(number)
        for job in psutil.Process().children(recursive=True):
            # Shells wait for what they started. Workers are told by torchrun, children of a scorer end with it.
            if _is_stage(job):
                job.send_signal(signal.SIGTERM)
        if number == signal.SIGINT:
            signal.default_int_handler(number, frame)
        if number == signal.SIGUSR1:
            os.kill(os.getpid(), signal.SIGTERM)

    def exit_gracefully(scheduler: JobScheduler, *args: Any) -> None:
        finish(scheduler, *args)
        stop(signal.SIGTERM)

    JobScheduler.exit_gracefully = exit_gracefully  # type: ignore[method-assign]
    for number in STOP_SIGNALS:
        if number != signal.SIGTERM:
            signal.signal(number, stop)


def _is_stage(process: psutil.Process) -> bool:
    """Whether a process is the first of a job: a Python below a shell or the workflow itself."""
    try:
        parent = process.parent()
        # The program's file: torchrun gives its process another name.
        above = parent is not None and (parent.pid == os.getpid() or "python" not in Path(parent.exe()).name)
        return above and "python" in Path(process.exe()).name
    except psutil.Error:
        return False


def leave_if_stopped() -> None:
    """End the process with the status of an interruption, if it was asked to stop."""
    if _stopped:
        print("stopped on request; the same command goes on", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(EXIT_INTERRUPTED)
