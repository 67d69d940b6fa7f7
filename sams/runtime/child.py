"""Child processes that end with their parent, however it ends.

`python -m sams.runtime.child MODULE ARGUMENT...` runs a module as such a child; `start` does so.
"""

import os
import runpy
import signal
import subprocess
import sys
import threading
from typing import Any


def start(arguments: list[str], **settings: Any) -> "subprocess.Popen[bytes]":
    """Start a module, given with its arguments, as a child that dies with this process.

    The child leads a process group of its own, so that `end` also reaches what it has started.
    """
    command = [sys.executable, "-W", "ignore", "-m", "sams.runtime.child", *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True, **settings)


def end(child: "subprocess.Popen[bytes]") -> None:
    """End a child of `start` and all of its process group, and wait for it."""
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            pipe.close()


def _die_with_parent() -> None:
    # The parent holds the other end of standard input; the system closes it even when the parent is killed.
    while os.read(0, 1):
        pass
    os.killpg(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    threading.Thread(target=_die_with_parent, daemon=True).start()
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
