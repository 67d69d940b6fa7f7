"""Architectures of the paper's models."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from sams.planning.memory import Passes, Simulation
from sams.planning.models import build, config_object, cut, sizes_of
from sams.runtime.errors import UserError
from sams.study.architectures import config_of
from sams.study.settings import Model
from tests.policy.test_dropout import KINDS

PUBLISHED = {
    "mistralai/Mistral-7B-Instruct-v0.2": 7.24e9,
    "meta-llama/Meta-Llama-3-8B-Instruct": 8.03e9,
    "meta-llama/Meta-Llama-3-70B-Instruct": 70.55e9,
    "google/gemma-2-9b-it": 9.24e9,
    "EleutherAI/pythia-2.8b": 2.78e9,
}


@pytest.mark.parametrize("path", PUBLISHED)
def test_a_shipped_architecture_has_as_many_weights_as_published(path: str) -> None:
    sizes = sizes_of(config_of(Model(path=path)))
    assert sizes.total == pytest.approx(PUBLISHED[path], rel=2e-3)
    # Gemma's output layer is its embedding; the others' embedding is looked up only.
    assert sizes.body + sizes.head + (0 if "gemma" in path else sizes.head) == sizes.total


def test_grouped_keys_and_values_are_what_generation_keeps() -> None:
    sizes = sizes_of(config_of(Model(path="meta-llama/Meta-Llama-3-8B-Instruct")))
    assert sizes.cache == 32 * 8 * 128 * 2 * 2


@pytest.mark.parametrize("kind", ["gpt2", "opt", "mpt", "falcon"])
def test_a_type_with_other_names_of_its_sizes_is_planned(kind: str) -> None:
    """GPT-2 looks for padding among the ids, and MPT's positions end: the first has no values, the second pads."""
    config = AutoConfig.for_model(kind, **KINDS[kind]).to_dict()
    attention: Any = "eager" if kind == "mpt" else "sdpa"
    sizes = sizes_of(config)
    assert sizes.total == build(config, attention).model.num_parameters()
    assert sizes.cache == 2 * sizes.layers * 32 * 2
    simulation = Simulation(config, Model(path=kind, attention=attention), 1, sharded=False, max_length=100)
    assert simulation.peak(Passes(items=2)) > 16 * sizes.total


@pytest.mark.parametrize("kind", ["gpt_neo", "gemma3_text", "gpt2", "gemma3"])
def test_fewer_blocks_of_any_type(kind: str) -> None:
    """Some types say of each block what it is."""
    config = AutoConfig.for_model(kind).to_dict()
    assert config_object(cut(config, 3)).get_text_config().num_hidden_layers == 3
    if kind != "gemma3":  # its images have many weights
        all_blocks, three, two = (sizes_of(known) for known in (config, cut(config, 3), cut(config, 2)))
        assert (three.total - two.total) * (all_blocks.layers - 2) == all_blocks.total - two.total


def test_a_folder_tells_its_own_architecture_and_an_unknown_model_says_where_to_put_it(
    tmp_path: Path,
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 8}))
    assert config_of(Model(path=str(tmp_path)))["hidden_size"] == 8
    with pytest.raises(UserError, match=r"config/models/nobody/nothing\.json"):
        config_of(Model(path="nobody/nothing"))
