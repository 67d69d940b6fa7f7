"""Start models of other kinds than a complete causal language model in one format: read, or refused in one line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers

from sams.launch import preflight
from sams.launch.resources import weights_of
from sams.policy.model import load_model
from sams.runtime.errors import UserError
from sams.study.settings import Model
from tests import tiny
from tests.bad_input.models import HEAD, copied, gone, in_json, tensors, whole
from tests.bad_input.refused import Case, Refused, cases, refused
from tests.bad_input.test_model_files import study_of
from tests.policy.test_dropout import KINDS
from tests.policy.test_dropout import SIZES as TOKENS

__all__ = ["refused", "whole"]

CONFIG = "config.json"
BART = {
    **dict.fromkeys(("d_model", "encoder_ffn_dim", "decoder_ffn_dim"), 32),
    **dict.fromkeys(("encoder_layers", "decoder_layers"), 1),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
}


def adapted(folder: Path, name: str) -> None:
    """Put files of adapters into a folder."""
    base = transformers.AutoModelForCausalLM.from_pretrained(folder)
    peft.get_peft_model(base, peft.LoraConfig(target_modules=["q_proj"])).save_pretrained(folder / "adapters")
    config = json.loads((folder / "adapters" / "adapter_config.json").read_text())
    (folder / "adapters" / "adapter_config.json").write_text(
        json.dumps(config | {"base_model_name_or_path": "their/base"})
    )
    for file in (folder / "adapters").glob(name):
        shutil.move(file, folder / file.name)


def adapters_alone(folder: Path) -> None:
    adapted(folder, "adapter_*")
    (folder / CONFIG).unlink()
    (folder / "model.safetensors").unlink()


def adapters_with_a_config(folder: Path) -> None:
    adapted(folder, "adapter_*")
    (folder / "model.safetensors").unlink()


def converted(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-Q4.gguf")


def of_type(kind: str, auto: Any, **sizes: Any) -> Callable[[Path], None]:
    """A model of another type, or with another head."""

    def made(folder: Path) -> None:
        shutil.rmtree(folder)
        config = transformers.AutoConfig.for_model(kind, **TOKENS, **sizes)
        auto.from_config(config).save_pretrained(folder)

    return made


def bfloat16_in_4_bits(method: str) -> Any:
    return in_json(CONFIG, quantization_config={"quant_method": method, "bits": 4, "load_in_4bit": True})


KINDS_OF_FOLDER: list[Any] = [
    (
        "adapters alone",
        adapters_alone,
        "model: the folder has adapters .peft. without their base model; set the path to .* their/base",
    ),
    (
        "adapters with a config of their base",
        adapters_with_a_config,
        "model: the folder has adapters .peft. without their base model; set the path to .* their/base",
    ),
    (
        "a config of adapters left over in a merged model",
        lambda folder: adapted(folder, "adapter_config.json"),
        "adapter_config.json: a file of adapters, left over .*; move adapter_config.json to",
    ),
    (
        "adapters next to a model",
        lambda folder: adapted(folder, "adapter_*"),
        "adapters next to a model: .*; move adapter_config.json and adapter_model.safetensors to",
    ),
    ("gguf alone", converted, "no weights: .*, only model-Q4.gguf; give .* or save it with .from_pretrained"),
    ("bitsandbytes", bfloat16_in_4_bits("bitsandbytes"), "the weights are quantised.*; give"),
    ("awq", bfloat16_in_4_bits("awq"), "the weights are quantised.*; give"),
    (
        "an encoder and a decoder",
        of_type("bart", transformers.AutoModelForSeq2SeqLM, **BART),
        "a model of type bart has an encoder and a decoder; give a causal language model",
    ),
    (
        "a masked language model",
        of_type("bert", transformers.AutoModelForMaskedLM, **tiny.SIZES),
        "a model of type bert is a masked language model; give a causal language model",
    ),
    (
        "a classifier",
        of_type("llama", transformers.AutoModelForSequenceClassification, **tiny.SIZES),
        "1 weights are not in its files, the first lm_head.weight; give",
    ),
    (
        "an untied config of tied weights",
        lambda folder: (
            tensors(lambda found: found.pop(HEAD))(folder),
            in_json(CONFIG, tie_word_embeddings=False)(folder),
        ),
        "1 weights are not in its files, the first lm_head.weight; give",
    ),
    (
        "a class with code of its own",
        in_json(CONFIG, model_type="own", auto_map={"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}),
        "contains custom code .*; give",
    ),
    ("an unknown type", in_json(CONFIG, model_type="newest"), "model type .newest. but .*; give"),
    (
        "a class without this kernel",
        of_type("bloom", transformers.AutoModelForCausalLM, **KINDS["bloom"]),
        "model.attention, .*: a model of type bloom has no attention kernel sdpa; set it to eager",
    ),
]


@cases(*KINDS_OF_FOLDER)
def test_a_start_model_of_another_kind_is_refused_by_the_first_job(
    case: Case, whole: Path, refused: Refused, tmp_path: Path
) -> None:
    folder = copied(whole, tmp_path)
    case.made(folder)
    study = study_of(folder)
    weights_of(study.model)  # the workflow starts
    refused(
        preflight.main,
        study=study.model_dump_json(),
        out=tmp_path / "found.json",
        results=tmp_path / "results",
        says=case.says,
    )
    with pytest.raises(UserError):  # a stage that is run by hand
        load_model(folder, study.model)


READ: dict[str, Callable[[Path], Any]] = {
    "shards next to one file": lambda folder: [
        shutil.copy(file, folder) for file in (folder.parent / "shards").glob("model*")
    ],
    "pickles next to safetensors": lambda folder: torch.save({}, folder / "pytorch_model.bin"),
    "gguf next to safetensors": lambda folder: (folder / "model-Q4.gguf").write_bytes(b"GGUF"),
    "no quantisation": in_json(CONFIG, quantization_config=None),
    "a type in the config": in_json(CONFIG, dtype="float16", torch_dtype="float16"),
    "code next to a known class": in_json(CONFIG, auto_map={"AutoModelForCausalLM": "own.M"}),
    "no generation settings": gone("generation_config.json"),
    "other pickles": lambda folder: torch.save({}, folder / "training_args.bin"),
}


@pytest.mark.parametrize("name", READ)
def test_other_files_in_a_folder_change_nothing(whole: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(whole / "shards", tmp_path / "shards")
    folder = copied(whole, tmp_path)
    READ[name](folder)
    settings = Model(path=str(folder))
    preflight.check_model_source(settings, "model.path")
    expected = transformers.AutoModelForCausalLM.from_pretrained(whole / "one").state_dict()
    found = load_model(folder, settings)
    assert found.dtype == torch.float32
    assert all(torch.equal(weight, expected[name]) for name, weight in found.state_dict().items())
    assert weights_of(settings) == found.num_parameters()


def test_two_weights_that_the_config_ties_stay_two(whole: Path, tmp_path: Path) -> None:
    """transformers loads both; a config that tied them would lose one of them in the export."""
    folder = copied(whole, tmp_path)
    in_json(CONFIG, tie_word_embeddings=True)(folder)
    model = load_model(folder, Model(path=str(folder)))
    assert not torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)
    assert model.config.tie_word_embeddings is False


@pytest.mark.parametrize("kind", ["gpt2", "opt", "bloom", "falcon", "mpt", "xglm", "gpt_bigcode"])
def test_the_weights_of_any_type_are_counted_without_loading_them(kind: str, tmp_path: Path) -> None:
    config = transformers.AutoConfig.for_model(kind, **TOKENS, **KINDS[kind])
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path)
    settings = Model(path=str(tmp_path))
    assert weights_of(settings) == model.num_parameters()
    (tmp_path / "model.safetensors").unlink()
    estimated = weights_of(settings)  # by the config alone
    assert 0.75 < estimated / model.num_parameters() < 1.25
    for text in ("{}", "[]", '{"model_type": 3}', '{"hidden_size": "x"}', "{"):
        (tmp_path / CONFIG).write_text(text)
        assert weights_of(settings) > 0


def test_adapters_that_the_start_model_cannot_have_are_refused_by_the_first_job(
    whole: Path, refused: Refused, tmp_path: Path
) -> None:
    folder = copied(whole, tmp_path)
    tensors(lambda found: found.pop(HEAD))(folder)
    in_json(CONFIG, tie_word_embeddings=True)(folder)
    for target, says in (
        ("lm_head", "lora.target_modules: the weight of lm_head is tied: .*; drop lm_head"),
        ("w_proj", "lora.target_modules: cannot add adapters: .*w_proj.*; name linear layers"),
    ):
        study = study_of(folder, preference__lora={"target_modules": [target]})
        refused(
            preflight.main,
            study=study.model_dump_json(),
            out=tmp_path / "found.json",
            results=tmp_path / "results",
            says=says,
        )
