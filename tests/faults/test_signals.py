"""Requests to stop: files and servers are closed, the training is saved, and the exit status is 75."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sams.runtime.processes import EXIT_INTERRUPTED, STOP_SIGNALS
from sams.study.recipes import Job
from sams.training import passes, preference
from tests.conftest import ROOT
from tests.faults.study import STUDY, Workflow, all_gone, overlay
from tests.training.test_runs import here, losses, preference_recipe

SECONDS = 300.0

# A stage that has something open, as a scorer has its proxy.
STAGE = """
import sys, time
from pathlib import Path
from sams.runtime.stage import run

def main(place: Path) -> None:
    try:
        place.write_text("begun")
        time.sleep(60)
    finally:
        place.write_text("closed")

run(main)
"""


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_stage_closes_what_is_open_and_ends_with_75(number: signal.Signals, tmp_path: Path) -> None:
    place = tmp_path / "place"
    command = [sys.executable, "-c", STAGE, "--place", str(place)]
    stage = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while not place.exists():
        assert stage.poll() is None
        time.sleep(0.05)
    time.sleep(0.2)
    stage.send_signal(number)
    told = stage.communicate(timeout=SECONDS)[1]
    assert stage.returncode == EXIT_INTERRUPTED == 75
    assert place.read_text() == "closed"
    assert f"stopped by {number.name}; run the same command to resume" in told and "Traceback" not in told


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_training_saves_and_goes_on_bitwise(
    number: signal.Signals, prepared: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signal comes in the second of four steps; no checkpoint is due before the end."""
    handlers = {each: signal.getsignal(each) for each in STOP_SIGNALS}
    recipe = preference_recipe(checkpoint_every=100)
    accumulate = passes.accumulate_gradient
    calls = iter(range(1, 100))

    def interrupted(*args: object, **kwargs: object) -> object:
        if next(calls) == 2:
            os.kill(os.getpid(), number)
        return accumulate(*args, **kwargs)

    try:
        with monkeypatch.context() as patched:
            patched.setattr(passes, "accumulate_gradient", interrupted)
            with pytest.raises(SystemExit) as stopped:
                here(preference, recipe, **prepared, out=tmp_path / "out", checkpoints=tmp_path / "c")
        assert stopped.value.code == EXIT_INTERRUPTED
        assert [path.name for path in tmp_path.glob("c/*/step-*")] == ["step-00000002"]
        here(preference, recipe, **prepared, out=tmp_path / "out", checkpoints=tmp_path / "c")
    finally:
        for each, handler in handlers.items():
            signal.signal(each, handler)
    here(preference, recipe, **prepared, out=tmp_path / "whole", checkpoints=tmp_path / "d")
    assert losses(tmp_path / "out") == losses(tmp_path / "whole")
    ours, theirs = (sorted((tmp_path / name / "trained").iterdir()) for name in ("out", "whole"))
    assert [file.name for file in ours] == [file.name for file in theirs]
    assert [one.read_bytes() == other.read_bytes() for one, other in zip(ours, theirs, strict=True)] == (
        [True] * len(ours)
    )


@pytest.mark.faults
@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_torchrun_passes_it_on_and_ends_with_75(
    number: signal.Signals, prepared: dict[str, Path], tmp_path: Path
) -> None:
    recipe = preference_recipe(max_steps=None, epochs=200, checkpoint_every=10_000)
    job = Job.model_validate({"launch": {"device": "cpu"}}).model_dump_json()
    paths = {**prepared, "out": tmp_path / "out", "checkpoints": tmp_path / "c"}
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "sams.launch.torchrun", "--standalone", "--nproc-per-node", "2"),
            *("-m", "sams.training.preference", "--recipe", recipe.model_dump_json()),
            *(word for name, path in paths.items() for word in (f"--{name}", str(path))),
        ],
        env={**os.environ, "SAMS_JOB": job},
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 600
    while not any(log.stat().st_size for log in tmp_path.glob("c/*/train.jsonl")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    began = time.monotonic()
    process.send_signal(number)
    while not list(tmp_path.glob("c/*/step-*/COMPLETE")):
        assert time.monotonic() - began < SECONDS
        time.sleep(0.02)
    saved = time.monotonic() - began
    told = process.communicate(timeout=SECONDS)[1]
    assert process.returncode == EXIT_INTERRUPTED, told[-3000:]
    assert "stopped on request; run the same command to resume" in told and "Traceback" not in told
    print(f"{number.name}: saved after {saved:.1f} s, ended after {time.monotonic() - began:.1f} s")


@pytest.mark.faults
def test_the_workflow_passes_it_on_and_ends_with_75(tmp_path: Path) -> None:
    """Once for each signal, on the same results, in a training that would take much longer."""
    long = {**STUDY, "sft": {**STUDY["sft"], "epochs": 2000, "checkpoint_every": 100_000}}
    checkpoints = tmp_path / "results/faults/checkpoints"
    steps = 0
    for number in STOP_SIGNALS:
        run = Workflow(tmp_path, "sft", "--configfile", overlay(tmp_path, long), cores=2)
        try:
            deadline = time.monotonic() + 900
            before = [log.stat().st_size for log in checkpoints.rglob("train.jsonl")]
            while not (
                "train_sft" in run.begun()
                and any(log.stat().st_size > sum(before) for log in checkpoints.rglob("train.jsonl"))
                and run.process.poll() is None
            ):
                assert run.process.poll() is None and time.monotonic() < deadline, run.output()[-3000:]
                time.sleep(0.1)
            began = time.monotonic()
            run.process.send_signal(number)
            assert run.wait(SECONDS) == EXIT_INTERRUPTED, run.output()[-3000:]
            print(f"{number.name} to the workflow: ended after {time.monotonic() - began:.1f} s")
            assert not all_gone(run)
            saved = max(int(mark.parent.name[5:]) for mark in checkpoints.rglob("step-*/COMPLETE"))
            assert saved > steps
            steps = saved
            assert "resuming" in "".join(log.read_text() for log in tmp_path.rglob("train_sft/*.log")) or (
                number == STOP_SIGNALS[0]
            )
        finally:
            run.clear()
