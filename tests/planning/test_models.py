"""Architectures of the paper's models."""

import json
from pathlib import Path

import pytest

from sams.planning.models import sizes_of
from sams.runtime.errors import UserError
from sams.study.architectures import config_of
from sams.study.settings import Model

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


def test_a_folder_tells_its_own_architecture_and_an_unknown_model_says_where_to_put_it(
    tmp_path: Path,
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 8}))
    assert config_of(Model(path=str(tmp_path)))["hidden_size"] == 8
    with pytest.raises(UserError, match=r"config/models/nobody/nothing\.json"):
        config_of(Model(path="nobody/nothing"))
