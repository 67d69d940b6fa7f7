"""A pretrained model that meets rates for fresh ones."""

from pathlib import Path
from typing import Any

import pytest

from sams.study.files import DEFAULT, load_study, read_settings
from sams.study.rates import rates_to_check
from tests.conftest import ROOT

STUDIES = sorted((ROOT / "config" / "studies").glob("*.yaml"))


def study(**given: Any) -> Any:
    return load_study(read_settings([DEFAULT, ROOT / "config" / "studies" / "own_data.yaml"], given))


LORA = {"r": 8, "alpha": 16.0}
OWN = {"path": "my/model", "architecture": None, "tokenizer": None}


def test_own_data_with_a_pretrained_model_and_the_rates_of_the_example_is_warned_of() -> None:
    assert rates_to_check(study()) == []
    found = rates_to_check(study(model=OWN))
    assert [sentence.partition(":")[0] for sentence in found] == ["sft", "preference (method dpo)"]
    assert "0.001 is one for fresh weights" in found[0] and "usually want 1e-05 or less" in found[0]


@pytest.mark.parametrize(
    ("lora", "rate", "warned"),
    [
        (None, 1e-6, False),
        (None, 2e-5, True),
        (LORA, 2e-5, False),
        (LORA, 1e-3, True),
    ],
)
def test_adapters_bear_higher_rates(lora: dict[str, Any] | None, rate: float, warned: bool) -> None:
    given = study(model=OWN, sft=None, preference={"learning_rate": rate, "lora": lora})
    assert bool(rates_to_check(given)) == warned


@pytest.mark.parametrize("file", STUDIES, ids=lambda file: file.stem)
def test_no_study_of_ours_is_warned_of(file: Path) -> None:
    assert rates_to_check(load_study(read_settings([DEFAULT, file]))) == []
