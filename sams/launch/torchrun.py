"""torchrun for the jobs of the workflow: `python -m sams.launch.torchrun` takes torchrun's arguments.

Two things differ from `torchrun`. A request to stop (`sams.runtime.interrupt.STOP_SIGNALS`) is passed on to the
workers, which get as long as their checkpoint takes, where torchrun ends them after 30 s; the exit status is then 75
and not 1. And the job ends with the workflow that started it.
"""

import contextlib
import signal
import sys
from typing import Any

import psutil
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import parse_args, run

from sams.runtime.interrupt import EXIT_INTERRUPTED, STOP_SIGNALS, end_with_workflow


def main(arguments: list[str]) -> int:
    """Run torchrun; return the exit status."""
    stopped: list[int] = []

    def stop(number: int, _frame: Any) -> None:
        stopped.append(number)
        for worker in psutil.Process().children():
            with contextlib.suppress(psutil.NoSuchProcess):
                worker.send_signal(signal.SIGTERM)

    end_with_workflow()
    for number in STOP_SIGNALS:
        signal.signal(number, stop)
    try:
        # torchrun handles only what is named here, and with its own handlers: these stay ours.
        run(parse_args(["--signals-to-handle", "SIGHUP,SIGQUIT", *arguments]))
    except ChildFailedError as error:
        # A worker that had not begun dies of the signal itself: nothing is lost with it.
        statuses = {failure.exitcode for failure in error.failures.values()}
        if statuses <= {EXIT_INTERRUPTED, -signal.SIGTERM} and (stopped or EXIT_INTERRUPTED in statuses):
            print("stopped on request; the same command goes on", file=sys.stderr)
            return EXIT_INTERRUPTED
        print(error.format_msg(), file=sys.stderr)
        if -signal.SIGKILL in statuses:
            print(
                "a process was killed, most likely by the kernel for want of memory: set a smaller "
                "micro_batch_size, or leave it to `auto`; the same command goes on from the last checkpoint",
                file=sys.stderr,
            )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
