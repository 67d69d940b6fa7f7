"""Mistakes in models, tokenizers, hub ids and judges: each is one line with place and remedy, before training.

Mistakes in settings, data and commands are in bad_input/test_bad_input.py.
"""

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sams.data import prepare, tokenise
from sams.data.templates import CompletionEncoder, encode_prompt
from sams.data.tokeniser import build_tokenizer
from sams.launch import preflight
from sams.policy.model import build_model, load_model
from sams.runtime.files import read_json
from sams.study.config import Study
from sams.study.rounds import VARIABLE
from sams.study.settings import Model
from tests import tiny
from tests.bad_input.refused import Case, Refused, cases, refused
from tests.judge.endpoint import KEY, Endpoint, always, serving
from tests.study.test_config import tiny_study

__all__ = ["refused"]

INDEX = "model.safetensors.index.json"
Change = Callable[[Path], Any]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with its tokenizer, as one file and as shards."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer = tiny.tokenizer()
    model = build_model(tiny.settings(), tokenizer, 0)
    model.save_pretrained(folder / "one")
    model.save_pretrained(folder / "shards", max_shard_size="20KB")
    for kind in ("one", "shards"):
        tokenizer.save_pretrained(folder / kind)
    return folder


def copied(whole: Path, tmp_path: Path, kind: str = "one") -> Path:
    return Path(shutil.copytree(whole / kind, tmp_path / "model"))


def study_of(folder: Path | str, **overlay: Any) -> Study:
    """The default study with another model, and nothing to score."""
    own = {"model": {"path": str(folder)}, "tracking__enabled": False}
    return tiny_study(**{"benchmarks": {}, **own, **overlay})


# --- files of a model ------------------------------------------------------------------------------


def tensors(change: Callable[[dict[str, Any]], Any]) -> Change:
    """Change the tensors of the one file."""

    def changed(folder: Path) -> None:
        file = folder / "model.safetensors"
        found = load_file(file)
        change(found)
        save_file(found, file, metadata={"format": "pt"})

    return changed


def in_json(name: str, **changes: Any) -> Change:
    def changed(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(content | changes))

    return changed


def text(name: str, content: str) -> Change:
    return lambda folder: (folder / name).write_text(content)


def gone(name: str) -> Change:
    return lambda folder: (folder / name).unlink()


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


NORM, HEAD = "model.norm.weight", "lm_head.weight"
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
    # What older models keep beside their weights: masks, positions.
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


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.path, "w")


# --- model, tokenizer and data together ------------------------------------------------------------

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
        in_json(CONFIG, model_type="bert"),
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
        "sft.batch_size: 6 rows do not fill .* 8; give more",
    ),
    ("fewer pairs to pretrain on", {"pretrain__batch_size": 8}, "pretrain.batch_size: 6 rows do not fill"),
    (
        "fewer pairs than a batch",
        {"preference__batch_size": 8},
        "preference.batch_size of method dpo: 6 rows do not",
    ),
    (
        "fewer pairs than two halves need",
        {"preference__batch_size": 4, "method_settings__dpo": {"selector": "selective", "ratio": 0.5}},
        "method dpo, cross-fitted on half of the pairs: 3 rows do not fill",
    ),
    (
        "more ratios than rounds",
        {"method_settings__dpo": {"selector": "random", "ratio": [0.5, 1.0, 0.5, 1.0]}},
        "preference.ratio of method dpo: 4 ratios for 3 rounds; give fewer",
    ),
]


@cases(*ROWS)
def test_rows_enough_for_what_will_be_trained(
    case: Case, records: Path, refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, rows_for(**case.made).model_dump_json())
    refused(tokenise.main, recipe=recipe_of(fresh()), data=records, out=tmp_path / "tokens", says=case.says)


