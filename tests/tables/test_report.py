"""Captions of the Snakemake report: rendered with a config, they are sound reStructuredText."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from docutils.core import publish_string
from jinja2 import Environment, StrictUndefined

ROOT = Path(__file__).parents[2]
CAPTIONS = sorted((ROOT / "workflow/report").glob("*.rst"))
DEFAULT = yaml.safe_load((ROOT / "config/config.yaml").read_text(encoding="utf-8")) | {
    "paper": {"table": "table1", "setting": "llama3-instruct"}
}


def caption(name: str, **changes: Any) -> str:
    """A caption as Snakemake renders it; an undefined name or a warning of docutils is an error."""
    text = (ROOT / f"workflow/report/{name}.rst").read_text(encoding="utf-8")
    snakemake = SimpleNamespace(
        config={**DEFAULT, **changes}, wildcards=SimpleNamespace(method="dpo", base="sft")
    )
    rendered = Environment(undefined=StrictUndefined).from_string(text).render(snakemake=snakemake)
    publish_string(
        rendered, settings_overrides={"halt_level": 2, "report_level": 2, "output_encoding": "unicode"}
    )
    return " ".join(rendered.split())


def test_every_figure_and_table_has_a_caption() -> None:
    names = {"workflow", "main_table", "paper_table", "comparisons", "side_by_side", "samples", "chosen"}
    names |= {"learning_curves", "selection", "difficulty", "noise", "cost", "pairs", "pair_margins"}
    assert {path.stem for path in CAPTIONS} == names


@pytest.mark.parametrize("path", CAPTIONS, ids=lambda path: path.stem)
@pytest.mark.parametrize("benchmarks", [None, {"alpaca_eval": None, "mt_bench": None}, DEFAULT["benchmarks"]])
def test_captions_render(path: Path, benchmarks: dict[str, Any] | None) -> None:
    for seeds in ([0], [0, 1, 2]):
        assert caption(path.stem, seeds=seeds, benchmarks=benchmarks)


@pytest.mark.parametrize("path", CAPTIONS, ids=lambda path: path.stem)
def test_captions_say_what_is_a_rehearsal(path: Path) -> None:
    assert caption(path.stem, rehearse=True).startswith("**Rehearsal**: a tiny model on synthetic data")
    assert "Rehearsal" not in caption(path.stem, rehearse=False)


def test_captions_follow_the_config() -> None:
    assert "means over 3 seeds" in caption("learning_curves", seeds=[0, 1, 2])
    assert "means over" not in caption("learning_curves", seeds=[0])
    assert "sft" not in caption("learning_curves", methods=["sft", "dpo"])
    assert "never comparable with published" in caption("workflow")
    endpoint = {"judge": {"kind": "openai", "model": "gpt-x"}, "alpaca_eval": {"difficulty": "df.csv"}}
    assert "judge of this study is gpt-x" in caption("workflow", benchmarks=endpoint)
    assert "local judge" not in caption("main_table", benchmarks=endpoint)
    assert "not the official one" not in caption("main_table", benchmarks=endpoint)
    assert "scores no benchmark" in caption(
        "workflow", benchmarks={"judge": {"kind": "openai", "model": "gpt-x"}}
    )
