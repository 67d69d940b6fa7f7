"""Extensions of the Snakemake process: one workflow per study, stop requests, readable reasons of jobs."""

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

from sams.launch.changes import changes
from sams.runtime.errors import UserError
from sams.runtime.processes import EXIT_INTERRUPTED, STOP_SIGNALS

LOCK = ".lock"

_stopped: list[int] = []


def lock_results(folder: Path) -> None:
    """Lock the results of a study until this process ends.

    The kernel releases the lock however the process ends, so that no lock outlives its process.

    Raises:
        UserError: another workflow holds the lock; the message names its process.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(
            f"another workflow is running on these results{_holder(path)}",
            where=str(folder),
            remedy="wait for it, stop it, or give this study another name (key 'study')",
        ) from None
    except OSError as error:  # a network file system without locks
        print(f"{path}: cannot be locked ({error.strerror}); start one workflow at a time", file=sys.stderr)
        return
    holder = {"process": os.getpid(), "machine": socket.gethostname(), "since": time.strftime("%F %T")}
    os.ftruncate(lock, 0)
    os.write(lock, json.dumps(holder).encode())


def forget_unfinished(output: Path) -> None:
    """Delete the output of rule `preflight` if its job was killed.

    The first jobs have it as an `ancient` input. Snakemake 9.27 would run the incomplete job again, no job after it,
    and exit with status 0; for a missing file it runs all jobs.
    """
    marker = Path(".snakemake/incomplete") / base64.urlsafe_b64encode(str(output).encode()).decode()
    if marker.is_file() and not _is_held(output.parent):
        output.unlink(missing_ok=True)


def _is_held(folder: Path) -> bool:
    try:
        with (folder / LOCK).open("rb+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _holder(path: Path) -> str:
    """Return the process that holds a lock, as text; empty if the file does not name it."""
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
        return f": process {holder['process']} on {holder['machine']}, since {holder['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def stop_jobs_on_signals() -> None:
    """Pass requests to stop on to the jobs, which save a checkpoint; Snakemake alone would wait until they are done.

    Call it before Snakemake installs its handler of SIGTERM, which starts no more jobs and is extended here.
    """
    from snakemake.scheduling.job_scheduler import JobScheduler

    finish = JobScheduler.exit_gracefully

    def stop(number: int, frame: Any = None) -> None:
        _stopped.append(number)
        for job in psutil.Process().children(recursive=True):
            # Shells wait for their children. torchrun signals its workers; children of a scorer end with it.
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
    """Return whether a process is the first Python of a job, started by a shell or by the workflow itself."""
    try:
        parent = process.parent()
        # Compare the executable: torchrun renames its process.
        above = parent is not None and (parent.pid == os.getpid() or "python" not in Path(parent.exe()).name)
        return above and "python" in Path(process.exe()).name
    except psutil.Error:
        return False


def stopped() -> bool:
    """Return whether a request to stop has arrived."""
    return bool(_stopped)


def leave_if_stopped() -> None:
    """Exit with `EXIT_INTERRUPTED` after a request to stop."""
    if _stopped:
        print("stopped on request; run the same command to resume", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(EXIT_INTERRUPTED)


def name_changes() -> None:
    """Make `snakemake -n` name the settings, modules and sources that run a job again, instead of all parameters.

    A Snakemake release whose class differs keeps its own text.
    """
    try:
        from snakemake.persistence import ParamsChange
    except ImportError:
        return
    own_text = ParamsChange.__str__

    def text(change: ParamsChange) -> str:
        try:
            return changes(change.only_old, change.only_new) or own_text(change)
        except (AttributeError, TypeError):
            return own_text(change)

    ParamsChange.__str__ = text  # type: ignore[method-assign]
