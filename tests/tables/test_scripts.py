"""Scripts of the workflow: their end, their log, and the code that their digests follow."""

import subprocess
import sys
from pathlib import Path

import pytest

from sams.runtime.code import imported_modules
from sams.tables import comparisons
from tests.conftest import ROOT
from tests.tables.made import run_script, study, train, write

SCRIPTS = sorted((ROOT / "workflow/scripts").glob("*.py"))


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ("print('written')", 0, "written"),
        (
            "raise UserError('broken', where='a/file', remedy='delete it')",
            2,
            "error: a/file: broken; delete it",
        ),
        ("1 / 0", 1, "ZeroDivisionError"),
    ],
)
def test_a_script_ends_as_a_stage_does_with_its_output_in_the_log(
    body: str, status: int, message: str, tmp_path: Path
) -> None:
    lines = [
        "from sams.runtime.errors import UserError",
        "from sams.runtime.stage import script",
        f"def main() -> None: {body}",
        f"script(main, {str(tmp_path / 'log')!r})",
    ]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (status, "", "")
    assert message in (tmp_path / "log").read_text()


def test_digests_follow_what_a_script_imports() -> None:
    assert {path.stem for path in SCRIPTS} >= {"main_table", "comparisons", "figures", "answers_page"}
    for path in SCRIPTS:
        name = f"workflow.scripts.{path.stem}"
        found = imported_modules(name)
        assert name in found and any(module.startswith("sams.tables.") for module in found), name
    assert {"sams.tables.captions", "sams.tables.render"} <= imported_modules("workflow.scripts.main_table")


def test_comparisons_script_writes_its_table(tmp_path: Path) -> None:
    for seed, accuracy in enumerate((60.0, 63.0)):
        write(tmp_path, {f"dpo/seed{seed}/train_metrics.json": train(accuracy, 1.5)})
        write(tmp_path, {f"kto/seed{seed}/train_metrics.json": train(accuracy + 1 + seed, 1.5)})
    outputs = {kind: tmp_path / f"comparisons.{kind}" for kind in ("csv", "md")}
    run_script("comparisons", study(["sft", "dpo", "kto"], [0, 1]), tmp_path, outputs)
    header, unpaired, seeds = outputs["csv"].read_text().splitlines()
    assert header == ",".join(comparisons.COLUMNS)
    assert unpaired.startswith("test_accuracy,kto,dpo,1.5,") and "over seeds" in seeds
    assert "| kto − dpo | test accuracy | 1.50 |" in outputs["md"].read_text()
