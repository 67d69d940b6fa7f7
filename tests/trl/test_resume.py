"""Checkpoints: a resumed run takes the same steps, bit by bit."""

import shutil
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from torch.utils._pytree import tree_flatten
from transformers import TrainerCallback

from sams.runtime.errors import UserError
from tests.trl import small
from tests.trl.runs import Noted, run

STEPS = 10
SETTINGS = {
    "selector": "sams",
    "scheduler_kwargs": {"replay_bytes": 30_000, "replay_sample": 8},
    "num_train_epochs": 4,  # of 24 pairs: 3 steps each
    "max_steps": STEPS,
    "save_strategy": "steps",
    "save_steps": 1,
}
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


class StopAfterOne(TrainerCallback):
    """Stops a run after its first step."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop = True


@pytest.fixture(scope="module")
def data() -> datasets.Dataset:
    datasets.disable_progress_bars()
    return small.pairs(24)


@pytest.fixture(scope="module")
def complete(data: datasets.Dataset, tmp_path_factory: pytest.TempPathFactory) -> Noted:
    """A run with a checkpoint after each step, and a pool that is full after some."""
    return run(tmp_path_factory.mktemp("complete"), data, **SETTINGS)


def assert_equal(one: Any, other: Any) -> None:
    (values, form), (others, other_form) = tree_flatten(one), tree_flatten(other)
    assert form == other_form
    for value, same in zip(values, others, strict=True):
        assert torch.equal(value, same) if isinstance(value, torch.Tensor) else value == same


def read(checkpoint: Path, name: str) -> Any:
    return torch.load(checkpoint / name, weights_only=True)


@pytest.mark.parametrize(
    "step",
    [step if step in (2, 9) else pytest.param(step, marks=pytest.mark.slow) for step in range(1, STEPS)],
)
def test_the_step_after_a_checkpoint_is_the_same(
    tmp_path: Path, complete: Noted, data: datasets.Dataset, step: int
) -> None:
    """Rows, weights, optimiser and selector, in another folder than the one that the run began in."""
    source = Path(complete.args.output_dir)
    resumed: Noted = small.trainer(tmp_path, data, kind=Noted, **SETTINGS)
    resumed.add_callback(StopAfterOne())
    resumed.train(resume_from_checkpoint=str(source / f"checkpoint-{step}"))

    assert resumed.rows == complete.rows[step : step + 1]
    before, after = source / f"checkpoint-{step + 1}", tmp_path / f"checkpoint-{step + 1}"
    assert (after / "model.safetensors").read_bytes() == (before / "model.safetensors").read_bytes()
    for name in ("optimizer.pt", "selector.pt", "scheduler.pt"):
        assert_equal(read(after, name), read(before, name))


def test_files_of_the_selector_are_in_the_checkpoint(complete: Noted) -> None:
    folder = Path(complete.args.output_dir)
    assert [*(folder / f"checkpoint-{STEPS}/replay").iterdir()]
    assert not (folder / "_selector").exists()


def test_a_checkpoint_of_another_selector_is_refused(
    tmp_path: Path, complete: Noted, data: datasets.Dataset
) -> None:
    checkpoint = Path(complete.args.output_dir) / "checkpoint-2"
    with pytest.raises(UserError, match=r"selector sams with settings .* wrote this checkpoint, and random"):
        small.trainer(tmp_path, data, **SETTINGS | {"selector": "random"}).train(
            resume_from_checkpoint=str(checkpoint)
        )


def test_a_checkpoint_without_a_selector_starts_it_anew(
    tmp_path: Path, complete: Noted, data: datasets.Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    """So that a run of plain TRL can be continued with a selector."""
    checkpoint = tmp_path / "checkpoint-2"
    shutil.copytree(Path(complete.args.output_dir) / "checkpoint-2", checkpoint)
    (checkpoint / "selector.pt").unlink()
    resumed: Noted = small.trainer(tmp_path, data, kind=Noted, **SETTINGS)
    resumed.add_callback(StopAfterOne())
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert "starts anew" in caplog.text
    assert len(resumed.rows[0]) == 4
