"""The command `sams` and the stages' command lines."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sams.runtime.errors import UserError
from sams.study.recipes import PreferenceRecipe
from tests.conftest import ROOT


def run(*command: str, status: int = 0) -> str:
    """Run a command line in the source tree; return what it printed."""
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


SAMS = (sys.executable, "-c", "from sams.cli import main; main()")


def test_recipe_prints_what_a_bare_torchrun_needs() -> None:
    recipe = PreferenceRecipe.model_validate_json(
        run(*SAMS, "recipe", "train_preference", "--method", "dpo-sams")
    )
    assert recipe.training.selector == "sams"
    assert recipe.scheduler is not None
    assert json.loads(run(*SAMS, "recipe", "job"))["launch"]["nproc_per_node"] == "auto"


def test_mistakes_end_with_one_line_and_status_2(tmp_path: Path) -> None:
    assert run(*SAMS, "recipe", "train_sftt", status=2).startswith(
        "error: stage: no stage 'train_sftt'; did you mean train_sft?; choose one of"
    )
    wrong = run(*SAMS, "recipe", "train_preference", "--method", "nope", status=2)
    assert wrong == "error: --method: no method 'nope'; the study has sft, dpo, dpo-random50, dpo-sams\n"
    stage = (sys.executable, "-m", "sams.data.prepare", "--out", str(tmp_path / "out"), "--recipe")
    assert (
        run(*stage, "missing.json", status=2)
        == "error: missing.json: no such file; give a JSON file or JSON text\n"
    )
    assert run(*stage, '{"dta": 1}', status=2).startswith("error: --recipe: key 'data': Field required")
    assert not (tmp_path / "out").exists()


def test_values_can_be_set() -> None:
    given = (
        "--set",
        "preference.beta=0.3",
        "--set",
        "preference.learning_rate=5e-7",
        "--set",
        "seeds=[0, 1]",
    )
    checked = json.loads(run(*SAMS, "check", *given))
    assert (checked["preference"]["beta"], checked["preference"]["learning_rate"]) == (0.3, 5e-7)
    assert checked["seeds"] == [0, 1]
    recipe = json.loads(run(*SAMS, "recipe", "train_preference", "--method", "dpo", *given))
    assert recipe["training"]["beta"] == 0.3
    wrong = run(*SAMS, "check", "--set", "preference.betta=0.3", status=2)
    assert "key 'preference.betta': unknown key; did you mean beta?" in wrong


@pytest.mark.slow
def test_check_asks_the_workflow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A study that is valid, and that this copy of the rules cannot make, since a rule is missing."""
    import shutil

    from sams.launch import run as launch

    for name in ("Snakefile", "rules", "config", "profiles", "workflow", "sams"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    file = tmp_path / "rules" / "train.smk"
    file.write_text(
        file.read_text().replace('manifest=f"{RESULTS}/reference/', 'manifest=f"{RESULTS}/elsewhere/')
    )
    launch.check_workflow([], ["methods=[dpo]"])
    monkeypatch.setattr(launch, "SNAKEFILE", tmp_path / "Snakefile")
    with pytest.raises(UserError, match=r"MissingInputException in rule \w+.*reference/seed0/manifest\.json"):
        launch.check_workflow([], ["methods=[dpo]"])


def test_check_imports_nothing_heavy() -> None:
    code = """
import sys
from sams.cli import main
sys.argv = ["sams", "check", "--configfile", "config/studies/table1_gemma_v02.yaml"]
try:
    main()
except SystemExit as ended:
    assert not ended.code
heavy = {"torch", "transformers", "datasets", "pyarrow", "pandas", "numpy", "mlflow"} & set(sys.modules)
assert not heavy, heavy
"""
    run(sys.executable, "-c", code)


def test_schema_is_checked() -> None:
    run(*SAMS, "schema", "--check")
