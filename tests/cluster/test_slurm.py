"""A study under a real Slurm: the same figures as on one machine, also after a job was stopped and queued again.

`make test-slurm` runs it: Slurm is installed, run on this machine as two nodes, and removed.
"""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from sams.files import sha256_of
from tests.cluster.slurm import Slurm, refuse
from tests.conftest import ROOT

pytestmark = pytest.mark.cluster

SNAKEMAKE = ROOT / ".venv-slurm" / "bin" / "snakemake"

STUDY: dict[str, Any] = {
    "study": "cluster",
    "methods": ["sft", "dpo-sams"],
    "data": {"world": {"sft_examples": 640, "train_pairs": 1920, "test_pairs": 64}},
    "model": {"architecture": {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128}},
    "sft": {"epochs": 1},
    "preference": {"evaluations": 2, "checkpoint_every": 1},
    "benchmarks": {"alpaca_eval": None, "mt_bench": None},
    "launch": {"nproc_per_node": 2, "device": "cpu"},
}
TIMES = ["train_seconds", "preparation_seconds", "peak_memory_mb"]
"""Columns of the tables that differ from run to run."""

STARTED: list["subprocess.Popen[str]"] = []
RUN = "results/cluster/world/dpo-sams/seed0"
QUICK = ["--slurm-init-seconds-before-status-checks", "3", "--seconds-between-status-checks", "3"]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """A Slurm of two nodes, taken down at the end whatever happens."""
    if not SNAKEMAKE.is_file():
        pytest.skip("no .venv-slurm: make env-slurm")
    if why := refuse():
        pytest.skip(why)
    cluster = Slurm(tmp_path_factory.mktemp("slurm"))
    try:
        cluster.install()
        cluster.start()
        yield cluster
    finally:
        for process in STARTED:
            process.kill()
        cluster.stop()
        cluster.purge()


def config(folder: Path, **launch: Any) -> list[str]:
    """Options that choose the study."""
    file = folder / f"study{'-'.join(map(str, launch.values()))}.yaml"
    file.write_text(yaml.safe_dump(STUDY | {"launch": STUDY["launch"] | launch}))
    return ["--configfile", str(file)]


def start(folder: Path, profile: str, *arguments: str, **environment: str) -> "subprocess.Popen[str]":
    """Start snakemake in a folder."""
    process = subprocess.Popen(
        [
            *(SNAKEMAKE, "--snakefile", ROOT / "Snakefile", "--directory", folder),
            *("--profile", ROOT / "profiles" / profile, *arguments),
        ],
        cwd=folder,
        env={**os.environ, **environment},
        stdout=(folder / f"{profile}.log").open("a"),
        stderr=subprocess.STDOUT,
        text=True,
    )
    STARTED.append(process)
    return process


def under_slurm(folder: Path, slurm: Slurm, *arguments: str) -> "subprocess.Popen[str]":
    """Start snakemake with the Slurm profile; what the test sets is how often it asks, and whom."""
    options = ["--jobs", "2", "--slurm-no-account", "--slurm-status-command", "squeue", "--latency-wait", "5"]
    return start(folder, "slurm", *options, *QUICK, *arguments, SLURM_CONF=str(slurm.state / "slurm.conf"))


def stop_training(folder: Path, slurm: Slurm, study: "subprocess.Popen[str]") -> str:
    """Have Slurm send SIGTERM to the training once it has some checkpoints; returns the job's id."""
    done = f"{RUN}/trained/manifest.json"

    def some_steps() -> bool:
        assert study.poll() is None, (folder / "slurm.log").read_text()[-4000:]
        assert not (folder / done).is_file(), "too late: it is trained"
        found = folder.glob("results/cluster/checkpoints/world/dpo-sams/seed0/*/step-*/COMPLETE")
        return any(int(mark.parent.name.split("-")[1]) >= 3 for mark in found)

    slurm.wait("training", some_steps, 1200)
    listed = [line.split() for line in slurm.run("squeue", "--noheader", "--format=%i %k %T").splitlines()]
    (job,) = [
        found for found, comment, state in listed if "train_preference" in comment and state == "RUNNING"
    ]
    slurm.run("scancel", "--signal=TERM", job)
    slurm.wait("queued again", lambda: "Restarts=1" in slurm.run("scontrol", "show", "job", job), 180)
    return job


def finish(study: "subprocess.Popen[str]", folder: Path, log: str = "slurm.log") -> None:
    """Wait for the end of snakemake, which must be a good one."""
    try:
        status = study.wait(1800)
    except subprocess.TimeoutExpired:
        study.kill()
        status = -1
    assert status == 0, (folder / log).read_text()[-8000:]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, slurm: Slurm) -> Path:
    """The study on this machine, without a scheduler."""
    folder = tmp_path_factory.mktemp("alone")
    finish(start(folder, "default", "--cores", "2", *config(folder)), folder, "default.log")
    return folder


@pytest.fixture(scope="module")
def scheduled(tmp_path_factory: pytest.TempPathFactory, slurm: Slurm) -> Path:
    """The study under Slurm; its training on preferences was stopped once and went on."""
    folder = tmp_path_factory.mktemp("scheduled")
    study = under_slurm(folder, slurm, *config(folder))
    job = stop_training(folder, slurm, study)
    finish(study, folder)
    assert f"SLURM jobid {job}" in (folder / "slurm.log").read_text()
    return folder


def tables(folder: Path) -> dict[str, pd.DataFrame]:
    """Tables of a study without the columns of time and memory, as text: bit by bit."""
    found = sorted((folder / "results/cluster/tables").glob("*.csv"))
    read = {file.name: pd.read_csv(file, dtype=str) for file in found}
    return {
        name: table[[column for column in table if not column.startswith(tuple(TIMES))]]
        for name, table in read.items()
    }


def test_tables_are_the_same_bit_by_bit(alone: Path, scheduled: Path) -> None:
    expected, found = tables(alone), tables(scheduled)
    assert set(expected) == set(found) == {"main.csv", "comparisons.csv"}
    for name, table in expected.items():
        pd.testing.assert_frame_equal(found[name], table)


def test_the_stopped_training_went_on_from_its_checkpoint(alone: Path, scheduled: Path) -> None:
    assert (
        "resuming after step"
        in (scheduled / "results/cluster/logs/world/train_preference/dpo-sams-seed0.log").read_text()
    )
    for name in ("train.jsonl", "model/model.safetensors"):
        assert sha256_of(scheduled / RUN / name) == sha256_of(alone / RUN / name), name


def test_two_nodes_train_the_same_model_also_when_stopped(alone: Path, scheduled: Path, slurm: Slurm) -> None:
    """One process on each of two nodes in place of two on one, started by srun."""
    target = f"{RUN}/trained/manifest.json"
    before = json.loads((scheduled / RUN / "train_metrics.json").read_text())
    (scheduled / target).unlink()
    arguments = config(scheduled, nodes=2, nproc_per_node=1)
    study = under_slurm(scheduled, slurm, *arguments, target)
    stop_training(scheduled, slurm, study)
    finish(study, scheduled)
    log = (scheduled / "results/cluster/logs/world/train_preference/dpo-sams-seed0.log").read_text()
    assert "resuming after step" in log
    after = json.loads((scheduled / RUN / "train_metrics.json").read_text())
    assert after["world_size"] == before["world_size"] == 2
    assert sha256_of(scheduled / RUN / "train.jsonl") == sha256_of(alone / RUN / "train.jsonl")
