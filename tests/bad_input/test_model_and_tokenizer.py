"""A model, a tokenizer, a chat template and data that do not fit together: `tokenise` reports each in one line."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sams.data import prepare, tokenise
from sams.data.templates import CompletionEncoder, encode_prompt
from sams.data.tokeniser import build_tokenizer
from sams.runtime.files import read_json
from sams.study.rounds import required_rows
from sams.study.settings import Model
from sams.study.study import Study
from tests import tiny
from tests.bad_input.models import NORM, Change, copied, gone, in_json, tensors, text, whole
from tests.bad_input.refused import Case, Refused, cases, refused
from tests.study.test_config import tiny_study

__all__ = ["refused", "whole"]

PAIRS = [{"prompt": f"w{n} w{n + 1}", "chosen": f"w{n}", "rejected": f"w{n + 2}"} for n in range(6)]


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six prepared pairs, the same for training and testing."""
    return prepared(tmp_path_factory.mktemp("records"), PAIRS)


def prepared(folder: Path, pairs: list[dict[str, Any]]) -> Path:
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    source = str(folder / "pairs.jsonl")
    prepare.main(json.dumps({"data": {"train": source, "test": source}}), folder / "data")
    return folder / "data"


def recipe_of(model: dict[str, Any], **more: Any) -> str:
    return json.dumps({"model": model, "max_length": 64, "max_prompt_length": 32} | more)


CONFIG, TOKENS = "config.json", "tokenizer_config.json"
OWN_CODE = "raise SystemExit('code of a model was run')"


def own_code(name: str, auto_map: dict[str, Any], **more: Any) -> Change:
    def changed(folder: Path) -> None:
        in_json(name, auto_map=auto_map, **more)(folder)
        (folder / "own.py").write_text(OWN_CODE)

    return changed


def own_tokenizer(folder: Path) -> None:
    (folder / TOKENS).write_text(json.dumps({"auto_map": {"AutoTokenizer": ["own.Own", None]}}))
    (folder / "own.py").write_text(OWN_CODE)


TOGETHER: list[Any] = [
    (
        "no EOS token",
        in_json(TOKENS, eos_token=None),
        "model.path: the tokenizer has no EOS token; set `eos_token`",
    ),
    ("no tokenizer", gone("tokenizer.json"), "model.path: cannot load the tokenizer of .*; give a folder"),
    (
        "a tokenizer that is cut off",
        text("tokenizer.json", "{"),
        "model.path: cannot load the tokenizer of .*; give",
    ),
    (
        "a tokenizer that lacks parts",
        text("tokenizer.json", '{"version": "1.0"}'),
        "cannot load the tokenizer of .*; g",
    ),
    (
        "a tokenizer with code of its own",
        own_tokenizer,
        "cannot load the tokenizer of .*custom code.*; give",
    ),
    (
        "a broken template",
        in_json(TOKENS, chat_template="{% for %}"),
        "model.chat_template: the chat template.*; give",
    ),
    (
        "a template that reaches for more",
        in_json(TOKENS, chat_template="{{ messages.__class__.__mro__[1].__subclasses__() }}"),
        "model.chat_template: the chat template .*(unsafe|access).*; give",
    ),
    (
        "a template that refuses",
        in_json(TOKENS, chat_template="{{ raise_exception('no users') }}"),
        "model.chat_template: the chat template refuses the roles .*no users; give",
    ),
    (
        "a template without answers",
        in_json(TOKENS, chat_template="{{ messages[0].content }}"),
        "model.chat_template: the chat template writes an answer elsewhere.*; give",
    ),
    (
        "a tokenizer of another model",
        lambda folder: tiny_tokenizer(["more"]).save_pretrained(folder),
        r"model: the tokenizer's token .* has id 43, but the model has 43 embeddings; give model and tokenizer",
    ),
    (
        "fewer positions than tokens",
        in_json(CONFIG, max_position_embeddings=32),
        "data.max_length: 64 tokens are more than the 32 positions of the model; set it to 32",
    ),
    (
        "a weight that is missing",
        tensors(lambda found: found.pop(NORM)),
        "model: 1 weights are not in its files, .*norm.*; give",
    ),
    (
        "a weight of another shape",
        tensors(lambda found: found.update({NORM: torch.ones(5)})),
        r"model: tensor model.norm.weight has shape \[5\], the config has \[32\]; give",
    ),
    (
        "another kind of model",
        in_json(CONFIG, model_type="gpt_neox"),
        "weights are not in its files.*; give weights and config",
    ),
    (
        "an unknown kind of model",
        in_json(CONFIG, model_type="nonsense"),
        "cannot load a causal.*`nonsense`.*; give",
    ),
    (
        "a model with code of its own",
        own_code(CONFIG, {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}, model_type="own"),
        "cannot load a causal language model: .*custom code.*; give",
    ),
]


def tiny_tokenizer(more: list[str]) -> Any:
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens(more)
    return tokenizer


@cases(*TOGETHER)
def test_model_tokenizer_and_template(
    case: Case, whole: Path, records: Path, refused: Refused, tmp_path: Path
) -> None:
    folder = copied(whole, tmp_path)
    case.made(folder)
    recipe = recipe_of({"path": str(folder)})
    refused(tokenise.main, recipe=recipe, data=records, out=tmp_path / "tokens", says=case.says)
    assert not (tmp_path / "tokens").exists()


