"""Run a study with Snakemake and show its progress in one live view, for `sams run`."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from sams.runtime.errors import UserError
from sams.runtime.extras import require
from sams.runtime.processes import EXIT_INTERRUPTED
from sams.runtime.progress import SECONDS, duration
from sams.runtime.source import SNAKEFILE
from sams.study.files import from_options
from sams.study.rates import rates_to_check

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from sams.study.study import Study

PLUGINS = Path(__file__).resolve().parent / "plugins"
REFRESH = 0.5
"""Seconds between two looks at the files of the jobs."""
FIRST_LINE, LAST_LINE = 5.0, 600.0
"""Seconds until the first line about a running job, off a terminal; each wait is twice the last, up to LAST_LINE."""
EVENTS = "SAMS_EVENTS"
"""Environment variable: file to which Snakemake's logger plugin writes events."""
LOG_LINES = 15
"""Last lines of a failed job's log that are shown."""
TAIL = 1 << 14
"""Bytes of the end of a file that are read."""
PROGRESS = re.compile(r"(\d+) of (\d+) ([a-z]+) \(\d+ %\), (.*)$", re.M)
DOING = re.compile(r": ([^:\n]+) \.\.\.$", re.M)
CHECKPOINTS = re.compile(r"--checkpoints (\S+)")


@dataclass
class Job:
    """A running job.

    Attributes:
        rule: name of its rule.
        what: its method, seed and benchmark, as text.
        log: its log file.
        checkpoints: folder of its checkpoints, in a folder for each recipe; None for a job that trains nothing.
        started: time at which it started.
        due: time of the next line about it.
        wait: seconds from then to the line after it.
    """

    rule: str
    what: str
    log: Path | None
    checkpoints: Path | None
    started: float = field(default_factory=time.monotonic)
    due: float = field(default_factory=lambda: time.monotonic() + FIRST_LINE)
    wait: float = 2 * FIRST_LINE

    @classmethod
    def of(cls, event: dict[str, Any]) -> Job:
        """Return the job of an event `job_info`."""
        wildcards = event["wildcards"] or {}
        what = " ".join(
            f"seed {value}" if name == "seed" else str(value) for name, value in wildcards.items()
        )
        log = next(iter(event["log"] or []), None)
        folder = CHECKPOINTS.search(event["shellcmd"] or "")
        return cls(
            event["rule_name"],
            what,
            None if log is None else Path(log),
            None if folder is None else Path(folder[1].strip("'\"")),
        )

    def figures(self) -> list[str]:
        """Return what the job's files say: step, loss, margin, accuracy, rate, time left, memory."""
        parts: list[str] = []
        left = ""
        tail = _tail(self.log)
        if found := PROGRESS.findall(tail):
            done, total, unit, rest = found[-1]
            parts.append(f"{unit.removesuffix('s')} {done}/{total}")
            left = rest.rpartition(", ")[2] if " left" in rest else ""
        elif doing := DOING.findall(tail):
            parts.append(doing[-1])
        line, costs = self._last("train.jsonl"), self._last("costs.jsonl")
        for name, key in (("loss", "loss"), ("margin", "rewards/margins")):
            if key in line:
                parts.append(f"{name} {line[key]:.3f}")
        if "rewards/accuracies" in line:
            parts.append(f"accuracy {line['rewards/accuracies']:.0%}")
        if costs.get("seconds") and line.get("step"):
            pairs = line.get("pairs_seen", 0) / line["step"]
            parts.append(f"{pairs / costs['seconds']:.2g} pairs/s")
        if left:
            parts.append(left)
        if costs.get("peak_memory_mb"):
            parts.append(f"{costs['peak_memory_mb'] / 1024:.1f} GB")
        return parts

    def _last(self, name: str) -> dict[str, Any]:
        """Return the last line that the job has added to one of its logs; empty before the first."""
        files = [] if self.checkpoints is None else list(self.checkpoints.glob(f"*/{name}"))
        return _last(max(files, key=lambda file: file.stat().st_mtime, default=None))


