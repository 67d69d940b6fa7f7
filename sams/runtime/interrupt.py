"""How processes end: on request, with an exit status that says so, and with the workflow that started them."""

import os
import select
import signal
import sys
import threading
from typing import Any, NoReturn

EXIT_INTERRUPTED = 75
"""Exit status after one of `STOP_SIGNALS`: what is needed to go on is on disk, the same command goes on.
It is EX_TEMPFAIL of sysexits.h, which mail and job queues take as "again, later"."""

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""Requests to stop: of a queue or `kill`, of Ctrl-C, and the warning that a cluster sends before its limit."""

WORKFLOW = "SAMS_WORKFLOW"
"""Environment variable with the process id of the workflow, on the machine that its jobs run on."""


def stop_on_signals() -> None:
    """Let each of `STOP_SIGNALS` end this process as `SystemExit` would, so that what is open is closed."""
    for number in STOP_SIGNALS:
        signal.signal(number, _stop)


def _stop(number: int, _frame: Any) -> NoReturn:
    for again in STOP_SIGNALS:  # what is being closed is not interrupted a second time
        signal.signal(again, signal.SIG_IGN)
    if "TORCHELASTIC_RUN_ID" not in os.environ:  # a worker is also stopped when another one fails
        print(
            f"stopped by {signal.Signals(number).name}; the same command goes on", file=sys.stderr, flush=True
        )
    raise SystemExit(EXIT_INTERRUPTED)


def end_with_workflow() -> None:
    """End this job with its workflow, however that ends; nothing where no workflow started it.

    A workflow killed by SIGKILL cannot end its jobs: they would go on and write where the next start writes.
    """
    workflow = os.environ.get(WORKFLOW, "")
    if not workflow or not hasattr(os, "pidfd_open"):
        return
    try:
        watched = os.pidfd_open(int(workflow))
    except ProcessLookupError:
        raise SystemExit("the workflow has ended") from None
    except OSError:  # a kernel without it
        return
    threading.Thread(target=_die_with, args=(watched,), name="workflow-watch", daemon=True).start()


def _die_with(process: int) -> None:
    poll = select.poll()
    poll.register(process, select.POLLIN)
    poll.poll()
    os.kill(os.getpid(), signal.SIGKILL)
