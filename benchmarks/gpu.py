"""Measure everything that needs a GPU, in a few minutes: `make gpu`, `python -m benchmarks.gpu --minutes 6`.

Needs torch, transformers, accelerate and pydantic; TRL, peft, a 4-bit package and pytest are used where they are
installed. Each section runs in a process of its own, one model in memory at a time, and has a time limit. Its figures
are written to gpu.json and gpu.md as soon as they are printed, so that a section that fails, hangs or is killed loses
nothing but itself. `--only NAME` repeats sections and keeps the figures of the others. With `--device cpu` small
models rehearse all sections: those figures say nothing about speed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gpu_report import markdown, with_marks
from sams.runtime.files import read_json, whole_file, write_json
from sams.runtime.processes import PARENT
from sams.runtime.provenance import commit, environment

ROOT = Path(__file__).resolve().parent.parent
SLOWER = {"cuda": 1.0, "cpu": 5.0}
"""Factor of the sections' time limits."""
LEAST_SECONDS = 12.0
"""A section does not begin with less time than this."""


@dataclass(frozen=True)
class Section:
    """A section of the benchmark.

    Attributes:
        name: its name in gpu.json.
        part: part of `benchmarks.gpu_parts`; or `stages` or `tests`.
        seconds: time limit on a GPU.
        given: arguments of the part.
        packages: packages without which the section is not run.
    """

    name: str
    part: str
    seconds: float
    given: dict[str, Any] = field(default_factory=dict)
    packages: tuple[str, ...] = ()


def contestant(name: str, trainer: str, size: str, seconds: float, **given: Any) -> Section:
    """Return a section that times a trainer."""
    values = {
        "modes": ["eager", "compiled"],
        "profile": False,
        "trainer": trainer,
        "size": size,
        "seconds": 20.0,
    }
    return Section(name, "contestant", seconds, values | given, ("trl",) if trainer == "trl" else ())


# The most important first: later ones are left out where time is short. Those of a group run at the same time.
GROUPS: list[list[Section]] = [
    [contestant("plain", "plain", "small", 100.0)],
    [contestant("sams", "sams", "small", 120.0, profile=True)],
    [contestant("hf_padded", "hf_padded", "small", 60.0)],
    [contestant("trl", "trl", "small", 75.0)],
    [contestant("plain_large", "plain", "large", 90.0, profile=True)],
    [contestant("sams_large", "sams", "large", 90.0)],
    [Section("lora_8b", "lora", 60.0, {"modes": ["eager"], "seconds": 10.0, "lora": {}}, ("peft",))],
    [
        Section(
            "lora_8b_4bit",
            "lora",
            60.0,
            {"modes": ["eager"], "seconds": 10.0, "lora": {"load_in_4bit": True}},
            ("peft", "bitsandbytes"),
        )
    ],
    [Section("checks", "checks", 60.0)],
    [Section("stages", "stages", 150.0), Section("tests", "tests", 150.0, packages=("pytest",))],
    [Section("generation", "generation", 45.0)],
]


class Record:
    """The figures measured so far, on disk at any time.

    Args:
        folder: folder of gpu.json and gpu.md.
        facts: machine, versions and arguments.
        keep: keep the sections of an existing gpu.json; otherwise it is renamed.
    """

    def __init__(self, folder: Path, facts: dict[str, Any], *, keep: bool) -> None:
        self.file = folder / "gpu.json"
        self.lock = threading.Lock()
        self.sections: dict[str, Any] = {}
        if self.file.is_file():
            if keep:
                self.sections = read_json(self.file)["sections"]
            else:
                made = time.strftime("%Y%m%d-%H%M%S", time.gmtime(self.file.stat().st_mtime))
                self.file.replace(folder / f"gpu-{made}.json")
        self.facts = facts

    def begin(self, section: str) -> None:
        """Discard earlier figures of a section."""
        with self.lock:
            self.sections[section] = {}

    def add(self, section: str, figures: dict[str, Any]) -> None:
        """Add figures of a section and write both files."""
        with self.lock:
            merge(self.sections[section], figures)
            result = with_marks(self.facts, self.sections)
            write_json(self.file, result)
            with whole_file(self.file.with_suffix(".md")) as part:
                part.write_text(markdown(result), encoding="utf-8")


def merge(into: dict[str, Any], figures: dict[str, Any]) -> None:
    """Add figures to nested figures."""
    for name, value in figures.items():
        if isinstance(value, dict) and isinstance(into.get(name), dict):
            merge(into[name], value)
        else:
            into[name] = value