class View:
    """Jobs of a run, as its events tell them.

    Attributes:
        waiting: number of jobs of each rule that have not started.
        running: running jobs by number.
        done, total: numbers of jobs.
        failed: jobs that failed.
        stopping: whether Ctrl-C was pressed.
    """

    def __init__(self) -> None:
        self.waiting: Counter[str] = Counter()
        self.running: dict[int, Job] = {}
        self.failed: list[Job] = []
        self.done = self.total = 0
        self.started = time.monotonic()
        self.stopping = False

    def take(self, event: dict[str, Any]) -> list[str]:
        """Update the view; return a line for each job that started, ended or failed."""
        kind = event["event"]
        if kind == "run_info":
            self.waiting = Counter(event["stats"] or {})
            self.total = self.waiting.pop("total", sum(self.waiting.values()))
            self.total -= self.waiting.pop("all", 0)  # the target, which is no work
        elif kind == "job_info" and event["rule_name"] != "all":
            job = self.running[event["jobid"]] = Job.of(event)
            self.waiting[job.rule] = max(0, self.waiting[job.rule] - 1)
            return [f"start   {_named(job)}"]
        elif kind == "job_finished" and (ended := self.running.pop(event["job_id"], None)):
            self.done += 1
            took = duration(time.monotonic() - ended.started)
            return [f"done    {_named(ended)} in {took} ({self.done} of {self.total})"]
        elif kind == "job_error" and (stopped := self.running.pop(event["jobid"], None)):
            if self.stopping:
                return []
            self.failed.append(stopped)
            return [f"FAILED  {_named(stopped)}: {_error(stopped)}"]
        return []

    def lines(self) -> Iterator[str]:
        """Yield a line about each running job that none was printed about for a while."""
        for job in list(self.running.values()):
            if (now := time.monotonic()) >= job.due:
                job.due, job.wait = now + job.wait, min(2 * job.wait, LAST_LINE)
                figures = ", ".join(job.figures()) or f"for {duration(now - job.started)}"
                yield f"running {_named(job)}: {figures}"

    def table(self, title: str, log: Path) -> RenderableType:
        """Return the view of a terminal."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.spinner import Spinner
        from rich.table import Table
        from rich.text import Text

        elapsed = duration(time.monotonic() - self.started)
        state = f"{self.done} of {self.total} jobs" if self.total else "finding out what is to be done"
        head = Text(f"{title}: {state}, {elapsed}", style="bold")
        grid = Table.grid(padding=(0, 1))
        for job in self.running.values():
            running = duration(time.monotonic() - job.started)
            grid.add_row(Spinner("dots"), Text(_named(job)), Text(running, style="dim"))
            if figures := job.figures():
                grid.add_row("", Text(" · ".join(figures), style="cyan"))
        following = [
            f"{rule} x {count}" if count > 1 else rule for rule, count in self.waiting.items() if count
        ]
        if self.stopping:
            grid.add_row("", Text("stopping: jobs save their checkpoints"))
        after = f"next: {', '.join(following[:4])}\n" if following else ""
        foot = Text(f"{after}log: {log}", style="dim")
        bar = Table.grid()
        bar.add_row(ProgressBar(total=max(1, self.total), completed=self.done, width=40))
        return Group(head, bar, grid, foot)


def run_study(study: Study, files: list[str], given: list[str], *, cores: str, console: Console) -> int:
    """Run a study; return the exit status: that of Snakemake, or 75 after Ctrl-C.

    Args:
        study: the study.
        files: its overlays.
        given: values of keys, `preference.beta=0.3`.
        cores: number of cores for Snakemake, or all.
        console: where the view is shown: live on a terminal, else in lines.
    """
    require("workflow")
    folder = Path("results") / study.study
    folder.mkdir(parents=True, exist_ok=True)
    log, events = folder / "run.log", folder / "events.jsonl"
    events.write_text("", encoding="utf-8")
    command = [*_snakemake(files, given, folder), "--cores", cores, "--logger", "sams"]
    path = os.pathsep.join([str(PLUGINS), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": path, EVENTS: str(events.resolve()), SECONDS: "2"}
    view, title = View(), f"{study.study}, {study.setting}"
    for sentence in rates_to_check(study):
        console.print(f"warning: {sentence}", markup=False, highlight=False, soft_wrap=True)

    # Ctrl-C reaches Snakemake too, which saves and ends; this process waits for it.
    def stop(*_: Any) -> None:
        view.stopping = True

    before = signal.signal(signal.SIGINT, stop)
    try:
        with log.open("w", encoding="utf-8") as stream:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT, env=environment
            )
        for line in _follow(process, view, events, console, title, log):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    finally:
        signal.signal(signal.SIGINT, before)
    if process.returncode not in (0, EXIT_INTERRUPTED) and not view.failed:
        console.print(_problem(log), markup=False, highlight=False, soft_wrap=True)
    return process.returncode


def check_workflow(files: list[str], given: list[str]) -> None:
    """Check that the rules can make a study, from nothing.

    Raises:
        UserError: they cannot; the message is Snakemake's.
    """
    require("workflow")
    with tempfile.TemporaryDirectory() as folder:
        command = _snakemake([str(Path(file).resolve()) for file in files], given, Path(folder))
        command += ["--cores", "1", "--directory", folder, "--dry-run", "--quiet"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [" ".join(line.split()) for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        start = next((at for at, line in enumerate(lines) if re.match(r"\w+(Exception|Error)\b", line)), 0)
        raise UserError(
            " ".join(lines[start : start + 6]).replace(f"{folder}/", ""),
            where="the rules cannot make this study",
            remedy="see `sams check` for its settings with defaults",
        )


def _snakemake(files: list[str], given: list[str], folder: Path) -> list[str]:
    """Return Snakemake's command for a study; given values become a file in `folder`, the last overlay."""
    import yaml

    command = [sys.executable, "-m", "snakemake", "--snakefile", str(SNAKEFILE)]
    if given:
        file = folder / "given.yaml"
        file.write_text(yaml.safe_dump(from_options(given)), encoding="utf-8")
        files = [*files, str(file)]
    return [*command, "--configfile", *files] if files else command


