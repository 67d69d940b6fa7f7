"""The package as others install it: what a wheel holds, and what works from it outside a checkout."""

import os
import shutil
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.conftest import ROOT

BUILT_FROM = (
    "sams config profiles rules workflow Snakefile envs pyproject.toml setup.py README.md LICENSE".split()
)
CORE = ("sams.losses", "sams.scheduling", "sams.policy")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel, built from a copy of the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in BUILT_FROM:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    # What an earlier build has left.
    (stale := folder / "build" / "lib" / "sams" / "gone.py").parent.mkdir(parents=True)
    stale.touch()
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "."]
    subprocess.run(pip, cwd=folder, check=True)
    [file] = folder.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package from the wheel, for PYTHONPATH."""
    folder = tmp_path_factory.mktemp("installed")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


def run(installed: Path, folder: Path, *command: str, status: int = 0) -> str:
    """Output of a command with the installed package, in a folder."""
    environment = os.environ | {"PYTHONPATH": str(installed)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def sams(*words: str) -> list[str]:
    return [sys.executable, "-c", "from sams.cli import main; main()", *words]


def test_a_wheel_holds_all_files_of_package_and_workflow(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    expected = ["sams/source/Snakefile", "sams/source/envs/sams.yaml"]
    for top in ("sams", "config", "profiles", "rules", "workflow"):
        files = [path for path in (ROOT / top).rglob("*") if path.is_file() and path.suffix != ".pyc"]
        prefix = "" if top == "sams" else "sams/source/"
        expected += [f"{prefix}{path.relative_to(ROOT)}" for path in files]
    assert sorted(name for name in names if ".dist-info/" not in name) == sorted(expected)
    assert "sams/py.typed" in names


def test_an_installation_without_extras_is_small(wheel: Path) -> None:
    [metadata] = [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith("/METADATA")]
    lines = zipfile.ZipFile(wheel).read(metadata).decode().splitlines()
    needed = [Requirement(line.partition(": ")[2]) for line in lines if line.startswith("Requires-Dist: ")]
    core = {each.name for each in needed if each.marker is None}
    brought = {
        "huggingface-hub",
        "packaging",
        "pyyaml",
        "rich",
        "safetensors",
        "tqdm",
        "typer",
    }  # by transformers
    assert core == {"torch", "transformers", "pydantic", "numpy"} | brought
    every = {
        extra
        for each in needed
        if each.marker
        for extra in ("trl", "score")
        if each.marker.evaluate({"extra": extra})
    }
    assert every == {"trl", "score"}


@pytest.mark.slow
def test_losses_selectors_and_policy_import_without_the_workflow(installed: Path, tmp_path: Path) -> None:
    """`sams.trl`, too, which needs pandas by way of datasets."""
    modules = ["sams.trl"] if find_spec("sams.trl") else []
    code = f"""
import importlib, pkgutil, sys

blocked = "snakemake mlflow alpaca_eval fastchat anthropic openai sklearn tenacity matplotlib scipy typer".split()
core = "accelerate datasets pandas peft pyarrow psutil tokenizers.tools trl".split()
sys.modules |= dict.fromkeys(blocked + core)
for package in {CORE}:
    for module in pkgutil.walk_packages(importlib.import_module(package).__path__, package + "."):
        importlib.import_module(module.name)
for name in core:
    del sys.modules[name]
for package in {modules}:
    for module in pkgutil.walk_packages(importlib.import_module(package).__path__, package + "."):
        importlib.import_module(module.name)
import sams
print(sams.__file__)
"""
    shown = run(installed, tmp_path, sys.executable, "-c", code)
    assert str(installed) in shown


def test_commands_work_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    snakefile = Path(run(installed, tmp_path, *sams("snakefile")).strip())
    assert snakefile == installed / "sams" / "source" / "Snakefile" and snakefile.is_file()
    checked = run(installed, tmp_path, *sams("check", "own_data"))  # a dry run of its jobs, too
    assert f'"train": "{snakefile.parent}/config/studies/own_data/train.jsonl"' in checked
    # A file of the user's comes first.
    own = tmp_path / "config" / "studies" / "own_data" / "train.jsonl"
    own.parent.mkdir(parents=True)
    shutil.copy(snakefile.parent / own.relative_to(tmp_path), own)
    recipe = run(
        installed, tmp_path, *sams("recipe", "prepare_data", "--configfile", "config/studies/own_data.yaml")
    )
    assert '"train": "config/studies/own_data/train.jsonl"' in recipe
    run(installed, tmp_path, *sams("schema"))
    for file in ("config/schema.yaml", "docs/settings.md"):
        assert (tmp_path / file).read_text() == (ROOT / file).read_text()


def test_a_missing_extra_is_one_line(installed: Path, tmp_path: Path) -> None:
    code = """
import sys
sys.modules["snakemake"] = None
sys.argv[0] = "sams"
from sams.cli import main
main()
"""
    for command in ("run", "check"):
        shown = run(installed, tmp_path, sys.executable, "-c", code, command, status=2)
        assert shown == "error: snakemake is not installed; run `pip install 'sams[workflow]'`\n"
    assert list(tmp_path.iterdir()) == []


SNAKEFILE = """
from sams.runtime.source import SNAKEFILE

module sams:
    snakefile: SNAKEFILE
    config: config["study"]

use rule * from sams as sams_*

rule mine:
    input: rules.sams_prepare_data.output
    output: "mine.txt"
    shell: "echo {config[mine]} > {output}"
"""


@pytest.fixture
def other_workflow(tmp_path: Path) -> list[str]:
    """Command of Snakemake for a workflow that has this one as a module, in `tmp_path`."""
    (tmp_path / "Snakefile").write_text(SNAKEFILE, encoding="utf-8")
    study = "study: {study: ours, methods: [sft, dpo], data: {world: {train_pairs: 64, sft_examples: 64}}}"
    (tmp_path / "ours.yaml").write_text(f"mine: 7\n{study}\n", encoding="utf-8")
    return [sys.executable, "-m", "snakemake", "--cores", "2", "--configfile", "ours.yaml"]


def test_another_workflow_takes_over_all_rules(
    installed: Path, tmp_path: Path, other_workflow: list[str]
) -> None:
    shown = run(installed, tmp_path, *other_workflow, "--dry-run", "--quiet", "rules", "--", "sams_all")
    assert "sams_train_preference" in shown and "sams_score_mt_bench" in shown


@pytest.mark.slow
def test_another_workflow_runs_a_stage_of_this_one(
    installed: Path, tmp_path: Path, other_workflow: list[str]
) -> None:
    run(installed, tmp_path, *other_workflow, "--", "mine")
    assert (tmp_path / "mine.txt").read_text() == "7\n", "the other workflow's config stays its own"
    assert (tmp_path / "results/ours/world/data/manifest.json").is_file()
