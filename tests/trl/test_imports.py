"""`sams.trl` trains without the packages of the workflow and of the scores."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, patience

BLOCKED = ("snakemake", "mlflow", "alpaca_eval", "fastchat", "openai", "anthropic", "sklearn", "matplotlib")
SCRIPT = """
import sys
from pathlib import Path

sys.modules |= dict.fromkeys({blocked})  # None: the import fails
from tests.trl import small
from tests.trl.runs import run

trainer = run(Path(sys.argv[1]), small.pairs(16), selector="sams", max_steps=2, record_pairs=True, save_steps=1)
trainer.save_model()
"""


@pytest.mark.slow
def test_training_needs_neither_the_workflow_nor_the_scores(tmp_path: Path) -> None:
    script = SCRIPT.format(blocked=BLOCKED)
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=patience(60),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "pairs.parquet").is_file()
