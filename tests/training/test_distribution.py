"""Several processes: uneven shares, another number of processes after a resume, a process that fails."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sams.policy.attention import SEGMENTS
from sams.runtime.files import read_json
from sams.study.recipes import Job, ReferenceRecipe
from sams.training import preference, reference
from tests import tiny
from tests.conftest import ROOT
from tests.training.test_runs import group, here, losses, preference_recipe, run, start, weights


def apart(one: Path, other: Path, model: Path) -> float:
    """Relative L2 difference of two runs' updates."""
    before = load_file(model / "model.safetensors")
    first, second = weights(one), weights(other)
    squares = torch.zeros(2, dtype=torch.float64)
    for name, value in first.items():
        squares[0] += (second[name] - value).double().square().sum()
        squares[1] += (value - before[name.removeprefix("policy.model.")]).double().square().sum()
    return float((squares[0] / squares[1]).sqrt())


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
@pytest.mark.parametrize("selected", [1, 3])
def test_uneven_hands_complete_and_equal_one_process(
    prepared: dict[str, Path], tmp_path: Path, strategy: str, selected: int
) -> None:
    """One pair leaves the second process with a row of weight 0; three are dealt as two and one."""
    ratio = {"ratio": selected / 16}
    run(prepared, tmp_path / "two", processes=2, strategy=strategy, **ratio)
    run(prepared, tmp_path / "one", **ratio)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-5)
    assert apart(tmp_path / "one", tmp_path / "two", prepared["model"]) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("saved_by", "resumed_by"),
    [((2, "ddp"), (4, "ddp")), ((2, "fsdp2"), (1, "ddp")), ((2, "fsdp2"), (4, "fsdp2"))],
)
def test_a_checkpoint_of_two_processes_is_resumed_by_another_number(
    prepared: dict[str, Path], tmp_path: Path, saved_by: tuple[int, str], resumed_by: tuple[int, str]
) -> None:
    recipe = preference_recipe(max_steps=None, epochs=6)
    paths = {**prepared, "out": tmp_path, "checkpoints": tmp_path / "c"}
    process = start("preference", recipe, processes=saved_by[0], strategy=saved_by[1], **paths)
    deadline = time.monotonic() + 600
    while not list(tmp_path.glob("c/*/step-0000000[5-9]/COMPLETE")):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.01)
    process.kill()
    process.communicate(timeout=120)
    assert not (tmp_path / "train_metrics.json").exists()
    if resumed_by[0] == 1:
        here(preference, recipe, **paths)
    else:
        group("preference", recipe, processes=resumed_by[0], strategy=resumed_by[1], **paths)
    here(preference, recipe, **{**paths, "out": tmp_path / "one", "checkpoints": tmp_path / "d"})
    assert losses(tmp_path) == pytest.approx(losses(tmp_path / "one"), abs=1e-4)


@pytest.mark.faults
def test_a_process_that_raises_ends_all(prepared: dict[str, Path], tmp_path: Path) -> None:
    script = tmp_path / "failing.py"
    script.write_text(
        """
import os
from sams.runtime.stage import run
from sams.training import preference, updates

check = updates.refuse_non_finite
def refuse(values, items, task, step):
    if step == 3 and os.environ["RANK"] == "1":
        raise RuntimeError("out of luck")
    check(values, items, task, step)

updates.refuse_non_finite = refuse
run(preference.main)
""",
        encoding="utf-8",
    )
    recipe = preference_recipe(max_steps=None, epochs=50)
    job = Job.model_validate({"launch": {"device": "cpu", "timeout_minutes": 60.0}}).model_dump_json()
    paths = {**prepared, "out": tmp_path / "out", "checkpoints": tmp_path / "c"}
    process = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
            *(str(script), "--recipe", recipe.model_dump_json()),
            *(word for name, path in paths.items() for word in (f"--{name}", str(path))),
        ],
        env={
            **os.environ,
            "SAMS_JOB": job,
            "PYTHONPATH": str(ROOT),
        },
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,  # well before the job's own time-out
    )
    assert process.returncode == 1
    assert "RuntimeError: out of luck" in process.stderr


@pytest.mark.slow
def test_sigterm_to_torchrun_saves_and_the_same_command_goes_on(
    prepared: dict[str, Path], tmp_path: Path
) -> None:
    recipe = preference_recipe(max_steps=None, epochs=30, checkpoint_every=10_000)
    paths: dict[str, Any] = {**prepared, "out": tmp_path, "checkpoints": tmp_path / "c"}
    process = start("preference", recipe, processes=2, **paths)
    deadline = time.monotonic() + 600
    while not any(log.stat().st_size for log in tmp_path.glob("c/*/train.jsonl")):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode != 0
    assert list(tmp_path.glob("c/*/step-*/COMPLETE"))
    here(preference, recipe, **paths)
    here(preference, recipe, **{**paths, "out": tmp_path / "one", "checkpoints": tmp_path / "d"})
    assert losses(tmp_path)[:8] == pytest.approx(losses(tmp_path / "one")[:8], abs=1e-4)
    assert len(losses(tmp_path)) == 120


@pytest.mark.slow  # four process groups
def test_the_reference_cache_is_the_same_however_it_is_dealt(
    prepared: dict[str, Path], tmp_path: Path
) -> None:
    from pyarrow import parquet

    recipe = ReferenceRecipe(model=tiny.settings(), micro_batch_size=3)
    inputs = {name: prepared[name] for name in ("tokens", "model")}
    group("reference", recipe, processes=2, **inputs, out=tmp_path / "two")
    before = torch.random.get_rng_state()
    here(reference, recipe, **inputs, out=tmp_path / "one")
    assert torch.equal(torch.random.get_rng_state(), before)
    tables = [
        parquet.read_table(folder / "train.parquet").to_pydict()
        for folder in (tmp_path / "one", tmp_path / "two", prepared["reference"])
    ]
    for table in tables[1:]:
        assert table["id"] == tables[0]["id"]
        for name in ("chosen", "rejected"):
            assert table[name] == pytest.approx(tables[0][name], rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_agree_on_what_they_find_out(
    prepared: dict[str, Path], tmp_path: Path, strategy: str
) -> None:
    """The search for micro-batches runs the wrapped policy, in which every process must take part alike."""
    found = {"micro_batch_size": "auto", "scoring_micro_batch_size": "auto"}
    run(prepared, tmp_path / "auto", processes=2, strategy=strategy, **found)
    run(prepared, tmp_path / "set", micro_batch_size=4)
    tuning = read_json(tmp_path / "auto" / "recipe.json")["tuning"]
    assert tuning["packed"] == SEGMENTS
    assert 1 <= tuning["micro_batch"] <= 4 and 1 <= tuning["scoring_micro_batch"] <= 8
    assert losses(tmp_path / "auto") == pytest.approx(losses(tmp_path / "set"), abs=1e-5)
