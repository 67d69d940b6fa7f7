"""torchrun for the jobs of the workflow: `python -m sams.launch.torchrun` takes the arguments of torchrun.

There are two differences. A request to stop (`sams.runtime.processes.STOP_SIGNALS`) is passed on to the workers,
which may take as long as their checkpoint needs (torchrun kills them after 30 s), and the exit status is 75 instead
of 1. The process ends with the process that started it.
"""

import contextlib
import signal
import sys
from typing import Any

import psutil
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import parse_args, run

from sams.runtime.processes import EXIT_INTERRUPTED, end_with_parent, on_stop


def main(arguments: list[str]) -> int:
    """Run torchrun; return the exit status."""
    stopped: list[int] = []

    def stop(number: int, _frame: Any) -> None:
        stopped.append(number)
        for worker in psutil.Process().children():
            with contextlib.suppress(psutil.NoSuchProcess):
                worker.send_signal(signal.SIGTERM)

    end_with_parent()
    on_stop(stop)
    try:
        # torchrun installs its own handlers for the signals named here, and leaves ours in place.
        run(parse_args(["--signals-to-handle", "SIGHUP,SIGQUIT", *arguments]))
    except ChildFailedError as error:
        # A worker that has not installed its handler yet dies of the signal; it has written nothing.
        statuses = {failure.exitcode for failure in error.failures.values()}
        if statuses <= {EXIT_INTERRUPTED, -signal.SIGTERM} and (stopped or EXIT_INTERRUPTED in statuses):
            print("stopped on request; run the same command to resume", file=sys.stderr)
            return EXIT_INTERRUPTED
        print(error.format_msg(), file=sys.stderr)
        if -signal.SIGKILL in statuses:
            print(
                "a process was killed, most likely by the kernel because memory ran out: set a smaller "
                "micro_batch_size, or `auto`; the same command resumes from the last checkpoint",
                file=sys.stderr,
            )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
