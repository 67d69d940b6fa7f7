"""Stages in forks of one server process, and the points at which they are killed.

Run as a module this is the server. It imports once what all stages need and forks for each run, or for each process
of a group: a start takes a fraction of a second, where torchrun takes many. It reads a run as one line of JSON and
answers with the exit statuses. The server itself computes nothing, so that no fork misses a thread. A run is killed
from within, by SIGKILL at the n-th call of a function; the stages know nothing of it.
"""

import functools
import importlib
import json
import os
import pkgutil
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sams.study.recipes import Job
from tests.conftest import ROOT

IMPORTED = (
    *(
        f"sams.training.{stage}"
        for stage in ("sft", "export", "reference", "pretrain_scheduler", "preference")
    ),
    "sams.losses.dpo",
    "sams.scheduling.selectors.sams",
    "sams.runtime.stage",
    "sams.study.recipes",
    "sams.tracking.log",
    "datasets",
    "pyarrow.parquet",
    "transformers.models.llama.modeling_llama",
)
GRACE = 60.0
"""Seconds in which the other processes of a group must end after one has failed."""


@dataclass(frozen=True)
class Point:
    """A point at which a run is killed.

    Attributes:
        at: function or method, by its full name.
        call: which call of it, counted from 1.
        before: whether it is killed instead of the call; otherwise right after it.
        about: only calls with a path among their arguments that this regular expression finds count.
        half: what the kill leaves half done: a pattern below the folder of checkpoints, of which the last match
            counts. The last bytes of a file are missing; of a folder, all files but the markers.
    """

    at: str
    call: int = 1
    before: bool = False
    about: str = ""
    half: str = ""

    def arm(self, checkpoints: Path) -> None:
        """Install the kill in this process."""
        path, _, name = self.at.rpartition(".")
        owner = pkgutil.resolve_name(path)
        function = getattr(owner, name)
        calls = 0

        @functools.wraps(function)
        def counted(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            paths = [str(arg) for arg in args if isinstance(arg, str | Path)]
            calls += not self.about or any(re.search(self.about, path) for path in paths)
            dies = calls == self.call
            if not (dies and self.before):
                result = function(*args, **kwargs)
            if dies:
                if self.half:
                    leave_half(max(checkpoints.glob(self.half)))
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        setattr(owner, name, counted)


def leave_half(path: Path) -> None:
    """Cut the end of a file, or delete the files of a folder except its markers."""
    if path.is_file():
        os.truncate(path, path.stat().st_size - 5)
        return
    for file in list(path.rglob("*")):
        if file.is_file() and file.name != "COMPLETE":
            file.unlink()


class Server:
    """The server, as its user sees it."""

    def __init__(self) -> None:
        self.log = Path(tempfile.mkstemp(prefix="forks-", suffix=".log")[1])
        with self.log.open("a") as stream:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.training.forks"],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                text=True,
            )

    def start(
        self,
        module: str,
        arguments: dict[str, Any],
        *,
        processes: int = 1,
        strategy: str = "ddp",
        point: Point | None = None,
    ) -> list[int]:
        """Run `main` of a module to its end or death; return the exit status of each process, -9 for a killed one.

        Args:
            module: full name of the module.
            arguments: of its function `main`; paths are given as such.
            processes: size of the process group.
            strategy: ddp or fsdp2.
            point: where each process is killed.
        """
        assert self.process.stdin and self.process.stdout
        launch = {"device": "cpu", "strategy": strategy, "timeout_minutes": 2.0}
        run = {
            "module": module,
            "arguments": {name: str(value) for name, value in arguments.items()},
            "paths": [name for name, value in arguments.items() if isinstance(value, Path)],
            "processes": processes,
            "job": Job.model_validate({"launch": launch}).model_dump_json() if processes > 1 else None,
            "point": asdict(point) if point else None,
        }
        self.log.write_text("")
        self.process.stdin.write(json.dumps(run) + "\n")
        self.process.stdin.flush()
        statuses: list[int] = json.loads(self.process.stdout.readline())
        return statuses

    def output(self) -> str:
        """What the last run printed."""
        return self.log.read_text()


@functools.cache
def server() -> Server:
    """The server of this process of pytest, with which it ends."""
    return Server()


def serve() -> None:
    """Fork for each run that is requested."""
    for module in IMPORTED:
        importlib.import_module(module)
    for line in sys.stdin:
        run = json.loads(line)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        children = []
        for rank in range(run["processes"]):
            if child := os.fork():
                children.append(child)
            else:
                start(run, rank, port)
        print(json.dumps(wait(children)), flush=True)


def wait(children: list[int]) -> list[int]:
    """Exit statuses of the children; once one has failed, the others are killed after `GRACE`."""
    statuses: dict[int, int] = {}
    failed = None
    while len(statuses) < len(children):
        for child in children:
            if child not in statuses and (ended := os.waitpid(child, os.WNOHANG))[0]:
                statuses[child] = os.waitstatus_to_exitcode(ended[1])
                failed = failed or (time.monotonic() if statuses[child] else None)
        if failed is not None and time.monotonic() > failed + GRACE:
            for child in set(children) - set(statuses):
                os.kill(child, signal.SIGKILL)
        time.sleep(0.005)
    return [statuses[child] for child in children]


def start(run: dict[str, Any], rank: int, port: int) -> None:
    """Run one process of a run and end it."""
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    status = 1
    try:
        if run["processes"] > 1:
            world = str(run["processes"])
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            os.environ |= {"WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "SAMS_JOB": run["job"]}
        arguments = {
            name: Path(value) if name in run["paths"] else value for name, value in run["arguments"].items()
        }
        if run["point"]:
            Point(**run["point"]).arm(arguments["checkpoints"])
        importlib.import_module(run["module"]).main(**arguments)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    serve()
