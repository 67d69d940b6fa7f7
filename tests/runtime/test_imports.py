"""Which rooms may import what, seen by importing them without the rest."""

import subprocess
import sys
from pathlib import Path

from sams.losses.table import LOSSES
from sams.runtime.code import imported_modules
from sams.scheduling.selectors.table import SELECTORS
from tests.conftest import ROOT

LISTED = sorted({entry.module for table in (LOSSES, SELECTORS) for entry in table.values()})
BARE = ["sams.policy.policy", "sams.policy.model", *LISTED] + [
    f"sams.training.{name}"
    for name in ("sft", "pretrain_scheduler", "crossfit", "preference", "reference", "export")
]


def test_training_imports_with_torch_transformers_accelerate_and_pydantic_alone() -> None:
    blocked = (
        "datasets",
        "pyarrow",
        "mlflow",
        "snakemake",
        "trl",
        "typer",
        "alpaca_eval",
        "fastchat",
        "pandas",
    )
    code = f"""
import sys
# None says "not installed", both to an import and to those who ask first.
sys.modules.update(dict.fromkeys({blocked!r}))
import {", ".join(BARE)}
"""
    subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=ROOT, env={"PATH": "", "HF_HUB_OFFLINE": "1"}
    )


def test_stages_run_without_the_packages_of_data_tables_and_command_lines() -> None:
    """What `python -m benchmarks.gpu` starts, with the four packages above."""
    blocked = (
        "datasets pyarrow mlflow snakemake trl typer rich scipy pandas sklearn matplotlib jinja2".split()
    )
    modules = [*BARE, "sams.study.recipes", "sams.study.code", "sams.runtime.stage", "sams.tracking.log"]
    code = f"import sys; sys.modules.update(dict.fromkeys({blocked!r})); import {', '.join(modules)}"
    subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=ROOT, env={"PATH": "", "HF_HUB_OFFLINE": "1"}
    )


def test_scheduling_knows_neither_transformers_nor_ranks() -> None:
    code = (
        "import sys, sams.scheduling.selectors.sams; "
        "assert not {'transformers', 'accelerate'} & set(sys.modules), 'heavy import'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    assert not any(
        name.startswith("sams.training") for name in imported_modules("sams.scheduling.selectors.sams")
    )


def test_the_workflow_is_read_without_heavy_imports(tmp_path: Path) -> None:
    code = f"""
import sys
from snakemake.cli import main
sys.argv = ["snakemake", "-n", "--quiet", "all", "--cores", "1"]
sys.argv += ["--snakefile", {str(ROOT / "Snakefile")!r}, "--directory", {str(tmp_path)!r}]
try:
    main()
except SystemExit as ended:
    assert not ended.code, ended.code
heavy = {{"torch", "transformers", "datasets", "pyarrow", "pandas", "mlflow", "alpaca_eval", "fastchat"}}
assert "sams.study.recipes" in sys.modules and not heavy & set(sys.modules), heavy & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_help_imports_nothing_heavy() -> None:
    code = """
import sys
from sams.cli import main
try:
    main()
except SystemExit:
    heavy = {"torch", "transformers", "pydantic", "yaml", "pandas", "numpy", "snakemake", "mlflow"}
    print("heavy:", sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert "recipe" in done.stdout and "heavy: []" in done.stdout
