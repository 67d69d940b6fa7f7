"""Folders and files with characters that mean something to Snakemake, shells or URLs."""

import shutil
import subprocess
import sys
from pathlib import Path

import transformers
import yaml

from tests import tiny
from tests.conftest import ROOT
from tests.policy.test_dropout import KINDS, SIZES


def test_a_dry_run_with_any_path(tmp_path: Path) -> None:
    """Of a start model whose config has other names of its sizes than Llama's."""
    folder = tmp_path / "a?{b} #%41"
    inputs = folder / "in{x}'ü\""
    inputs.mkdir(parents=True)
    for name in ("train", "test", "sft"):
        shutil.copy(ROOT / "config" / "studies" / "own_data" / f"{name}.jsonl", inputs)
    config = transformers.AutoConfig.for_model("gpt2", **SIZES, **KINDS["gpt2"])
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(inputs / "model")
    tiny.tokenizer().save_pretrained(inputs / "model")
    here = inputs.name
    study = {
        "extends": "config/studies/own_data.yaml",
        "model": {"path": f"{here}/model", "architecture": None, "tokenizer": None},
        "data": {name: f"{here}/{name}.jsonl" for name in ("train", "test", "sft")},
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(study), encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "snakemake",
        "-n",
        "-p",
        "--cores",
        "2",
        "--snakefile",
        str(ROOT / "Snakefile"),
    ]
    done = subprocess.run(
        [*command, "--configfile", "study.yaml"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "train_preference" in done.stdout
