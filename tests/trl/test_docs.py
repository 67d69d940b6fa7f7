"""The page for users of TRL and the notebook: settings, and code that runs."""

import ast
import json
import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from trl import DPOConfig

from sams.trl import ScheduledDPOConfig
from tests.conftest import ROOT
from tests.trl import small

PAGE = (ROOT / "docs" / "trl.md").read_text()
NOTEBOOK = json.loads((ROOT / "docs" / "scheduled_dpo.ipynb").read_text())
CELLS = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def test_the_page_has_every_setting() -> None:
    theirs = {field.name for field in fields(DPOConfig)}
    own = {field.name for field in fields(ScheduledDPOConfig)} - theirs
    table = PAGE.split("## Settings")[1].split("\n##")[0]
    assert {
        *re.findall(r"`(\w+)`", "".join(line.split("|")[1] for line in table.splitlines() if "|" in line))
    } == own


def test_the_script_is_short_and_names_settings_that_there_are() -> None:
    [script] = [
        block for block in re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S) if "train()" in block
    ]
    lines = [line for line in script.splitlines() if line.strip()]
    assert len(lines) <= 12
    [arguments] = re.findall(r"ScheduledDPOConfig\((.*?)\n\)", script, re.S)
    assert {*re.findall(r"(\w+)=", arguments)} <= {field.name for field in fields(ScheduledDPOConfig)}


def test_the_selector_of_ones_own_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "own_selector.md").read_text()
    selector, settings = re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)
    (tmp_path / "my_selector.py").write_text(selector)
    monkeypatch.chdir(tmp_path)
    [call] = [node for node in ast.walk(ast.parse(settings)) if isinstance(node, ast.Call)]
    given = {word.arg: ast.literal_eval(word.value) for word in call.keywords if word.arg}
    assert given.pop("output_dir") and given["selector_kwargs"]["doubt"] > 0
    try:
        trainer = small.trainer(tmp_path / "out", small.pairs(16), **given)
        trainer.train()
    finally:
        sys.modules.pop("my_selector", None)
    lines = [line for line in trainer.state.log_history if "selector/average" in line]
    share = 1 - given["selector_kwargs"]["momentum"]
    assert len(lines) == 6 and {line["selected/share"] for line in lines} == {0.5}
    assert lines[0]["selector/average"] == pytest.approx(share * lines[0]["all/rewards/margins"], rel=1e-4)


def test_the_notebook_has_been_run_from_top_to_bottom() -> None:
    for number, cell in enumerate(cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"):
        compile("".join(cell["source"]), f"cell {number}", "exec")
        assert cell["execution_count"] == number + 1
        assert not [output for output in cell["outputs"] if output["output_type"] == "error"]


@pytest.mark.slow  # two minutes
def test_the_notebook_runs(tmp_path: Path) -> None:
    code = "\n".join(CELLS)
    command = [sys.executable, "-c", code]
    environment = os.environ | {"MPLBACKEND": "agg", "PYTHONPATH": f"{ROOT}:{tmp_path}"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
