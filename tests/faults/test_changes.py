"""What runs again after a change between two starts: the stages concerned and what is made from them, no other."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.chain.test_workflow import jobs
from tests.conftest import ROOT
from tests.faults.study import STUDY, Workflow, overlay

pytestmark = pytest.mark.faults

TEMPLATE = str(ROOT / "config/rehearsal/llama.jinja")
DATA = {"prepare_data", "tokenise"}
START = {"train_sft", "compute_reference", "pretrain_scheduler"}


def with_settings(**changes: Any) -> dict[str, Any]:
    """The study with a group of settings changed."""
    return {**STUDY, **{key: {**STUDY.get(key, {}), **value} for key, value in changes.items()}}


def rerun(folder: Path, tmp_path: Path, settings: dict[str, Any], source: Path = ROOT) -> dict[str, int]:
    """What a dry run on a finished study's results says will run."""
    run = Workflow(folder, "-n", "--configfile", overlay(tmp_path, settings), source=source)
    assert run.wait(300) == 0, run.output()[-3000:]
    return jobs(run.output())


def edited(tmp_path: Path, module: str) -> Path:
    """The source with another condition in a module, which changes nothing that it computes."""
    source = tmp_path / "source"
    for name in ("sams", "rules", "config", "profiles", "workflow", "Snakefile", "pyproject.toml"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
        source.mkdir(exist_ok=True)
        copy(ROOT / name, source / name)
    text = (source / module).read_text()
    assert "\n    if " in text
    (source / module).write_text(text.replace("\n    if ", "\n    if True and ", 1))
    return source


def test_nothing_runs_again_without_a_change(
    undisturbed: tuple[Path, dict[str, float]], tmp_path: Path
) -> None:
    assert rerun(undisturbed[0], tmp_path, STUDY) == {}
    launch = with_settings(launch={"nproc_per_node": 1, "device": "cpu", "timeout_minutes": 1.0})
    assert rerun(undisturbed[0], tmp_path, launch) == {}


@pytest.mark.parametrize(
    ("changes", "again", "kept"),
    [
        (
            {"method_settings": {"dpo-sams": {"selector": "sams", "ratio": 0.25}}},
            {"train_preference"},
            DATA | START,
        ),
        ({"preference": {"beta": 0.2}}, {"train_preference"}, DATA | START),
        ({"scheduler": {"delta": 0.25}}, {"pretrain_scheduler", "train_preference"}, DATA | {"train_sft"}),
        # Pretraining on a frozen policy has no batch-level reward.
        ({"scheduler": {"gamma": 0.25}}, {"train_preference"}, DATA | START),
        ({"sft": {"learning_rate": 1.0e-3}}, START | {"train_preference"}, DATA),
        ({"model": {"tokenizer": "bpe"}}, {"tokenise", "train_preference"} | START, {"prepare_data"}),
        (
            {"model": {"chat_template": "config/rehearsal/llama.jinja"}},
            {"tokenise"} | START,
            {"prepare_data"},
        ),
        (
            {"data": {"world": {**STUDY["data"]["world"], "flipped_share": 0.1}}},
            DATA | START,
            {"train_crossfit"},
        ),
    ],
    ids=["ratio", "beta", "scheduler", "gamma", "sft", "tokenizer", "template", "data"],
)
def test_a_changed_setting_runs_its_stages(
    changes: dict[str, Any],
    again: set[str],
    kept: set[str],
    undisturbed: tuple[Path, dict[str, float]],
    tmp_path: Path,
) -> None:
    found = set(rerun(undisturbed[0], tmp_path, with_settings(**changes)))
    assert again <= found
    assert not kept & found


@pytest.mark.parametrize(
    ("module", "again", "kept"),
    [
        ("sams/training/preference.py", {"train_preference"}, DATA | START),
        ("sams/training/reference.py", {"compute_reference", "train_preference"}, DATA | {"train_sft"}),
        (
            "sams/scoring/mt_bench.py",
            {"score_mt_bench"},
            DATA | START | {"train_preference", "score_alpaca_eval"},
        ),
        ("sams/data/tokenise.py", {"tokenise", "train_preference"} | START, {"prepare_data"}),
    ],
)
def test_changed_code_runs_its_stages(
    module: str,
    again: set[str],
    kept: set[str],
    undisturbed: tuple[Path, dict[str, float]],
    tmp_path: Path,
) -> None:
    source = edited(tmp_path, module)
    found = set(rerun(undisturbed[0], tmp_path, STUDY, source))
    assert again <= found
    assert not kept & found


def test_a_touched_result_runs_what_is_made_from_it(
    undisturbed: tuple[Path, dict[str, float]], tmp_path: Path
) -> None:
    """Tokens and reference log-probs written anew, as by another program."""
    folder, _ = undisturbed
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("*.log"))
    manifest = copy / "results/faults/world/reference/seed0/manifest.json"
    manifest.write_text(manifest.read_text() + "\n")
    found = set(rerun(copy, tmp_path, STUDY))
    assert "train_preference" in found and not (DATA | START) & found
