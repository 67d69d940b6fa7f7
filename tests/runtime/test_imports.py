"""Which rooms may import what, seen by importing them without the rest."""

import subprocess
import sys

from sams.losses.table import LOSSES
from sams.runtime.code import imported_modules
from sams.scheduling.selectors.table import SELECTORS
from tests.conftest import ROOT

LISTED = sorted({entry.module for table in (LOSSES, SELECTORS) for entry in table.values()})
BARE = ["sams.policy.policy", "sams.policy.model", *LISTED] + [
    f"sams.training.{name}"
    for name in ("sft", "pretrain_scheduler", "crossfit", "preference", "reference", "export")
]


def test_stages_run_without_the_packages_of_data_tables_scores_and_command_lines() -> None:
    """What `python -m benchmarks.gpu` starts, with torch, transformers, accelerate and pydantic."""
    blocked = (
        "datasets pyarrow mlflow snakemake trl alpaca_eval fastchat typer rich scipy pandas sklearn".split()
    )
    blocked += ["matplotlib", "jinja2"]
    modules = [*BARE, "sams.study.recipes", "sams.study.code", "sams.runtime.stage", "sams.tracking.log"]
    # None says "not installed", both to an import and to those who ask first.
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
