"""Whole training jobs as torchrun starts them: distribution, resume, interruption, bad starts."""

import itertools
import json
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import transformers
from safetensors.torch import load_file

from sams.runtime.errors import UserError
from sams.runtime.files import read_json, write_manifest
from sams.scheduling.selectors.base import Setup, View
from sams.scheduling.selectors.random import Random
from sams.study.recipes import Job, PreferenceRecipe, PretrainRecipe, SftRecipe
from sams.study.settings import Preference, Pretrain, Scheduler, Settings, Sft
from sams.training import loop, preference, pretrain_scheduler, sft
from sams.training.batches import rounds
from sams.training.checkpoints import Checkpoints
from sams.training.distribution import Workers
from tests import tiny
from tests.conftest import ROOT
from tests.training.forks import Point, server

FEW = {
    "batch_size": 16,
    "micro_batch_size": 4,
    "learning_rate": 1e-3,
    "checkpoint_every": 100,
    "max_steps": 4,
}
TRAINING = {
    "batch_size": 16,
    "micro_batch_size": 1,
    "learning_rate": 1e-3,
    "checkpoint_every": 1,
    "evaluations": 1,
}


def start(module: str, recipe: Settings, *, processes: int, strategy: str = "ddp", **paths: Path) -> Any:
    """Start a training job as the workflow does."""
    launch = {"device": "cpu", "strategy": strategy, "timeout_minutes": 2.0}
    return subprocess.Popen(
        [
            *(
                sys.executable,
                "-m",
                "torch.distributed.run",
                "--standalone",
                "--nproc-per-node",
                str(processes),
            ),
            *("-m", f"sams.training.{module}", "--recipe", recipe.model_dump_json()),
            *(word for name, path in paths.items() for word in (f"--{name}", str(path))),
        ],
        env={**os.environ, "SAMS_JOB": Job.model_validate({"launch": launch}).model_dump_json()},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process: Any, status: int = 0) -> str:
    """Wait for a job; return what it printed."""
    output: str = process.communicate(timeout=600)[0]
    assert process.returncode == status, output
    return output


def here(module: Any, recipe: Settings, **paths: Path) -> None:
    """Run a stage in this process, as one worker: the same function, without the cost of a launch."""
    module.main(recipe=recipe.model_dump_json(), **paths)


def preference_recipe(**overrides: Any) -> PreferenceRecipe:
    training = Preference.model_validate(
        TRAINING | {"max_steps": 4, "selector": "sams", "ratio": 0.5} | overrides
    )
    scheduler = Scheduler() if training.selector == "sams" else None
    return PreferenceRecipe(
        seed=0, method="test", model=tiny.settings(), training=training, scheduler=scheduler
    )


def weights(out: Path) -> dict[str, torch.Tensor]:
    """Trained weights, gathered from their shards."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint import FileSystemReader

    metadata = FileSystemReader(out / "trained").read_metadata().state_dict_metadata
    state: dict[str, Any] = {name: torch.empty(entry.size) for name, entry in metadata.items()}
    dcp.load(state, checkpoint_id=out / "trained")
    return state


def losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "train.jsonl").read_text().splitlines()]


def group(module: str, recipe: Settings, *, processes: int, strategy: str = "ddp", **paths: Path) -> None:
    """Run a stage in a process group without torchrun, which takes many times as long to start."""
    arguments = {"recipe": recipe.model_dump_json(), **paths}
    statuses = server().start(f"sams.training.{module}", arguments, processes=processes, strategy=strategy)
    assert statuses == [0] * processes, server().output()


def run(
    prepared: dict[str, Path], out: Path, *, processes: int = 1, strategy: str = "ddp", **overrides: Any
) -> None:
    """Train one method, in this process or in a process group."""
    recipe = preference_recipe(**overrides)
    if processes == 1:
        here(preference, recipe, **prepared, out=out, checkpoints=out / "c")
    else:
        paths = {**prepared, "out": out, "checkpoints": out / "c"}
        group("preference", recipe, processes=processes, strategy=strategy, **paths)


@pytest.fixture(scope="module")
def single(prepared: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in one process, with which others are compared."""
    out = tmp_path_factory.mktemp("single") / "out"
    run(prepared, out)
    return out


