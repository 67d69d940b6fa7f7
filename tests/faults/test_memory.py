"""Out of memory: the message names the micro-batch to set, and the checkpoint is kept."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from sams.runtime.errors import UserError
from sams.runtime.faults import explained
from sams.study.recipes import ReferenceRecipe
from sams.training import passes, reference
from tests import tiny
from tests.conftest import ROOT
from tests.faults.conftest import assert_same, train
from tests.training.test_runs import here

CPU = "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to allocate ..."
GPU = "CUDA out of memory. Tried to allocate 20.00 GiB."
ERRORS = {
    "cpu": lambda: RuntimeError(CPU),
    "gpu": lambda: torch.OutOfMemoryError(GPU),
    "python": MemoryError,
}


def failing(monkeypatch: pytest.MonkeyPatch, call: int, *, trained: bool, kind: str = "gpu") -> None:
    """Let a pass of the model run out of memory: the n-th with gradients, or the n-th without."""
    real, calls = passes.pack_rows, 0

    def packing(sequences: Any) -> Any:
        nonlocal calls
        calls += torch.is_grad_enabled() == trained
        if calls == call:
            raise ERRORS[kind]()
        return real(sequences)

    monkeypatch.setattr(passes, "pack_rows", packing)


@pytest.mark.parametrize("kind", ERRORS)
def test_the_message_names_the_micro_batch_and_the_run_goes_on_with_a_smaller_one(
    kind: str, prepared: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = (
        r"with micro_batch_size 8; the checkpoint of step 2 is kept; "
        r"set method_settings\.dpo-sams\.micro_batch_size: 4, and start the same command again"
    )
    with monkeypatch.context() as patch, pytest.raises(UserError, match=expected):
        failing(patch, 3, trained=True, kind=kind)
        train(prepared, tmp_path / "out", tmp_path / "ck")
    train(prepared, tmp_path / "out", tmp_path / "ck", micro_batch_size=4)
    taken = [json.loads(line)["step"] for line in (tmp_path / "out/costs.jsonl").read_text().splitlines()]
    assert taken == [1, 2, 3, 4]
    kept = json.loads((tmp_path / "out/recipe.json").read_text())
    assert kept["tuning"]["micro_batch"] == 4


def test_a_pass_without_gradients_names_its_own_micro_batch(
    prepared: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, 2, trained=False)
    with pytest.raises(UserError, match=r"no checkpoint yet; set .*dpo-sams\.scoring_micro_batch_size: 8, "):
        train(prepared, tmp_path / "out", tmp_path / "ck", scoring_micro_batch_size=16)


def test_where_one_pair_does_not_fit_the_message_names_other_remedies(
    prepared: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, 1, trained=True)
    with pytest.raises(UserError, match=r"activation_checkpointing: true.*fsdp2.*max_length"):
        train(prepared, tmp_path / "out", tmp_path / "ck", micro_batch_size=1)


def test_the_reference_names_its_micro_batch(
    prepared: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, 2, trained=False)
    recipe = ReferenceRecipe(model=tiny.settings(), micro_batch_size=16)
    with pytest.raises(torch.OutOfMemoryError) as failure:
        here(reference, recipe, tokens=prepared["tokens"], model=prepared["model"], out=tmp_path / "out")
    assert "set scoring_micro_batch_size: 8 (now 16)" in str(explained(failure.value))
    assert not (tmp_path / "out").exists()


# What runs in a process of its own: training whose memory is limited, once its second checkpoint is there, to so many
# MiB more than it has taken.
LIMITED = """
import resource, sys
from pathlib import Path
import psutil
from sams.runtime.stage import run
from sams.training import preference
from sams.training.checkpoints import Checkpoints
save = Checkpoints.save
def saving(self, policy, optimiser, loop):
    save(self, policy, optimiser, loop)
    if loop["step"] == 2:
        self.wait()
        limit = psutil.Process().memory_info().vms + (1 << 20)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
Checkpoints.save = saving
run(preference.main)
"""


@pytest.mark.faults
def test_memory_that_the_kernel_refuses_stops_the_stage_in_one_line(
    prepared: dict[str, Path], trained_undisturbed: Path, tmp_path: Path
) -> None:
    from tests.faults.conftest import recipe

    paths = prepared | {"out": tmp_path / "out", "checkpoints": tmp_path / "ck"}
    options = [word for name, path in paths.items() for word in (f"--{name}", str(path))]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, "--recipe", recipe().model_dump_json(), *options],
        cwd=ROOT,
        env=os.environ | {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "4096", "MALLOC_TOP_PAD_": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 2, done.stderr
    assert last.startswith("error: train_preference: out of memory (cpu, rank 0) with "), done.stderr
    assert "the checkpoint of step 2 is kept; set method_settings.dpo-sams." in last
    train(prepared, tmp_path / "out", tmp_path / "ck")
    assert_same(tmp_path / "out", trained_undisturbed)
