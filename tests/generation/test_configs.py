"""config/decoding: the paper's decoding settings as overlays of studies."""

from pathlib import Path

import pytest
from fastchat.llm_judge.common import temperature_config

from sams.study.files import load_study, read_settings
from sams.study.recipes import GenerateRecipe, recipe_of
from tests.conftest import ROOT

FASTCHAT = {category: value for category, value in temperature_config.items() if category != "arena-hard-200"}

CONFIG = ROOT / "config"
TABLE_1 = CONFIG / "studies" / "table1_llama3_instruct.yaml"

# temperature, max_new_tokens, stop_token_ids (SimPO's configs for AlpacaEval 2, which the paper uses)
PAPER = {
    "mistral-7b-instruct": (0.5, 2048, []),
    "llama-3-8b-instruct": (0.9, 4096, [128001, 128009]),
    "gemma-2-9b-it": (0.5, 4096, [1, 107]),
}


def recipes(*overlays: Path) -> tuple[GenerateRecipe, GenerateRecipe]:
    study = load_study(read_settings([CONFIG / "config.yaml", *overlays]))
    found = [
        recipe_of(study, "generate_answers", method="dpo", benchmark=benchmark)
        for benchmark in ("alpaca_eval", "mt_bench")
    ]
    assert isinstance(found[0], GenerateRecipe) and isinstance(found[1], GenerateRecipe)
    return found[0], found[1]


def test_every_overlay_is_known() -> None:
    assert {path.stem for path in (CONFIG / "decoding").glob("*.yaml")} == set(PAPER)


@pytest.mark.parametrize("name", PAPER)
@pytest.mark.parametrize("below", [[], [TABLE_1]], ids=["default", "table1"])
def test_overlays_give_the_paper_s_settings_over_any_study(name: str, below: list[Path]) -> None:
    alpaca_eval, mt_bench = (
        recipe.decoding for recipe in recipes(*below, CONFIG / "decoding" / f"{name}.yaml")
    )
    temperature, most, stops = PAPER[name]
    assert (alpaca_eval.temperature, alpaca_eval.top_p) == (temperature, 1.0)
    assert (alpaca_eval.max_new_tokens, alpaca_eval.stop_token_ids) == (most, stops)
    assert (mt_bench.max_new_tokens, mt_bench.stop_token_ids) == (1024, stops)
    assert mt_bench.category_temperatures == FASTCHAT


def test_table_1_decodes_as_its_model_s_overlay_says() -> None:
    assert recipes(TABLE_1) == recipes(TABLE_1, CONFIG / "decoding" / "llama-3-8b-instruct.yaml")


def test_mt_bench_keeps_fastchat_s_temperatures_beside_other_settings() -> None:
    """A group with one key set must not lose the defaults of the others."""
    assert recipes()[1].decoding.category_temperatures == FASTCHAT
    assert recipes()[0].decoding.category_temperatures == {}
