"""A very small study, run as users run it, and the remains of a killed one."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import yaml

from sams.runtime.files import sha256_of
from tests.conftest import ROOT, patience

MARK = "SAMS_FAULTS_RUN"

# Every rule of the default study once or twice, each as short as can be.
STUDY: dict[str, Any] = {
    "study": "faults",
    "methods": ["sft", "dpo-sams"],
    "data": {"world": {"sft_examples": 256, "train_pairs": 128, "test_pairs": 32}},
    "model": {
        "architecture": {
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "intermediate_size": 64,
        }
    },
    "sft": {"epochs": 2, "batch_size": 32, "checkpoint_every": 1, "evaluations": 2},
    "pretrain": {"batch_size": 32, "checkpoint_every": 1},
    "preference": {"batch_size": 16, "evaluations": 2, "checkpoint_every": 1},
    "benchmarks": {
        "alpaca_eval": {"decoding": {"max_new_tokens": 3}},
        "mt_bench": {"decoding": {"max_new_tokens": 3}},
    },
    "tracking": {"enabled": False},
}

# What differs from start to start by its nature: times, memory, costs, what they are drawn in, when it was.
TIMES = re.compile(
    r"time|tstamp|seconds|memory|tokens_per_second|mfu|padding_share|busiest|n_resumed|disk_bytes|when|date"
)
NOT_COMPARED = re.compile(r"/(logs|benchmarks)/|/costs\.jsonl$|/cost\.|/\.lock$|/tables/main\.(md|html|tex)$")


def overlay(folder: Path, settings: dict[str, Any] = STUDY) -> str:
    """The study as a file."""
    file = folder / "faults.yaml"
    file.write_text(yaml.safe_dump(settings))
    return str(file)


class Workflow:
    """A run of Snakemake in a folder, in a separate process group, with marked processes."""

    def __init__(self, folder: Path, *arguments: str, cores: int = 1, source: Path = ROOT) -> None:
        self.mark = uuid.uuid4().hex
        self.log = folder / f"snakemake-{self.mark[:6]}.log"
        with self.log.open("wb") as stream:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "snakemake", "--snakefile", source / "Snakefile"),
                    *("--directory", folder, "--cores", str(cores)),
                    *("--profile", source / "profiles/default", *arguments),
                ],
                cwd=folder,
                env={**os.environ, "PYTHONWARNINGS": "ignore", MARK: self.mark},
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def output(self) -> str:
        """What it has printed so far."""
        return self.log.read_text(errors="replace")

    def begun(self) -> list[str]:
        """Rules of the jobs that have begun, in order."""
        return re.findall(r"^(?:local)?rule (\w+):", self.output(), re.MULTILINE)

    def finished(self) -> list[str]:
        """Rules of the jobs that have ended well, in order."""
        return re.findall(r"^Finished jobid: \d+ \(Rule: (\w+)\)", self.output(), re.MULTILINE)

    def members(self) -> list[psutil.Process]:
        """All its processes that are alive, also those that nobody waits for."""
        return list(marked(self.mark))

    def kill(self, *, group: bool) -> None:
        """SIGKILL to Snakemake alone, or to all of its process group."""
        (os.killpg if group else os.kill)(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def wait(self, seconds: float) -> int:
        """Wait for its end; return the exit status."""
        return self.process.wait(seconds)

    def clear(self) -> None:
        """Leave no process of a failed test."""
        for member in self.members():
            member.kill()


def marked(mark: str) -> Iterator[psutil.Process]:
    """Processes with this mark in their environment."""
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                yield process
        except psutil.Error:
            continue


def all_gone(run: Workflow, seconds: float = 15.0) -> list[str]:
    """Wait until none of its processes is left; return the command lines of those that stay."""
    deadline = time.monotonic() + patience(seconds)
    while (left := run.members()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return [" ".join(process.cmdline())[:200] for process in left if process.is_running()]


def final_files(results: Path) -> dict[str, str]:
    """Return the digest of every final file of a results folder, hidden ones too, without times."""
    found = {}
    for path in sorted(results.rglob("*")):
        name = f"/{path.relative_to(results)}"
        if path.is_file() and not NOT_COMPARED.search(name):
            found[name] = digest(path)
    return found


def digest(path: Path) -> str:
    """Return the content of a file without times, or its hash."""
    if path.suffix == ".json" and path.name != "manifest.json":
        return json.dumps(without_times(json.loads(path.read_text())), sort_keys=True)
    if path.name == "judgments.jsonl":
        rows = map(json.loads, path.read_text().splitlines())
        return "\n".join(json.dumps(without_times(row), sort_keys=True) for row in rows)
    if path.name == "manifest.json":
        told = json.loads(path.read_text())
        return json.dumps({**without_times(told), "files": sorted(told["files"])}, sort_keys=True)
    if path.suffix == ".csv":
        import pandas as pd

        table = pd.read_csv(path)
        return table[[column for column in table if not TIMES.search(str(column))]].to_csv()
    return sha256_of(path)


def without_times(value: Any) -> Any:
    """Return JSON without keys of times, memory and the like."""
    if isinstance(value, dict):
        return {key: without_times(inner) for key, inner in value.items() if not TIMES.search(key)}
    if isinstance(value, list):
        return [without_times(inner) for inner in value]
    return value