def _follow(
    process: subprocess.Popen[bytes], view: View, events: Path, console: Console, title: str, log: Path
) -> Iterator[str]:
    """Yield lines about the jobs until the workflow ends, below them the live view on a terminal."""
    from rich.live import Live

    live = Live(console=console, refresh_per_second=8, transient=True) if console.is_terminal else None
    with events.open(encoding="utf-8") as stream:
        try:
            if live is not None:
                live.start()
            while True:
                ended = process.poll() is not None
                for line in _whole_lines(stream):
                    yield from view.take(json.loads(line))
                if live is not None:
                    live.update(view.table(title, log))
                else:
                    yield from view.lines()
                if ended:
                    return
                time.sleep(REFRESH)
        finally:
            if live is not None:
                live.stop()


def _whole_lines(stream: TextIO) -> Iterator[str]:
    """Yield the complete lines that have been added to a file; a line without its end is left for the next call."""
    while True:
        start = stream.tell()
        line = stream.readline()
        if not line.endswith("\n"):
            stream.seek(start)
            return
        yield line


def _named(job: Job) -> str:
    return f"{job.rule} {job.what}".strip()


def _tail(file: Path | None) -> str:
    """Return the end of a text file, empty where there is none."""
    if file is None or not file.is_file():
        return ""
    with file.open("rb") as stream:
        stream.seek(max(0, file.stat().st_size - TAIL))
        return stream.read().decode(errors="replace")


def last_lines(file: Path | None) -> str:
    """Return the last lines of a job's log, indented; empty where there is none."""
    return "\n".join(f"    {line}" for line in _tail(file).splitlines()[-LOG_LINES:])


def _last(file: Path | None) -> dict[str, Any]:
    """Return the last complete line of a JSONL file; empty where there is none."""
    for line in reversed(_tail(file).splitlines()):
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict):
            return found
    return {}


def _error(job: Job) -> str:
    """Return the line of a job's log that says why it failed, and the log."""
    lines = [line.strip() for line in _tail(job.log).splitlines() if line.strip()]
    said = next((line for line in reversed(lines) if line.startswith("error:")), lines[-1] if lines else "")
    return f"{said.removeprefix('error: ')} (log: {job.log})"


def _problem(log: Path) -> str:
    """Return why a workflow ended before its first job, in Snakemake's words."""
    lines = [line.strip() for line in _tail(log).splitlines() if line.strip()]
    said = [line for line in lines if "Error" in line or line.startswith("error")]
    return f"error: {said[-1] if said else (lines or ['no output'])[-1]} (log: {log})"
