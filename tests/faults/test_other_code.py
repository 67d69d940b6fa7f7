"""A stopped run whose code has changed: its checkpoint stays, and a warning says how to resume from it."""

import logging
import re
import subprocess
from pathlib import Path

import pytest
import torch

from sams.study import code as code_of_study
from sams.training.checkpoints import Checkpoints
from sams.training.distribution import Workers
from tests.faults.conftest import Stopped, assert_same, before_save, stop, train
from tests.faults.test_torn import interrupted, steps_taken

OLD, NEW = {"sams.a": "1", "sams.b": "1"}, {"sams.a": "1", "sams.b": "2"}
INPUTS = {"recipe": {"seed": 0}}


@pytest.fixture(scope="module")
def workers() -> Workers:
    return Workers(device="cpu", strategy="ddp", precision="float32", threads=1, timeout_minutes=1)


def stopped_at(step: int, folder: Path, workers: Workers, code: dict[str, str]) -> Checkpoints:
    """A run that was stopped after a checkpoint."""
    policy = torch.nn.Linear(2, 2)
    run = Checkpoints(folder, workers, inputs=INPUTS, code=code)
    run.save(policy, torch.optim.AdamW(policy.parameters()), {"step": step})
    return run


def test_the_checkpoint_of_other_code_is_kept_and_named(
    tmp_path: Path, workers: Workers, caplog: pytest.LogCaptureFixture
) -> None:
    old = stopped_at(7, tmp_path, workers, OLD)
    new = Checkpoints(tmp_path, workers, inputs=INPUTS, code=NEW)
    assert old.steps() == [7] and new.steps() == [] and new.folder != old.folder
    [warning] = [record for record in caplog.records if record.levelno == logging.WARNING]
    text = warning.getMessage()
    assert "step 7" in text and "(sams.b)" in text and "sams.a" not in text
    assert f"rm -r {new.folder} && mv {old.folder} {new.folder}" in text


def test_the_newest_one_alone_is_kept(tmp_path: Path, workers: Workers) -> None:
    older = stopped_at(7, tmp_path, workers, OLD)
    newer = stopped_at(3, tmp_path, workers, NEW)
    run = Checkpoints(tmp_path, workers, inputs=INPUTS, code={"sams.a": "2"})
    assert newer.steps() == [3] and not older.folder.exists()
    run.remove()
    assert not any(tmp_path.iterdir()), "a finished run needs none"


@pytest.mark.parametrize("damage", ["inputs", "checkpoint", "note"])
def test_a_run_that_cannot_be_resumed_is_deleted(damage: str, tmp_path: Path, workers: Workers) -> None:
    old = stopped_at(7, tmp_path, workers, OLD)
    inputs = {"recipe": {"seed": 1}} if damage == "inputs" else INPUTS
    if damage == "checkpoint":
        (old.folder / "step-00000007/COMPLETE").unlink()
    if damage == "note":
        (old.folder / "run.json").write_text("{")
    Checkpoints(tmp_path, workers, inputs=inputs, code=NEW)
    assert not old.folder.exists()


def test_a_run_resumes_with_new_code_after_the_command_of_the_warning(
    prepared: dict[str, Path],
    trained_undisturbed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(code_of_study, "code_of_job", lambda stage, recipe: {"sams.training.loop": "older"})
        interrupted(prepared, tmp_path, monkeypatch)
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        before_save(patch, 1, stop)
        train(prepared, tmp_path / "out", tmp_path / "ck")
    [command] = re.findall(r"`(rm -r [^`]*)`", caplog.text)
    subprocess.run(command, shell=True, check=True)
    caplog.set_level(logging.INFO, logger="sams")
    train(prepared, tmp_path / "out", tmp_path / "ck")
    assert steps_taken(tmp_path)[-1] == 4 and "resuming after step 3" in caplog.text
    assert_same(tmp_path / "out", trained_undisturbed)
    assert not any((tmp_path / "ck").iterdir())