class Process:
    """The process of a section, started ahead of its turn: it imports, and waits until `figures` is called."""

    def __init__(self, section: Section, device: str, precision: str) -> None:
        self.section = section
        self.log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        given = json.dumps(section.given | {"device": device, "precision": precision})
        commands = {
            "stages": ["benchmarks.gpu_stages", given],
            "tests": ["pytest", "-m", "gpu", "-q", "-rfEs", "-p", "no:cacheprovider", "tests/gpu"],
        }
        words = commands.get(section.part, ["benchmarks.gpu_parts", section.part, given])
        variables = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(
            # It ends with this process, even if that is killed.
            [sys.executable, "-m", "sams.runtime.processes", *words],
            cwd=ROOT,
            env=os.environ | variables | {PARENT: str(os.getpid())},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            start_new_session=True,
        )
        self.answers: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.answers.put(line)
        self.answers.put(None)

    def figures(self, seconds: float) -> Iterator[dict[str, Any]]:
        """Let the part begin; yield its figures until it ends, or for this many seconds."""
        end = time.monotonic() + seconds
        assert self.process.stdin is not None
        try:
            self.process.stdin.write("\n")
            self.process.stdin.close()
        except OSError:
            pass  # it has ended already: its status is reported below
        text = ""
        while True:
            try:
                line = self.answers.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                self.kill()
                yield {"error": f"stopped at its limit of {seconds:.0f} s"}
                return
            if line is None:
                break
            text += line
            if line.startswith("{"):
                yield json.loads(line)
        status = self.process.wait()
        if self.section.part == "tests":
            yield {"summary": text.splitlines()[-1:] or [""], "report": text[-6000:]}
        if status and (self.section.part, status) != ("tests", 5):  # 5: nothing to run
            yield {"status": status, "log": self._tail()}

    def _tail(self) -> str:
        self.log.seek(0)
        return self.log.read()[-3000:]

    def kill(self) -> None:
        """End the process and those that it started."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def missing(section: Section) -> str:
    """Return why a section cannot run on this machine; empty if it can."""
    absent = [package for package in section.packages if importlib.util.find_spec(package) is None]
    return f"{' and '.join(absent)} not installed" if absent else ""


def run(section: Section, process: Process, record: Record, seconds: float) -> None:
    """Run one section and record its figures."""
    started = time.monotonic()
    print(f"{section.name}: at most {seconds:.0f} s", flush=True)
    try:
        for figures in process.figures(seconds):
            record.add(section.name, figures)
    except Exception as error:
        record.add(section.name, {"error": f"{type(error).__name__}: {error}"})
    finally:
        process.kill()
    record.add(section.name, {"seconds": round(time.monotonic() - started, 1)})
    print(f"{section.name}: {record.sections[section.name]['seconds']} s", flush=True)


def main() -> int:
    """Run the sections; return 1 if one of them has failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=6.0, help="time for all sections, starts included")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--precision", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument(
        "--out", type=Path, default=Path("results/bench"), help="folder of gpu.json and gpu.md"
    )
    parser.add_argument(
        "--only", nargs="*", default=[], help="sections to run; keeps the figures of the others"
    )
    chosen = parser.parse_args()
    end = time.monotonic() + 60 * chosen.minutes
    import torch

    device = chosen.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        parser.error("no NVIDIA GPU that torch can use; --device cpu rehearses")
    facts = {
        "date": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
        "device": torch.cuda.get_device_name() if device == "cuda" else "CPU",
        "rehearsal": device == "cpu",
        "precision": chosen.precision,
        "environment": environment(),
        "commit": commit(),
    }
    record = Record(chosen.out, facts, keep=bool(chosen.only))
    groups = [[each for each in group if not chosen.only or each.name in chosen.only] for group in GROUPS]
    waiting: list[list[Section]] = []
    for group in groups:
        for section in group:
            record.begin(section.name)
            record.add(section.name, {"not_run": missing(section) or "no time was left"})
        if ready := [section for section in group if not missing(section)]:
            waiting.append(ready)

    def start(group: list[Section]) -> list[Process]:
        return [Process(section, device, chosen.precision) for section in group]

    ahead: list[Process] = []
    try:
        for number, group in enumerate(waiting):
            left = end - time.monotonic()
            if left < LEAST_SECONDS:
                break
            processes, ahead = ahead or start(group), []
            following = waiting[number + 1 : number + 2]
            # Imports take seconds, and cores are idle while a GPU computes. Tests and stages would not wait.
            if following and following[0][0].part not in ("stages", "tests"):
                ahead = start(following[0])
            threads = []
            for section, process in zip(group, processes, strict=True):
                record.begin(section.name)
                own = (section, process, record, min(left, SLOWER[device] * section.seconds))
                threads.append(threading.Thread(target=run, args=own))
                threads[-1].start()
            for thread in threads:
                thread.join()
    finally:
        for process in ahead:
            process.kill()
    print((chosen.out / "gpu.md").read_text(encoding="utf-8"))
    return int(any("error" in figures or "status" in figures for figures in record.sections.values()))


if __name__ == "__main__":
    sys.exit(main())
