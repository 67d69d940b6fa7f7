"""Damaged, missing, quantised or pickled weights: `preflight` reports each in one line."""

from pathlib import Path
from typing import Any

import pytest
import torch

from sams.launch import preflight
from sams.policy.model import load_model
from sams.study.settings import Model
from sams.study.study import Study
from tests.bad_input.models import HEAD, NORM, Trap, copied, cut, gone, in_json, pickled, tensors, text, whole
from tests.bad_input.refused import Case, Refused, cases, refused
from tests.study.test_config import tiny_study

__all__ = ["refused", "whole"]

INDEX = "model.safetensors.index.json"


def study_of(folder: Path | str, **overlay: Any) -> Study:
    """The default study with another model, and nothing to score."""
    own = {"model": {"path": str(folder)}, "tracking__enabled": False}
    return tiny_study(**{"benchmarks": {}, **own, **overlay})


SHARD = "model-00002-of-00006.safetensors"
ONE: list[Any] = [
    ("a file cut off", cut, "model.safetensors: cut off or damaged .*; fetch the model again"),
    ("an empty file", text("model.safetensors", ""), "model.safetensors: cut off or damaged .*; fetch"),
    (
        "a weight that is NaN",
        tensors(lambda found: found[NORM][3].fill_(float("nan"))),
        "model.safetensors: tensor model.norm.weight holds NaN or infinity; fetch",
    ),
    (
        "a weight that is infinite",
        tensors(lambda found: found[HEAD][1, 2].fill_(float("-inf"))),
        "model.safetensors: tensor lm_head.weight holds NaN or infinity; fetch",
    ),
    (
        "weights of 8-bit integers",
        tensors(lambda found: found.update({HEAD: found[HEAD].to(torch.int8)})),
        "tensor lm_head.weight is of type I8, expected one of .*; give the model in bfloat16",
    ),
    (
        "weights of 8-bit floats",
        tensors(lambda found: found.update({HEAD: found[HEAD].to(torch.float8_e4m3fn)})),
        "tensor lm_head.weight is of type F8_E4M3, expected one of .*; give",
    ),
    (
        "a quantised model",
        in_json("config.json", quantization_config={"quant_method": "gptq", "bits": 4}),
        "config.json, key 'quantization_config': the weights are quantised.*; give",
    ),
    (
        "pickled weights",
        pickled,
        "model: the weights are pickled only .pytorch_model.bin.; save .* model.allow_pickle",
    ),
    ("no weights", gone("model.safetensors"), "model: no weights: neither model.safetensors nor .*; fetch"),
    ("no config", gone("config.json"), "config.json: cannot be read .No such file.*; fetch"),
    ("a config that is no JSON", text("config.json", "{"), "config.json: cannot be read .not JSON.*; fetch"),
    (
        "a config that is a list",
        text("config.json", "[]"),
        "config.json: expected an object with keys; fetch",
    ),
]
SHARDS: list[Any] = [
    ("a missing shard", gone(SHARD), f"{SHARD}: a shard is missing, with . tensors; fetch the model again"),
    ("an index that is cut off", text(INDEX, '{"weight'), f"{INDEX}: cannot be read .not JSON.*; fetch"),
    ("an index of nothing", text(INDEX, "{}"), f"{INDEX}, key 'weight_map': expected tensors.*; fetch"),
    (
        "an index that leaves the folder",
        in_json(INDEX, weight_map={NORM: "../one/model.safetensors"}),
        f"{INDEX}, tensor model.norm.weight: expected the name of a file in the same folder, found '../one.*; fetch",
    ),
    (
        "a shard without its tensor",
        in_json(INDEX, weight_map={"model.nothing": SHARD}),
        f"{SHARD}: tensor model.nothing is not in it, as the index says; fetch",
    ),
]


@cases(*ONE, *SHARDS)
def test_the_first_job_reads_a_models_files(
    case: Case, whole: Path, refused: Refused, tmp_path: Path
) -> None:
    folder = copied(whole, tmp_path, "one" if case in ONE else "shards")
    case.made(folder)
    said = refused(
        preflight.main,
        study=study_of(folder).model_dump_json(),
        out=tmp_path / "found.json",
        results=tmp_path / "results",
        says=case.says,
    )
    assert str(folder) in said and not (tmp_path / "found.json").exists()


def test_a_finished_model_is_read_too(whole: Path, refused: Refused, tmp_path: Path) -> None:
    folder = copied(whole, tmp_path)
    tensors(lambda found: found[NORM].fill_(float("nan")))(folder)
    study = study_of(
        whole / "one", methods=["sft", "theirs"], method_settings={"theirs": {"model": {"path": str(folder)}}}
    )
    refused(
        preflight.main,
        study=study.model_dump_json(),
        out=tmp_path / "found.json",
        results=tmp_path / "results",
        says="model.norm.weight holds NaN",
    )


def test_whole_models_pass_and_pickles_where_they_are_allowed(whole: Path, tmp_path: Path) -> None:
    for kind in ("one", "shards"):
        preflight.check_model_source(Model(path=str(whole / kind)), "model.path")
    folder = copied(whole, tmp_path)
    # Older models also store masks and positions.
    tensors(
        lambda found: found.update({"a.bias": torch.ones(3, dtype=torch.uint8), "a.ids": torch.arange(3)})
    )(folder)
    preflight.check_model_source(Model(path=str(folder)), "model.path")
    pickled(folder)
    allowed = Model(path=str(folder), allow_pickle=True)
    preflight.check_model_source(allowed, "model.path")
    found, expected = load_model(folder, allowed), load_model(whole / "one", allowed)
    assert all(torch.equal(*both) for both in zip(found.parameters(), expected.parameters(), strict=True))


def test_no_pickle_runs_even_where_pickles_are_allowed(whole: Path, tmp_path: Path) -> None:
    folder = copied(whole, tmp_path)
    (folder / "model.safetensors").unlink()
    torch.save(Trap(str(tmp_path / "sprung")), folder / "pytorch_model.bin")
    with pytest.raises(Exception, match="cannot load a causal language model"):
        load_model(folder, Model(path=str(folder), allow_pickle=True))
    assert not (tmp_path / "sprung").exists()