def fresh(tokenizer: str = "words", **changes: Any) -> dict[str, Any]:
    return {"architecture": tiny.SIZES | {"model_type": "llama"} | changes, "tokenizer": tokenizer}


FRESH: list[Any] = [
    (
        "an unknown architecture",
        fresh(model_type="lama"),
        r"model.architecture: cannot build a model of type lama; did you mean llama\?",
    ),
    (
        "a size that it has not",
        fresh(hiden_size=64),
        r"key 'model.architecture.hiden_size': .*no such setting; did you mean hidden_size\?; drop it",
    ),
    (
        "sizes that do not fit",
        fresh(hidden_size=30),
        "model.architecture: cannot build a model of type llama: .*; ",
    ),
    (
        "too small a vocabulary",
        fresh("bpe") | {"vocab_size": 99},
        "model.vocab_size: .*needs 260 entries.*; raise it",
    ),
    (
        "no such template",
        fresh() | {"chat_template": "no.jinja"},
        "model.chat_template: cannot read no.jinja.*; name",
    ),
]


@cases(*FRESH)
def test_a_fresh_model(case: Case, records: Path, refused: Refused, tmp_path: Path) -> None:
    refused(tokenise.main, recipe=recipe_of(case.made), data=records, out=tmp_path / "tokens", says=case.says)


def rows_for(**overlay: Any) -> Study:
    small = {"batch_size": 2, "micro_batch_size": 2, "scoring_micro_batch_size": 2}
    return tiny_study(sft=dict(small), pretrain=dict(small), preference=dict(small), **overlay)


ROWS: list[Any] = [
    (
        "fewer examples than a batch",
        {"sft__batch_size": 8},
        "sft.batch_size: rows of sft left .*: 6, required: 8; give more",
    ),
    ("fewer pairs to pretrain on", {"pretrain__batch_size": 8}, "pretrain.batch_size: .*: 6, required: 8"),
    (
        "fewer pairs than a batch",
        {"preference__batch_size": 8},
        "preference.batch_size of method dpo: rows of train left .*: 6, required: 8",
    ),
    (
        "fewer pairs than two halves need",
        {"preference__batch_size": 4, "method_settings__dpo": {"selector": "selective", "ratio": 0.5}},
        "method dpo, trained on half of the pairs: rows of train left .*: 6, required: 8",
    ),
    (
        "more ratios than rounds",
        {"method_settings__dpo": {"selector": "random", "ratio": [0.5, 1.0, 0.5, 1.0]}},
        "preference.batch_size of method dpo: rows of train left .*: 6, required: 8",
    ),
]


@cases(*ROWS)
def test_rows_enough_for_what_will_be_trained(
    case: Case, records: Path, refused: Refused, tmp_path: Path
) -> None:
    refused(
        tokenise.main,
        recipe=recipe_of(fresh()),
        data=records,
        out=tmp_path / "tokens",
        required=json.dumps(required_rows(rows_for(**case.made))),
        says=case.says,
    )


def test_one_row_is_too_few(refused: Refused, tmp_path: Path) -> None:
    data, run = prepared(tmp_path, PAIRS[:1]), {"out": tmp_path / "tokens"}
    kto = "error: where|KTO needs two pairs or more"
    with pytest.raises(Exception, match=kto):
        tokenise.main(recipe_of(fresh(), mismatched=True), data, tmp_path / "tokens")
    refused(
        tokenise.main,
        recipe=recipe_of(fresh()),
        data=data,
        required=json.dumps(required_rows(rows_for())),
        **run,
        says="data.test: rows of test left .*: 1, required: 2; give",
    )


def test_lengths_are_cut_and_counted(tmp_path: Path) -> None:
    """A prompt of 1 MB loses its beginning; pairs that cutting makes equal, and empty ones, are dropped."""
    long = {"prompt": "w1 " * 350_000 + "w2", "chosen": "w3 " * 99, "rejected": "w4"}
    equal = {"prompt": "w5", "chosen": "w6 " * 99, "rejected": "w6 " * 98}
    data = prepared(tmp_path, [*PAIRS, long, equal])
    tokenise.main(recipe_of(fresh()), data, tmp_path / "tokens")
    report = read_json(tmp_path / "tokens" / "report.json")["train"]
    assert (report["kept"], report["prompt_cut"], report["response_cut"]) == (7, 1, 3)
    assert report["dropped_equal"] == 1
    with pytest.raises(Exception, match=r"no row remains after tokenising .*; raise data.max_length"):
        tokenise.main(recipe_of(fresh()), prepared(tmp_path, [equal]), tmp_path / "none")


def test_control_tokens_in_peoples_text_are_text(whole: Path) -> None:
    tokenizer = build_tokenizer(Model(path=str(whole / "one")), iter(()))
    ids = encode_prompt(tokenizer, [{"role": "user", "content": "w1 <eos> w2 <bos><pad>"}])
    [answer] = CompletionEncoder(tokenizer)(["w3 <eos> w4"])
    assert ids.count(tokenizer.bos_token_id) == 1 and tokenizer.eos_token_id not in ids
    assert answer.count(tokenizer.eos_token_id) == 1 == len(answer) - answer.index(tokenizer.eos_token_id)


def test_no_chat_template_is_said_and_a_plain_one_taken(
    whole: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert "Human: " in build_tokenizer(Model(path=str(whole / "one")), iter(())).chat_template
    assert "has no chat template: a plain one is used" in caplog.text