def test_training_moves_the_policy_and_reports(prepared: dict[str, Path], single: Path) -> None:
    before = load_file(prepared["model"] / "model.safetensors")
    after = weights(single)
    moved = [name for name, value in before.items() if not torch.equal(after[f"policy.model.{name}"], value)]
    assert len(moved) == len(before)
    lines = [json.loads(line) for line in (single / "train.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert all(line["grad_norm"] > 0 for line in lines)
    assert lines[0]["loss"] == pytest.approx(0.6931, abs=1e-3)
    assert {"scheduler/batch_reward", "selected/flipped_share", "all/rewards/margins"} <= set(lines[1])
    metrics = json.loads((single / "train_metrics.json").read_text())
    assert metrics["pairs_seen"] == 64
    assert metrics["pairs_trained"] == 32
    assert 0 <= metrics["test_accuracy"] <= 100


def test_the_gradient_norm_is_that_of_the_mean_over_the_selected(
    prepared: dict[str, Path], tmp_path: Path
) -> None:
    """AdamW takes nearly the same step with half of a gradient; its norm tells."""
    run(prepared, tmp_path, selector="random", max_steps=1)
    [line] = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]

    _, batch = next(rounds(64, 16, 1, 0))
    data = tiny.pairs(64, seed=1)
    policy = transformers.AutoModelForCausalLM.from_pretrained(prepared["model"], dtype=torch.float64)
    gaps = []
    for item in (batch[index] for index in Random(Setup()).choose(View(numbers=torch.arange(16)), 8)):
        logps = []
        for side in ("chosen_ids", "rejected_ids"):
            prompt, completion = data["prompt_ids"][item], data[side][item]
            logits = policy(input_ids=torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1]
            logps.append(logits.log_softmax(1).gather(1, torch.tensor(completion)[:, None]).sum())
        gaps.append(logps[0] - logps[1])
    # Policy and reference are the same model, so all margins are 0, where -log sigmoid(beta gap) falls by beta / 2.
    (-0.1 / 2 * torch.stack(gaps)).mean().backward()
    norm = torch.stack([parameter.grad.square().sum() for parameter in policy.parameters()]).sum().sqrt()
    assert line["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)


def test_there_is_one_batch_reward_per_optimiser_step(single: Path) -> None:
    """Eight micro-batches make a step here: A and B are of whole batches, one update apart (SamS Eq. 6)."""
    lines = [json.loads(line) for line in (single / "train.jsonl").read_text().splitlines()]
    assert "scheduler/batch_reward" not in lines[0]
    for before, after in itertools.pairwise(lines):
        a, b = math.exp(before["all/loss"]), math.exp(after["all/loss"])
        # The first step of the warm-up has rate 0.
        assert (a != b) == (before["learning_rate"] > 0)
        assert after["scheduler/batch_reward"] == pytest.approx((a - b) / max(a, b), abs=1e-6)


def test_the_export_holds_the_trained_weights_bit_by_bit(prepared: dict[str, Path]) -> None:
    exported = load_file(prepared["model"] / "model.safetensors")
    trained = weights(prepared["model"].parent / "sft")
    assert exported and {f"policy.model.{name}" for name in exported} <= set(trained)
    for name, value in exported.items():
        assert torch.equal(value, trained[f"policy.model.{name}"]), name


@pytest.mark.parametrize(("processes", "strategy"), [(2, "ddp"), (2, "fsdp2")])
def test_two_processes_equal_one(
    prepared: dict[str, Path], single: Path, tmp_path: Path, processes: int, strategy: str
) -> None:
    run(prepared, tmp_path / "out", processes=processes, strategy=strategy)
    assert losses(tmp_path / "out") == pytest.approx(losses(single), abs=1e-5)
    recorded, expected = (pd.read_parquet(folder / "pairs.parquet") for folder in (tmp_path / "out", single))
    pd.testing.assert_frame_equal(recorded, expected, rtol=1e-5, atol=1e-5)
    theirs = weights(single)
    start_weights = load_file(prepared["model"] / "model.safetensors")
    for name, value in weights(tmp_path / "out").items():
        moved = (theirs[name] - start_weights[name.removeprefix("policy.model.")]).norm()
        assert (value - theirs[name]).norm() <= 1e-4 * moved, name


@pytest.mark.slow
def test_eight_processes_take_three_steps(prepared: dict[str, Path], tmp_path: Path) -> None:
    """The launch of the paper's settings: 8 processes, 4 of the 32 selected pairs each."""
    recipe = {"max_steps": 3, "batch_size": 64}
    run(prepared, tmp_path / "eight", processes=8, **recipe)
    run(prepared, tmp_path / "one", processes=1, **recipe)
    assert losses(tmp_path / "eight") == pytest.approx(losses(tmp_path / "one"), abs=1e-5)


def wait_for_checkpoint(process: Any, out: Path) -> None:
    """Wait until a job has written a checkpoint."""
    deadline = time.monotonic() + 600
    while not list(out.glob("c/*/step-*/COMPLETE")):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.slow  # starts torchrun; `make faults` kills launchers too
def test_workers_end_with_torchrun_and_the_same_command_goes_on(
    prepared: dict[str, Path], tmp_path: Path
) -> None:
    # Many steps for the kill to find the run at work, and few to repeat.
    recipe, whole, out = preference_recipe(max_steps=None, epochs=6), tmp_path / "whole", tmp_path / "out"
    process = start("preference", recipe, processes=2, **prepared, out=out, checkpoints=out / "c")
    wait_for_checkpoint(process, out)
    workers = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    process.kill()
    # torchrun cannot end its workers any more: the kernel does, and the pipe they hold is closed.
    process.communicate(timeout=120)
    assert len(workers) >= 2
    assert not (out / "trained").exists()

    here(preference, recipe, **prepared, out=out, checkpoints=out / "c")
    here(preference, recipe, **prepared, out=whole, checkpoints=whole / "c")
    assert len(losses(out)) == len(losses(whole)) == 24
    # Two processes before the kill, one after it: equal up to the order of sums.
    assert losses(out)[:8] == pytest.approx(losses(whole)[:8], abs=1e-4)


def test_a_run_that_is_killed_and_resumed_is_bitwise_the_undisturbed_run(
    prepared: dict[str, Path], single: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = {"recipe": preference_recipe().model_dump_json(), **prepared, "out": out}
    saved = Point("sams.training.checkpoints.Checkpoints.wait", 3)  # each save waits twice before it starts
    statuses = server().start("sams.training.preference", arguments | {"checkpoints": out / "c"}, point=saved)
    assert statuses == [-9], server().output()
    assert not (out / "train_metrics.json").exists()
    here(preference, preference_recipe(), **prepared, out=out, checkpoints=out / "c")
    resumed = weights(out)
    for name, value in weights(single).items():
        assert torch.equal(resumed[name], value), name
    assert (out / "train.jsonl").read_text() == (single / "train.jsonl").read_text()
    assert (out / "pairs.parquet").read_bytes() == (single / "pairs.parquet").read_bytes()


@pytest.mark.parametrize("stage", ["sft", "pretrain_scheduler", "preference"])
def test_sigterm_saves_and_the_same_command_ends_bitwise_where_an_undisturbed_run_ends(
    stage: str, prepared: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, recipe, inputs = {
        "sft": (sft, SftRecipe(seed=0, model=tiny.settings(), training=Sft.model_validate(FEW)), ["tokens"]),
        "pretrain_scheduler": (
            pretrain_scheduler,
            PretrainRecipe(
                seed=0, model=tiny.settings(), scheduler=Scheduler(), training=Pretrain.model_validate(FEW)
            ),
            ["tokens", "model"],
        ),
        "preference": (preference, preference_recipe(), list(prepared)),
    }[stage]
    paths = {name: prepared[name] for name in inputs}
    here(module, recipe, **paths, out=tmp_path / "whole", checkpoints=tmp_path / "c1")

    steps = itertools.count(1)
    monkeypatch.setattr(loop, "note_stop_requests", lambda: lambda: next(steps) == 3)
    with pytest.raises(SystemExit) as stopped:
        here(module, recipe, **paths, out=tmp_path / "out", checkpoints=tmp_path / "c2")
    assert stopped.value.code == 75
    assert not (tmp_path / "out").exists()
    here(module, recipe, **paths, out=tmp_path / "out", checkpoints=tmp_path / "c2")
    assert next(steps) == 4, "three steps before the signal; the one after it is the last and asks no more"

    assert (tmp_path / "out/train.jsonl").read_text() == (tmp_path / "whole/train.jsonl").read_text()
    digests = []
    for run_out in (tmp_path / "whole", tmp_path / "out"):
        if stage == "pretrain_scheduler":
            state = torch.load(run_out / "weights/scheduler.pt", weights_only=True)
            digests.append(torch.cat([value.flatten() for net in state.values() for value in net.values()]))
        else:
            digests.append(torch.cat([value.flatten() for value in weights(run_out).values()]))
    assert torch.equal(*digests)
    if stage == "preference":
        whole, resumed = (tmp_path / name / "pairs.parquet" for name in ("whole", "out"))
        assert whole.read_bytes() == resumed.read_bytes()


def test_a_torn_checkpoint_is_ignored_and_old_ones_are_pruned(tmp_path: Path) -> None:
    workers = Workers(device="cpu", strategy="ddp", precision="float32", threads=1, timeout_minutes=1)
    policy = torch.nn.Linear(2, 2)
    optimiser = torch.optim.AdamW(policy.parameters())
    found = Checkpoints(tmp_path, workers, inputs={}, code={})
    run = found.folder
    for step in range(1, 5):
        policy.weight.data.fill_(step)
        found.save(policy, optimiser, {"step": step})
    assert sorted(path.name for path in run.iterdir()) == ["run.json", "step-00000003", "step-00000004"]

    shutil.copytree(run / "step-00000004", run / "step-00000005")
    (run / "step-00000005/COMPLETE").unlink()
    (run / "step-00000005/loop.pt").write_bytes(b"half")
    policy.weight.data.zero_()
    assert found.steps() == [3, 4]
    assert found.restore(policy, optimiser) == {"step": 4}
    assert policy.weight.unique().tolist() == [4.0]


def test_a_changed_setting_is_never_resumed(prepared: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    stale = out / "c" / "0123456789abcdef" / "step-00000002"
    stale.mkdir(parents=True)
    (stale / "COMPLETE").write_text("{}")
    run(prepared, out, max_steps=1, selector="random")
    assert not stale.exists()
    assert len(losses(out)) == 1


def shifted_reference(reference: Path, folder: Path, shift: float) -> Path:
    """The same cache with other log-probs of the chosen, of the same model by its word."""
    import pyarrow as pa
    from pyarrow import parquet

    folder.mkdir()
    for split in ("train", "test"):
        table = parquet.read_table(reference / f"{split}.parquet").to_pydict()
        table["chosen"] = [value + shift for value in table["chosen"]]
        parquet.write_table(pa.table(table), folder / f"{split}.parquet")
    write_manifest(folder, upstream=read_json(reference / "manifest.json")["upstream"])
    return folder


def test_a_loss_that_is_not_finite_stops_all_and_names_the_pair(
    prepared: dict[str, Path], tmp_path: Path
) -> None:
    broken = shifted_reference(prepared["reference"], tmp_path / "reference", float("nan"))
    # Of another model by its word: the gate that compares the two before step 1 must not come first.
    write_manifest(broken)
    arguments: dict[str, Any] = {
        **prepared,
        "reference": broken,
        "out": tmp_path / "o",
        "checkpoints": tmp_path / "c",
    }
    recipe = preference_recipe(other_reference=True).model_dump_json()
    statuses = server().start("sams.training.preference", {"recipe": recipe, **arguments}, processes=2)
    assert statuses == [1, 1]
    assert server().output().count("step 1: the loss of 16 of 16 items is not finite: 0001") == 2
    assert not (tmp_path / "o" / "trained").exists()


def test_a_reference_of_other_pairs_is_refused(prepared: dict[str, Path], tmp_path: Path) -> None:
    other = tiny.write_tokens(tmp_path / "tokens", train=80)
    with pytest.raises(
        UserError, match=r"train.parquet: reference log-probs do not belong .*80 pairs, 64 cached"
    ):
        run({**prepared, "tokens": other}, tmp_path / "o")


@pytest.fixture
def with_validation(prepared: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    """The inputs of a run, whose data has validation pairs too (here the test pairs, under another name)."""
    made = {}
    for name, file in (("tokens", "test"), ("reference", "test.parquet")):
        made[name] = tmp_path / name
        shutil.copytree(prepared[name], made[name])
        source = made[name] / file
        target = source.with_name(file.replace("test", "validation"))
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
        facts = {k: v for k, v in read_json(prepared[name] / "manifest.json").items() if k == "upstream"}
        shutil.rmtree(source) if source.is_dir() else source.unlink()
        write_manifest(made[name], **facts)
    return prepared | made


def test_the_weights_of_each_evaluation_are_kept_and_a_resumed_run_keeps_the_same(
    with_validation: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test pairs are not even there."""
    how: dict[str, Any] = {"validated": True, "evaluations": 4}
    (whole := tmp_path / "whole" / "evaluated").mkdir(parents=True)
    (whole / "step000099").mkdir()
    run(with_validation, whole.parent, **how)
    names = [f"step{step:06d}" for step in (1, 2, 3, 4)]
    assert sorted(path.name for path in whole.iterdir()) == names, "what an earlier run left is gone"
    kept = [weights_at(whole / name) for name in names]
    last = weights(whole.parent)
    assert all(torch.equal(kept[3][name], last[name]) for name in last)
    assert not any(torch.equal(kept[1][name], last[name]) for name in last if name.endswith("proj.weight"))
    figures = read_json(whole.parent / "train_metrics.json")
    assert "validation_accuracy" in figures and "test_accuracy" not in figures

    # Evaluation 2 is exactly what a run of the same course has after two steps.
    cut = tmp_path / "cut"
    interrupt_after(2, monkeypatch)
    with pytest.raises(SystemExit):
        run(with_validation, cut, **how)
    monkeypatch.undo()
    run(with_validation, cut, **how)
    for name, before in zip(names, kept, strict=True):
        after = weights_at(cut / "evaluated" / name)
        assert all(torch.equal(before[key], after[key]) for key in before), name
    assert (cut / "train.jsonl").read_text() == (whole.parent / "train.jsonl").read_text()


def interrupt_after(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM, as the loop sees it, after so many steps of this process."""
    seen = itertools.count(1)
    monkeypatch.setattr(loop, "note_stop_requests", lambda: lambda: next(seen) == step)


def weights_at(folder: Path) -> dict[str, torch.Tensor]:
    """Weights of one evaluation."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint import FileSystemReader

    metadata = FileSystemReader(folder).read_metadata().state_dict_metadata
    state: dict[str, Any] = {name: torch.empty(entry.size) for name, entry in metadata.items()}
    dcp.load(state, checkpoint_id=folder)
    return state
