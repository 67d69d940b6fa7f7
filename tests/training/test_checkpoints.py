"""Asynchronous checkpoints: a copy of the state, written by a thread."""

import logging
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

from sams.policy.model import add_lora, build_model
from sams.runtime.errors import UserError
from sams.runtime.faults import explained
from sams.study.settings import Lora
from sams.training import checkpoints
from sams.training.checkpoints import Checkpoints
from sams.training.distribution import Workers
from tests import tiny
from tests.faults.conftest import Disk, disk
from tests.training.forks import server

__all__ = ["disk"]


@pytest.fixture(scope="module")
def workers() -> Workers:
    return Workers(device="cpu", strategy="ddp", precision="float32", threads=1, timeout_minutes=1)


class Run:
    """A policy of one layer with its optimiser, and its checkpoints."""

    def __init__(self, folder: Path, workers: Workers) -> None:
        self.policy = torch.nn.Linear(2, 2)
        self.optimiser = torch.optim.AdamW(self.policy.parameters())
        self.selector = torch.zeros(3)
        self.checkpoints = Checkpoints(folder, workers, inputs={}, code={}, asynchronous=True)

    def step(self, number: int) -> None:
        """Take a step in which all values become those of its number, and save."""
        self.policy(torch.full((1, 2), float(number))).sum().backward()
        self.optimiser.step()
        self.policy.weight.data.fill_(number)
        self.selector.fill_(number)
        self.checkpoints.save(self.policy, self.optimiser, {"step": number, "selector": self.selector})

    def restored(self) -> tuple[int, float, float, float]:
        """Load the newest checkpoint: its step, the largest weight, first moment and value of the selector."""
        loop = self.checkpoints.restore(self.policy, self.optimiser)
        assert loop is not None
        moment = self.optimiser.state[self.policy.weight]["exp_avg"]
        return (
            loop["step"],
            self.policy.weight.max().item(),
            moment.max().item(),
            loop["selector"].max().item(),
        )


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Hold writes back until this event."""
    event, save = threading.Event(), dcp.save

    def after_event(*args: Any, **kwargs: Any) -> Any:
        assert event.wait(30)
        return save(*args, **kwargs)

    monkeypatch.setattr(checkpoints.dcp, "save", after_event)
    return event


def test_a_checkpoint_holds_the_state_of_its_step_though_training_continues(
    workers: Workers, tmp_path: Path, held: threading.Event
) -> None:
    run = Run(tmp_path, workers)
    run.step(1)
    moment = run.optimiser.state[run.policy.weight]["exp_avg"].max().item()
    assert run.checkpoints.steps() == []  # still being written
    run.policy.weight.data.fill_(9)
    run.optimiser.state[run.policy.weight]["exp_avg"].fill_(9)
    run.selector.fill_(9)
    held.set()
    run.checkpoints.wait()
    assert run.restored() == (1, 1.0, moment, 1.0)


def test_a_save_waits_for_the_one_before_it_and_keeps_two(workers: Workers, tmp_path: Path) -> None:
    run = Run(tmp_path, workers)
    for number in range(1, 5):
        run.step(number)
        assert run.checkpoints.steps()[-2:] in ([*range(1, number)][-2:], [*range(1, number + 1)][-2:])
    run.checkpoints.wait()
    assert run.checkpoints.steps() == [3, 4]


def test_an_error_of_the_thread_is_raised_by_the_next_save_and_leaves_the_older_checkpoint(
    workers: Workers, disk: Disk
) -> None:
    run = Run(disk.folder / "ck", workers)
    run.step(1)
    run.checkpoints.wait()
    disk.fill()
    run.step(2)
    with pytest.raises(OSError) as failure:  # noqa: PT011
        run.step(3)
    error = explained(failure.value)
    assert isinstance(error, UserError)
    assert "step-00000002: cannot be written: the disk is full" in str(error)
    assert [path.name for path in run.checkpoints.folder.glob("*step-*")] == ["step-00000001"]
    disk.empty()
    run.step(4)
    run.checkpoints.wait()
    assert run.checkpoints.steps() == [1, 4]


def test_without_memory_for_the_copy_training_waits(
    workers: Workers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(checkpoints, "free_bytes", lambda device: 10)
    run = Run(tmp_path, workers)
    with caplog.at_level(logging.WARNING):
        run.step(1)
    assert run.checkpoints.steps() == [1]
    assert "training waits until the checkpoint is written" in caplog.text


@pytest.mark.parametrize("tied", [False, True])
def test_a_checkpoint_of_adapters_holds_no_frozen_weight(
    workers: Workers, tmp_path: Path, tied: bool
) -> None:
    kind = tiny.SIZES | tiny.ARCHITECTURES["llama"] | {"tie_word_embeddings": tied}

    def adapted() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        model = build_model(tiny.settings(architecture=kind), tiny.tokenizer(), seed=0)
        add_lora(model, Lora(r=2))
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return model, torch.optim.AdamW(trained)

    run = Checkpoints(tmp_path, workers, inputs={}, code={})
    model, optimiser = adapted()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.ones_like(parameter)
    optimiser.step()
    run.save(model, optimiser, {"step": 1})
    stored = dcp.FileSystemReader(run.folder / "step-00000001").read_metadata().state_dict_metadata
    assert {name.rpartition(".lora_")[1] for name in stored if name.startswith("policy.")} == {".lora_"}
    resumed, state = adapted()
    assert run.restore(resumed, state) == {"step": 1}
    for (name, parameter), other in zip(resumed.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(parameter, other), name


def test_processes_save_while_they_train_and_all_raise_the_error_of_one(
    prepared: dict[str, Path], tmp_path: Path
) -> None:
    arguments = {"model": prepared["model"], "folder": tmp_path}
    statuses = server().start("tests.training.sharded_saving", arguments, processes=2)
    assert statuses == [0, 0], server().output()
    raised = sorted(line for line in server().output().splitlines() if line.startswith("rank"))
    assert [line.rpartition("/")[0].partition(" /")[0] for line in raised] == [
        f"rank {rank}: No space left on device" for rank in range(2)
    ]
    assert all(line.endswith("step-00000002") for line in raised)
