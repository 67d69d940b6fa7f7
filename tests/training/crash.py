"""Training stages in processes of their own, and the points at which they are killed.

Run as a module this is a server, which imports once what all stages need and forks for each run: it reads a
run as one line of JSON and answers with its exit status. Nothing computes in the server, so that a fork finds
no thread missing. A run is killed from within, by SIGKILL at the n-th call of a function; the stages know
nothing of it.
"""

import functools
import json
import os
import pkgutil
import re
import signal
import subprocess
import sys
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.conftest import ROOT

STAGES = ("sft", "export", "reference", "pretrain_scheduler", "preference")


@dataclass(frozen=True)
class Point:
    """Where a run dies.

    Attributes:
        at: function or method, by its full name.
        call: which call of it, counted from 1.
        before: it dies in place of the call; otherwise right after it.
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
        """Put the kill into this process."""
        place, _, name = self.at.rpartition(".")
        owner = pkgutil.resolve_name(place)
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
    """Make of a file one whose writing was cut short, of a folder one whose deletion was."""
    if path.is_file():
        os.truncate(path, path.stat().st_size - 5)
        return
    for file in list(path.rglob("*")):
        if file.is_file() and file.name != "COMPLETE":
            file.unlink()


class Runs:
    """The server, and what it is asked for.

    Args:
        log: file for what server and runs print.
    """

    def __init__(self, log: Path) -> None:
        self.log = log
        with log.open("w") as stream:
            self.server = subprocess.Popen(
                [sys.executable, "-m", "tests.training.crash"],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                text=True,
            )

    def start(self, stage: str, recipe: str, paths: dict[str, Path], point: Point | None = None) -> int:
        """Run a stage to its end or death; return its exit status, which is -9 for a killed one."""
        assert self.server.stdin and self.server.stdout
        arguments = {"recipe": recipe} | {name: str(path) for name, path in paths.items()}
        asked = {"stage": stage, "arguments": arguments, "point": asdict(point) if point else None}
        self.server.stdin.write(json.dumps(asked) + "\n")
        self.server.stdin.flush()
        return int(self.server.stdout.readline())

    def close(self) -> None:
        """End the server."""
        self.server.communicate()


def serve() -> None:
    """Fork for each run that is asked for."""
    import transformers

    mains = {stage: pkgutil.resolve_name(f"sams.training.{stage}:main") for stage in STAGES}
    for module in (
        "sams.study.recipes",
        "sams.tracking.log",
        "sams.runtime.stage",
        "datasets",
        "pyarrow.parquet",
    ):
        pkgutil.resolve_name(module)
    _ = transformers.LlamaForCausalLM, transformers.PreTrainedTokenizerFast
    for line in sys.stdin:
        asked = json.loads(line)
        if child := os.fork():
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
            continue
        run(mains[asked["stage"]], asked["arguments"], asked["point"])


def run(main: Any, arguments: dict[str, str], point: dict[str, Any] | None) -> None:
    """Run a stage and end this process."""
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    status = 1
    try:
        if point:
            Point(**point).arm(Path(arguments["checkpoints"]))
        recipe = arguments.pop("recipe")
        main(recipe=recipe, **{name: Path(path) for name, path in arguments.items()})
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    serve()
