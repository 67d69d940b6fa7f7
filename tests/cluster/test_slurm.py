"""A study under a real Slurm: the same figures as on one machine, also after a job was stopped and queued again.

`make test-slurm` runs it: Slurm is installed, run on this machine as two nodes, and removed.
"""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from sams.runtime.files import read_json, sha256_of
from tests.cluster.slurm import Slurm, refuse
from tests.conftest import ROOT

pytestmark = pytest.mark.cluster

SNAKEMAKE = ROOT / ".venv-slurm" / "bin" / "snakemake"

STUDY: dict[str, Any] = {
    "study": "cluster",
    "methods": ["sft", "dpo-sams"],
    "data": {"world": {"sft_examples": 640, "train_pairs": 256, "test_pairs": 64}},
    "model": {"architecture": {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128}},
    "sft": {"epochs": 3, "checkpoint_every": 1},
    "preference": {"evaluations": 2},
    "benchmarks": {"alpaca_eval": None, "mt_bench": None},
    "tracking": {"enabled": False},
    "launch": {"nproc_per_node": 2, "device": "cpu"},
}
TIMES = ["train_seconds", "preparation_seconds", "peak_memory_mb"]
"""Columns of the tables that differ from run to run."""

STARTED: list["subprocess.Popen[str]"] = []
SFT = "results/cluster/world/sft/seed0"
TRAINED = f"{SFT}/trained/manifest.json"
QUICK = [
    "--slurm-init-seconds-before-status-checks",
    "3",
    "--seconds-between-status-checks",
    "3",
    "--set-threads=tokenise=2",
]


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


def start(folder: Path, profile: str, *arguments: str) -> "subprocess.Popen[str]":
    """Start snakemake in a folder."""
    process = subprocess.Popen(
        [
            *(SNAKEMAKE, "--snakefile", ROOT / "Snakefile", "--directory", folder),
            *("--profile", ROOT / "profiles" / profile, *arguments),
        ],
        cwd=folder,
        stdout=(folder / f"{profile}.log").open("a"),
        stderr=subprocess.STDOUT,
        text=True,
    )
    STARTED.append(process)
    return process


def under_slurm(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    """Start snakemake with the Slurm profile; what the test sets is how often it asks, and whom."""
    options = ["--jobs", "2", "--slurm-no-account", "--slurm-status-command", "squeue", "--latency-wait", "5"]
    return start(folder, "slurm", *options, *QUICK, *arguments)


def stop_training(folder: Path, slurm: Slurm, study: "subprocess.Popen[str]") -> str:
    """Have Slurm send SIGTERM to the training once it has some checkpoints; returns the job's id."""

    def some_steps() -> bool:
        assert study.poll() is None, (folder / "slurm.log").read_text()[-4000:]
        assert not (folder / TRAINED).is_file(), "too late: it is trained"
        found = folder.glob("results/cluster/checkpoints/world/sft/seed0/*/step-*/COMPLETE")
        return any(int(mark.parent.name.split("-")[1]) >= 3 for mark in found)

    slurm.wait("training", some_steps, 1200)
    listed = [line.split() for line in slurm.run("squeue", "--noheader", "--format=%i %k %T").splitlines()]
    (job,) = [found for found, comment, state in listed if "train_sft" in comment and state == "RUNNING"]
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
    """The study's SFT model, trained on this machine without a scheduler."""
    folder = tmp_path_factory.mktemp("alone")
    finish(start(folder, "default", TRAINED, "--cores", "2", *config(folder)), folder, "default.log")
    return folder


@pytest.fixture(scope="module")
def scheduled(tmp_path_factory: pytest.TempPathFactory, slurm: Slurm) -> Path:
    """The same under Slurm; its training is stopped once and continues."""
    folder = tmp_path_factory.mktemp("scheduled")
    study = under_slurm(folder, TRAINED, *config(folder))
    job = stop_training(folder, slurm, study)
    finish(study, folder)
    assert f"SLURM jobid {job}" in (folder / "slurm.log").read_text()
    return folder


def went_on(folder: Path) -> bool:
    """Whether the training's last start found a checkpoint."""
    log = folder / "results/cluster/logs/world/train_sft/seed0.log"
    return "resuming after step" in log.read_text()


def test_a_stopped_training_is_queued_again_and_ends_bit_by_bit_the_same(
    alone: Path, scheduled: Path
) -> None:
    assert went_on(scheduled) and not went_on(alone)
    assert sha256_of(scheduled / SFT / "train.jsonl") == sha256_of(alone / SFT / "train.jsonl")


def test_two_nodes_train_the_same_model_also_when_stopped(alone: Path, scheduled: Path, slurm: Slurm) -> None:
    """One process on each of two nodes instead of two on one, started by srun."""
    (scheduled / TRAINED).unlink()
    study = under_slurm(scheduled, TRAINED, *config(scheduled, nodes=2, nproc_per_node=1))
    stop_training(scheduled, slurm, study)
    finish(study, scheduled)
    assert went_on(scheduled)
    assert read_json(scheduled / SFT / "train_metrics.json")["world_size"] == 2
    assert sha256_of(scheduled / SFT / "train.jsonl") == sha256_of(alone / SFT / "train.jsonl")


def test_the_tables_of_the_study_are_the_same_bit_by_bit(alone: Path, scheduled: Path) -> None:
    finish(start(alone, "default", "--cores", "2", *config(alone)), alone, "default.log")
    finish(under_slurm(scheduled, *config(scheduled)), scheduled)
    expected, found = tables(alone), tables(scheduled)
    assert set(expected) == set(found) == {"main.csv", "comparisons.csv"}
    for name, table in expected.items():
        pd.testing.assert_frame_equal(found[name], table)
    for method in STUDY["methods"]:
        weights = f"results/cluster/world/{method}/seed0/model/model.safetensors"
        assert sha256_of(scheduled / weights) == sha256_of(alone / weights), method


def tables(folder: Path) -> dict[str, pd.DataFrame]:
    """Tables of a study without the columns of time and memory, as text: bit by bit."""
    found = sorted((folder / "results/cluster/tables").glob("*.csv"))
    read = {file.name: pd.read_csv(file, dtype=str) for file in found}
    return {
        name: table[[column for column in table if not column.startswith(tuple(TIMES))]]
        for name, table in read.items()
    }
