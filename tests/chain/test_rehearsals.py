"""Rehearsals run to their tables: three methods of each architecture class, and studies of another shape."""

import shutil
from pathlib import Path

import pandas as pd
import pytest
import yaml

from sams.runtime.files import read_json
from sams.study.files import load_study, read_settings
from sams.tables.results import Cell, read_cells
from tests.chain.test_workflow import snakemake
from tests.conftest import ROOT


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind", "methods"),
    [
        ("table1_llama3_instruct", "LlamaForCausalLM", ["sft", "kto", "dpo-sams"]),
        ("table1_mistral_instruct", "MistralForCausalLM", ["sft", "rrhf", "dpo-sams"]),
        ("table1_gemma_v02", "Gemma2ForCausalLM", ["sft", "simpo", "dpo-sams"]),
        ("table2_shp", "GPTNeoXForCausalLM", ["sft", "dpo", "kto-sams"]),
        # Labels flipped and known to the oracle; SamS on the easiest half; models that are only scored.
        ("figure3_noise_hh", "GPTNeoXForCausalLM", ["sft", "dpo-sams-flip20", "dpo-oracle-flip20"]),
        ("table3_selective", "LlamaForCausalLM", ["sft", "dpo", "selective-dpo-sams75"]),
        ("checkpoints", "LlamaForCausalLM", ["sft", "simpo", "dpo"]),
    ],
)
def test_a_rehearsal_runs_to_its_tables(name: str, kind: str, methods: list[str], tmp_path: Path) -> None:
    part = tmp_path / "part.yaml"
    part.write_text(yaml.safe_dump({"methods": methods}))
    file = ROOT / "config" / "studies" / f"{name}.yaml"
    snakemake(tmp_path, "--configfile", str(file), str(part), "--config", "rehearse=true", seconds=1800)
    study = load_study(read_settings([ROOT / "config" / "config.yaml", file, part], {"rehearse": True}))

    setting = tmp_path / study.results
    assert setting.parent.name == f"rehearsal-{name}"
    assert list((tmp_path / "results").glob("*/tables")) == [setting.parent / "tables"]
    tables = setting.parent / "tables"
    table = pd.read_csv(tables / "main.csv").set_index("method")
    assert list(table.index) == methods
    preference = ["test_accuracy", "chosen_reward", "chosen_logp"]
    assert table.loc[study.preference_methods, preference].notna().all(axis=None)
    if study.benchmarks.alpaca_eval is not None:
        assert table[["length_controlled_winrate", "win_rate", "mt_bench"]].notna().all(axis=None)
    for method in methods:
        config = read_json(setting / method / "seed0" / "model" / "config.json")
        assert config["architectures"] == [kind]
    cells = read_cells(setting)
    for method in study.preference_methods:
        moved = cells[Cell(method, 0, "train")]["chosen_reward"]
        assert moved != 0.0, "the policy has been trained"

    pages = [*tables.rglob("*.md"), *tables.rglob("*.html"), *tables.glob("*.svg")]
    assert len(pages) >= 6
    # An SVG holds the outlines of its letters, and their text as a comment.
    assert [page.name for page in pages if "REHEARSAL" not in page.read_text(encoding="utf-8")] == []
    shutil.rmtree(tmp_path / "results")
