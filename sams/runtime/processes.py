"""Exit statuses, requests to stop, and processes that end with the process that started them.

`python -m sams.runtime.processes MODULE ARGUMENT...` runs a module as a child; `start_child` does so.
"""

import contextlib
import os
import runpy
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

EXIT_USER_ERROR = 2
"""Exit status after a `UserError`."""

EXIT_INTERRUPTED = 75
"""Exit status after one of `STOP_SIGNALS`: all that is needed to resume is on disk.
EX_TEMPFAIL of sysexits.h, which mail and job queues read as "try again later"."""

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""Requests to stop: of a queue or `kill`, of Ctrl-C, and the warning that a cluster sends before its limit."""

SECONDS_OF_A_REQUEST = 2.0

PARENT = "SAMS_PARENT"
"""Environment variable with the id of the process that a process ends with, on the same machine: the workflow for
a job, the launcher for torchrun, the job for a child."""

WORKER = "TORCHELASTIC_RUN_ID"
"""Environment variable that torchrun sets for its workers."""


def on_stop(handler: Callable[[int, Any], Any]) -> None:
    """Install a handler of `STOP_SIGNALS`."""
    for number in STOP_SIGNALS:
        signal.signal(number, handler)


def stop_on_signals() -> None:
    """Raise `SystemExit` on one of `STOP_SIGNALS`, so that open files, servers and children are closed."""
    on_stop(_stop)


def _stop(number: int, _frame: Any) -> NoReturn:
    for again in STOP_SIGNALS:  # a second signal must not interrupt the clean-up
        signal.signal(again, signal.SIG_IGN)
    if WORKER not in os.environ:  # torchrun also stops a worker when another one fails
        print(
            f"stopped by {signal.Signals(number).name}; run the same command to resume",
            file=sys.stderr,
            flush=True,
        )
    raise SystemExit(EXIT_INTERRUPTED)


@contextlib.contextmanager
def stop_later(stop: Callable[[], None]) -> Iterator[None]:
    """Within a block, call `stop` on a request to stop instead of ending the process.

    A second request ends it. One request may arrive as several signals at once.
    """
    first = 0.0

    def handle(number: int, frame: Any) -> None:
        nonlocal first
        if not first:
            first = time.monotonic()
            print(
                f"{signal.Signals(number).name}: the calls in flight are completed; run the same command to resume",
                file=sys.stderr,
                flush=True,
            )
            stop()
        elif time.monotonic() - first > SECONDS_OF_A_REQUEST:
            _stop(number, frame)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    on_stop(handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


def end_with_parent() -> None:
    """Kill this process as soon as the process that started it has ended, even by SIGKILL.

    The process that started it is torchrun for a worker, and otherwise the one in `PARENT`; without it, nothing is
    watched. A process that leads a process group kills the group: a child may have started further processes.
    A process that outlives its parent would write to the same files as the next start.

    Raises:
        SystemExit: the parent has ended already.
    """
    parent = os.getppid() if WORKER in os.environ else int(os.environ.get(PARENT) or 0)
    if not parent or not hasattr(os, "pidfd_open"):
        return
    try:
        if parent == 1 and WORKER in os.environ:  # torchrun has ended, and init has adopted the worker
            raise ProcessLookupError
        watched = os.pidfd_open(parent)
    except ProcessLookupError:
        raise SystemExit("the process that started this one has ended") from None
    except OSError:  # Linux before 5.3
        return
    threading.Thread(target=_kill_after, args=(watched,), name="parent-watch", daemon=True).start()


def _kill_after(process: int) -> None:
    poll = select.poll()
    poll.register(process, select.POLLIN)
    poll.poll()
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def start_child(
    arguments: list[str], *, env: Mapping[str, str] | None = None, **settings: Any
) -> "subprocess.Popen[bytes]":
    """Start a module, given with its arguments, as a child that ends with this process.

    The child leads a process group, so that `end_child` reaches the processes that the child has started.
    """
    command = [sys.executable, "-W", "ignore", "-m", "sams.runtime.processes", *arguments]
    environment = {**(os.environ if env is None else env), PARENT: str(os.getpid())}
    environment.pop(WORKER, None)
    return subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True, **settings
    )


def end_child(child: "subprocess.Popen[bytes]") -> None:
    """Kill a child of `start_child` with its process group, and wait for it."""
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    if child.stdout is not None:
        child.stdout.close()


if __name__ == "__main__":
    end_with_parent()
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
