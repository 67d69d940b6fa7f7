"""Fixtures of fault tests: undisturbed runs, a disk that fills up, damage, a run that stops half way."""

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sams.study.recipes import PreferenceRecipe
from sams.study.settings import Preference, Scheduler
from sams.training import preference
from sams.training.checkpoints import Checkpoints
from tests import tiny
from tests.faults.study import Workflow, overlay
from tests.tracking.test_tracking import workplace
from tests.training.conftest import prepared
from tests.training.test_runs import here

__all__ = ["prepared", "workplace"]

COURSE = {
    "batch_size": 16,
    "micro_batch_size": 8,
    "learning_rate": 1e-3,
    "checkpoint_every": 1,
    "evaluations": 1,
    "selector": "sams",
    "ratio": 0.5,
}


@dataclass
class Disk:
    """A separate file system, small enough to be filled."""

    folder: Path

    def resize(self, size: str) -> None:
        """Give it another size."""
        subprocess.run(["mount", "-o", f"remount,size={size}", self.folder], check=True)

    def fill(self) -> None:
        """Leave not a byte."""
        with (self.folder / "filler").open("ab", buffering=0) as stream:
            for size in (1 << 20, 1 << 12, 1):
                try:
                    while stream.write(b"x" * size) == size:
                        pass
                except OSError:
                    continue

    def empty(self) -> None:
        """Make room again."""
        (self.folder / "filler").unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A tmpfs of 32 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a file system that can be filled is a mount, which needs root")
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def recipe(**training: Any) -> PreferenceRecipe:
    """Four steps of SamS, a checkpoint after each but the last; the replay pool holds two rounds."""
    return PreferenceRecipe(
        seed=0,
        method="dpo-sams",
        model=tiny.settings(),
        scheduler=Scheduler(replay_rounds=2, replay_sample=6),
        training=Preference.model_validate(COURSE | training),
    )


def train(prepared: dict[str, Path], out: Path, checkpoints: Path, **training: Any) -> None:
    """Run the preference stage in this process."""
    here(preference, recipe(**training), **prepared, out=out, checkpoints=checkpoints)


class Stopped(Exception):
    """A run was stopped here."""


def before_save(monkeypatch: pytest.MonkeyPatch, step: int, act: Callable[[], None]) -> None:
    """Do something when the checkpoint of a step is about to be written."""
    save = Checkpoints.save

    def acting(self: Any, policy: Any, optimiser: Any, loop: dict[str, Any]) -> None:
        if loop["step"] == step:
            act()
        save(self, policy, optimiser, loop)
        if loop["step"] == step:
            self.wait()

    monkeypatch.setattr(Checkpoints, "save", acting)


def stop() -> None:
    """Stop the run."""
    raise Stopped


def flip(file: Path, place: int = -5) -> None:
    """Turn over one bit of a file."""
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


@pytest.fixture(scope="session")
def trained_undisturbed(prepared: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of the run that nothing disturbs."""
    folder = tmp_path_factory.mktemp("undisturbed")
    train(prepared, folder / "out", folder / "ck")
    return folder / "out"


def assert_same(out: Path, undisturbed: Path) -> None:
    """The metric log and the weights are those of the undisturbed run, bit by bit."""
    from tests.training.test_runs import weights

    assert (out / "train.jsonl").read_bytes() == (undisturbed / "train.jsonl").read_bytes()
    mine, theirs = weights(out), weights(undisturbed)
    assert mine.keys() == theirs.keys()
    assert all((mine[name] == value).all() for name, value in theirs.items())


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    """Results of a run that nobody disturbs, and how long each rule's first job takes there."""
    folder = tmp_path_factory.mktemp("undisturbed")
    run = Workflow(folder, "--configfile", overlay(folder))
    try:
        began: dict[str, float] = {}
        took: dict[str, float] = {}
        while run.process.poll() is None:
            now = time.monotonic()
            for rule in run.begun():
                began.setdefault(rule, now)
            for rule in run.finished():
                took.setdefault(rule, now - began[rule])
            time.sleep(0.1)
        assert run.process.returncode == 0, run.output()[-6000:]
    finally:
        run.clear()
    return folder, took