def test_one_row_is_too_few(refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, run = prepared(tmp_path, PAIRS[:1]), {"out": tmp_path / "tokens"}
    kto = "error: where|KTO needs two pairs or more"
    with pytest.raises(Exception, match=kto):
        tokenise.main(recipe_of(fresh(), mismatched=True), data, tmp_path / "tokens")
    monkeypatch.setenv(VARIABLE, rows_for().model_dump_json())
    refused(
        tokenise.main,
        recipe=recipe_of(fresh()),
        data=data,
        **run,
        says="data.test: 1 test pair is left; .*; give",
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
    with pytest.raises(Exception, match=r"nothing is left after tokenising .*; raise data.max_length"):
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


# --- the hub ---------------------------------------------------------------------------------------


class Hub(BaseHTTPRequestHandler):
    """A hub that answers as Hugging Face's does."""

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        status, code, body = 404, "RepoNotFound", b"{}"
        if "gated/model" in self.path:
            status, code = 403, "GatedRepo"
        elif "known/model" in self.path and "/v9" in self.path:
            code = "RevisionNotFound"
        elif "known/model" in self.path and "resolve" in self.path:
            status, code = 200, ""
        elif "known/model" in self.path:
            files = [{"rfilename": name} for name in ("config.json", "pytorch_model.bin")]
            status, code, body = 200, "", json.dumps({"id": "known/model", "siblings": files}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", '"0123"')
        self.send_header("X-Repo-Commit", "0" * 40)
        if code:
            self.send_header("X-Error-Code", code)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
        address + "/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setattr(
        "huggingface_hub.file_download.HUGGINGFACE_CO_URL_TEMPLATE",
        address + "/{repo_id}/resolve/{revision}/{filename}",
        raising=False,
    )
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


HUB: list[Any] = [
    (
        "a model that does not exist",
        {"path": "nobody/nothing"},
        "model.path: nobody/nothing .*no such id.*; correct the id",
    ),
    (
        "a gated model without a token",
        {"path": "gated/model"},
        "gated/model cannot be had: it is gated; accept .*HF_TOKEN",
    ),
    (
        "a revision that does not exist",
        {"path": "known/model", "revision": "v9"},
        "known/model cannot be had: it has no revision v9; correct",
    ),
    (
        "a model with pickles only",
        {"path": "known/model"},
        "known/model has pickled weights only .*; give a revision",
    ),
]


@cases(*HUB)
def test_the_hub(case: Case, hub: None, refused: Refused, tmp_path: Path) -> None:
    study = tiny_study(model=case.made, benchmarks={})
    refused(
        preflight.main,
        study=study.model_dump_json(),
        out=tmp_path / "f",
        results=tmp_path / "r",
        says=case.says,
    )


def test_a_data_set_that_the_hub_has_not(hub: None, refused: Refused, tmp_path: Path) -> None:
    data = {"world": None, "train": "stanfordnlp/SHPP@v1", "test": "stanfordnlp/SHPP@v1"}
    study = tiny_study(data=data, benchmarks={})
    says = r"dataset stanfordnlp/SHPP@v1: the hub has no such id.*; did you mean stanfordnlp/SHP\?; correct"
    refused(
        preflight.main, study=study.model_dump_json(), out=tmp_path / "f", results=tmp_path / "r", says=says
    )


PLACES: list[Any] = [
    (
        "no network",
        {"model": {"path": "some/model"}},
        "model.path: some/model cannot be had: the hub cannot be reached.*; check",
    ),
    (
        "a folder that is not there",
        {"model": {"path": "./no-model"}},
        "model.path: no such folder: ./no-model; correct",
    ),
    (
        "a file for a folder",
        {"model": {"path": "pyproject.toml"}},
        "model.path: no such folder: pyproject.toml.*; correct",
    ),
    (
        "an encoder that is not there",
        {"scheduler__encoder": "all-MiniLM"},
        r"scheduler.encoder: no such folder: all-MiniLM; did you mean all-MiniLM-L6-v2\?; set",
    ),
    (
        "data that are not there",
        {"data": {"world": None, "train": "config/studies/own_data/trian.jsonl", "test": "README.md"}},
        r"data.train: no such file: .*; did you mean train.jsonl\?; correct",
    ),
]


@cases(*PLACES)
def test_places(case: Case, refused: Refused, tmp_path: Path) -> None:
    study = tiny_study(**{"benchmarks": {}} | case.made)
    refused(
        preflight.main,
        study=study.model_dump_json(),
        out=tmp_path / "f",
        results=tmp_path / "r",
        says=case.says,
    )


# --- the judge -------------------------------------------------------------------------------------

# How the endpoint answers, what differs in the settings, the key.
JUDGES: list[Any] = [
    ("no key", ("ok", {}, None), "environment variable OPENAI_API_KEY: the judge needs a key; export it"),
    (
        "a key with its line end",
        ("ok", {}, f"{KEY}\n"),
        "OPENAI_API_KEY: the key holds white space.*; export it anew",
    ),
    (
        "a key in quotes of another kind",
        ("ok", {}, f"\u201c{KEY}\u201d"),
        "OPENAI_API_KEY: the key holds .*; export",
    ),
    ("a wrong key", ("ok", {}, "sk-another"), "URL: the judge refuses the key; check OPENAI_API_KEY"),
    ("a key that is withdrawn", ("401", {}, KEY), "URL: the judge refuses the key; check OPENAI_API_KEY"),
    (
        "nobody at the address",
        ("ok", {"base_url": "http://127.0.0.1:9/v1"}, KEY),
        "127.0.0.1:9/v1: the judge cannot be reached; check",
    ),
    (
        "another address",
        ("404", {}, KEY),
        "URL: the judge refuses a call with HTTP 404; check 'judge.base_url' and 'judge.model'",
    ),
    (
        "no log-probs",
        ("no_log_probs", {}, KEY),
        "URL: judge judge gives no log-probs, which AlpacaEval needs; set 'judge.model'",
    ),
    ("no text", ("empty", {}, KEY), "URL: judge judge gives no text to a short question; set 'judge.model'"),
    (
        "an endpoint that is down",
        ("500", {}, KEY),
        "URL: a call of judge judge failed 2 times .HTTP 500.; check",
    ),
    (
        "answers that are no JSON",
        ("broken", {}, KEY),
        "URL: a call of judge judge failed 2 times .broken JSON.; check",
    ),
]


@cases(*JUDGES)
def test_the_judge_is_asked_before_anything_is_trained(
    case: Case, refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome, settings, key = case.made
    if key is not None:
        monkeypatch.setenv("OPENAI_API_KEY", key)
    with serving(Endpoint(always(outcome))) as endpoint:
        judge = {"kind": "openai", "base_url": endpoint.base_url, "model": "judge", "retry_seconds": 0.001}
        study = tiny_study(benchmarks__judge=judge | settings)
        said = refused(
            preflight.main,
            study=study.model_dump_json(),
            out=tmp_path / "f",
            results=tmp_path / "r",
            says=case.says.replace("URL", endpoint.base_url),
        )
        assert endpoint.billed <= 2, "no more than two small calls"
    assert KEY[3:] not in said


@pytest.mark.parametrize("benchmark", ["alpaca_eval", "mt_bench"])
def test_a_judge_that_answers_passes(benchmark: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    other = {"alpaca_eval": "mt_bench", "mt_bench": "alpaca_eval"}[benchmark]
    with serving(Endpoint()) as endpoint:
        judge = {"kind": "openai", "base_url": endpoint.base_url, "model": "judge"}
        preflight.check_judge(tiny_study(benchmarks__judge=judge, **{f"benchmarks__{other}": None}))
        assert endpoint.billed == 1
