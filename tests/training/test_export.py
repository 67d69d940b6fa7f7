"""What travels with weights: an exported folder is used by transformers and peft as its start model was."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from sams.runtime.errors import UserError
from sams.runtime.files import digest_of, read_json
from sams.study.model_files import BESIDE_WEIGHTS, TOKENIZER, matching
from sams.study.recipes import ExportRecipe, PreferenceRecipe, SftRecipe
from sams.study.settings import Model, Preference, Sft
from sams.training import export, preference, sft
from tests import hub_like, tiny
from tests.policy.test_dropout import KINDS, SIZES
from tests.training.test_runs import TRAINING, here, weights

END = hub_like.SPECIAL.index(hub_like.TURN_END)
STOPS = [*hub_like.STOP_IDS, END]
QUESTION = [{"role": "user", "content": "w9 w30 w12 w5"}]
LOSS = {"loss": "simpo", "selector": "random", "ratio": 0.5}  # without a reference model
SCRIPT = """
import json, sys
sys.modules["sams"] = None  # an import of it fails
import peft, torch, transformers
transformers.logging.set_verbosity_error()
folder, adapted, base, question = *sys.argv[1:4], json.loads(sys.argv[4])
load = transformers.AutoModelForCausalLM.from_pretrained
tokenizer, model = transformers.AutoTokenizer.from_pretrained(folder), load(folder)
text = tokenizer.apply_chat_template(question, add_generation_prompt=True, tokenize=False)
prompt = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
torch.manual_seed(0)
answers = model.generate(prompt, max_new_tokens=60, num_return_sequences=4)[:, prompt.shape[1]:].tolist()
written = transformers.pipeline("text-generation", model=folder)(question, max_new_tokens=60)
models = {"model": load(folder, dtype=torch.float32), "merged": load(adapted, dtype=torch.float32)}
models["adapted"] = peft.PeftModel.from_pretrained(load(base, dtype=torch.float32), adapted + "/adapter")
print(json.dumps({
    "dtype": str(model.dtype),
    "answers": answers,
    "text": written[0]["generated_text"][-1]["content"],
    "prompt": prompt.tolist(),
    "logits": {name: model(prompt).logits.tolist() for name, model in models.items()},
}))
"""


def settings(start: Path, **overrides: Any) -> Model:
    return tiny.settings(path=str(start), architecture=None, tokenizer=None, **overrides)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A start model, its copy, a model trained on it, and one with adapters; all but the start are exports."""
    folder = tmp_path_factory.mktemp("exports")
    start = hub_like.write_start(folder / "start")
    tokens = hub_like.write_tokens(folder / "tokens", start)
    model = settings(start)
    here(export, ExportRecipe(model=model), out=folder / "baseline")
    training = TRAINING | {"micro_batch_size": 16, "learning_rate": 1e-2, "checkpoint_every": 1000}
    recipe = SftRecipe(
        seed=0, model=model, training=Sft.model_validate(training | {"epochs": 10, "max_steps": 40})
    )
    here(sft, recipe, tokens=tokens, out=folder / "sft", checkpoints=folder / "c")
    data = {"train": "someone/pairs@main", "test": "/home/me/held_out.jsonl"}
    tuned = ExportRecipe(model=model, data=data)
    here(export, tuned, tokens=tokens, trained=folder / "sft/trained", out=folder / "tuned")
    own = Preference.model_validate(training | LOSS | {"max_steps": 4, "lora": {"r": 4}})
    dpo = PreferenceRecipe(seed=3, method="dpo-half", model=model, training=own, scheduler=None)
    inputs = {"tokens": tokens, "model": folder / "baseline"}
    here(preference, dpo, **inputs, out=folder / "dpo", checkpoints=folder / "c")
    here(export, ExportRecipe(model=model), **inputs, trained=folder / "dpo/trained", out=folder / "adapted")
    return {path.name: path for path in folder.iterdir()}


@pytest.fixture(scope="module")
def outside(made: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What somebody finds in the folders who has transformers and peft, but not this project."""
    folders = [str(made[name]) for name in ("tuned", "adapted", "start")]
    process = subprocess.run(
        [sys.executable, "-I", "-c", SCRIPT, *folders, json.dumps(QUESTION)],
        cwd=tmp_path_factory.mktemp("elsewhere"),
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    found: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    found["logits"] = {name: torch.tensor(values) for name, values in found["logits"].items()}
    return found


def test_others_get_the_trained_model_in_its_type(made: dict[str, Path], outside: dict[str, Any]) -> None:
    assert outside["dtype"] == "torch.bfloat16"
    config = transformers.AutoConfig.from_pretrained(made["start"])
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    trained = weights(made["sft"]).items()
    model.load_state_dict({name.removeprefix("policy.model."): x.bfloat16() for name, x in trained})
    torch.testing.assert_close(outside["logits"]["model"], model(torch.tensor(outside["prompt"])).logits)


def test_generation_by_others_stops_at_the_end_of_a_turn(outside: dict[str, Any]) -> None:
    """Training taught the end of a turn and EOS after it: without the first as a stop id, both are generated."""
    padding = 2
    for answer in outside["answers"]:
        words = answer[: answer.index(END)]
        assert 0 < len(words) < 20 and not {2, END} & {*words}
        assert answer[answer.index(END) + 1 :] == [padding] * (len(answer) - len(words) - 1)
    longest = max(outside["answers"], key=lambda answer: answer.index(END))
    assert longest[-1] == END, "nothing is generated after it"
    assert hub_like.TURN_END not in outside["text"] and 0 < len(outside["text"].split()) < 20


def test_peft_loads_the_adapters_onto_the_start_model(made: dict[str, Path], outside: dict[str, Any]) -> None:
    config = read_json(made["adapted"] / "adapter" / "adapter_config.json")
    assert config["base_model_name_or_path"] == str(made["start"]), "not the copy in the results"
    merged, onto_the_base = outside["logits"]["merged"], outside["logits"]["adapted"]
    plain = transformers.AutoModelForCausalLM.from_pretrained(made["start"], dtype=torch.float32)
    moved = (plain(torch.tensor(outside["prompt"])).logits - onto_the_base).abs().max()
    assert (merged - onto_the_base).abs().max() < 0.1 * moved, "the rounding of merged weights to bfloat16"


def test_vllm_stops_at_the_end_of_a_turn(made: dict[str, Path]) -> None:
    vllm = pytest.importorskip("vllm", reason="vllm is not installed")
    engine = vllm.LLM(model=str(made["tuned"]), enforce_eager=True)
    [result] = engine.chat(QUESTION, engine.get_default_sampling_params())
    assert result.outputs[0].token_ids[-1] == END


@pytest.mark.parametrize("name", ["baseline", "tuned", "adapted"])
def test_settings_of_the_start_model_stay(made: dict[str, Path], name: str) -> None:
    start, out = made["start"], made[name]
    generation = read_json(start / "generation_config.json")
    added = {"eos_token_id": STOPS, "pad_token_id": 2, "use_cache": True}
    assert read_json(out / "generation_config.json") == generation | added
    assert read_json(out / "config.json") == read_json(start / "config.json") | {"use_cache": True}
    theirs, ours = (transformers.AutoConfig.from_pretrained(folder).to_diff_dict() for folder in (start, out))
    assert ours | {"use_cache": True} == theirs | {"use_cache": True}
    assert {tensor.dtype for tensor in load_file(out / "model.safetensors").values()} == {torch.bfloat16}


@pytest.mark.parametrize("name", ["baseline", "tuned", "adapted"])
def test_tokenizer_templates_and_licence_are_copied_byte_for_byte(made: dict[str, Path], name: str) -> None:
    start, out = made["start"], made[name]
    files = {file.relative_to(start) for file in matching(start, BESIDE_WEIGHTS)}
    copied = {str(file) for file in files if (out / file).read_bytes() == (start / file).read_bytes()}
    assert copied == {
        "LICENSE",
        "additional_chat_templates/tool_use.jinja",
        "chat_template.jinja",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert not (out / "notes.txt").exists()
    mask = os.umask(0o022)
    os.umask(mask)
    assert {file.stat().st_mode & 0o777 for file in out.rglob("*") if file.is_file()} == {0o666 & ~mask}


def test_the_copy_of_a_start_model_has_its_weights_bit_by_bit(made: dict[str, Path]) -> None:
    copy, start = (load_file(made[name] / "model.safetensors") for name in ("baseline", "start"))
    assert copy.keys() == start.keys() and all(torch.equal(copy[name], start[name]) for name in start)


def test_the_type_of_the_weights_can_be_set(made: dict[str, Path], tmp_path: Path) -> None:
    recipe = ExportRecipe.model_validate({"model": settings(made["start"]), "export": {"dtype": "float32"}})
    here(export, recipe, tokens=made["tokens"], trained=made["sft"] / "trained", out=tmp_path / "out")
    exported = load_file(tmp_path / "out" / "model.safetensors")
    trained = weights(made["sft"])
    assert all(torch.equal(tensor, trained[f"policy.model.{name}"]) for name, tensor in exported.items())
    assert read_json(tmp_path / "out" / "config.json")["torch_dtype"] == "float32"


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox", "mixtral", "mpt"])
def test_every_type_of_model_is_copied_as_it_is(kind: str, tmp_path: Path) -> None:
    """Weights under other names, tied ones, stacked experts; a config with groups, and without `use_cache`."""
    config = transformers.AutoConfig.for_model(kind, **SIZES, **KINDS[kind])
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).bfloat16()
    model.save_pretrained(tmp_path / "start")
    tiny.tokenizer().save_pretrained(tmp_path / "start")
    here(export, ExportRecipe(model=settings(tmp_path / "start", attention="eager")), out=tmp_path / "out")
    copied = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(
        copied(torch.tensor([[1, 5, 6]])).logits, model.eval()(torch.tensor([[1, 5, 6]])).logits
    )
    before, after = (read_json(tmp_path / folder / "config.json") for folder in ("start", "out"))
    assert after | {"use_cache": True} == before | {"use_cache": True}


def test_a_model_of_the_hub_is_named_by_its_id(
    made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0" * 40
    repository = tmp_path / "models--someone--start"
    shutil.copytree(made["start"], repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path))
    model = settings(Path("someone/start"))
    here(export, ExportRecipe(model=model), out=tmp_path / "out")
    for file in (tmp_path / "out").iterdir():
        if file.name not in ("environment.json", "manifest.json", "README.md"):
            assert file.is_dir() or file.read_bytes() == (made["baseline"] / file.name).read_bytes()
    assert ModelCard.load(tmp_path / "out" / "README.md").data.base_model == "someone/start"
    assert export.name_of_base(tmp_path / "out", model) == ("someone/start", None)


@pytest.mark.parametrize("case", ["none", "derived", "no padding"])
def test_generation_settings_that_are_missing_or_wrong(
    made: dict[str, Path], tmp_path: Path, case: str
) -> None:
    start = shutil.copytree(made["start"], tmp_path / "start")
    given = {
        "none": None,
        "derived": {"_from_model_config": True, "eos_token_id": 2},
        "no padding": {"eos_token_id": None, "pad_token_id": -1},
    }[case]
    (start / "generation_config.json").unlink()
    if given is not None:
        (start / "generation_config.json").write_text(json.dumps(given))
    here(export, ExportRecipe(model=settings(start)), out=tmp_path / "out")
    found = read_json(tmp_path / "out" / "generation_config.json")
    found.pop("transformers_version", None), found.pop("bos_token_id", None)
    assert found == {"eos_token_id": [2, END], "pad_token_id": 2, "use_cache": True}
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.generation_config.eos_token_id == [2, END]


def test_generation_settings_that_are_damaged_end_in_one_line(made: dict[str, Path], tmp_path: Path) -> None:
    start = shutil.copytree(made["start"], tmp_path / "start")
    (start / "generation_config.json").write_text("{")
    with pytest.raises(UserError, match=r"start/generation_config.json: cannot be read"):
        here(export, ExportRecipe(model=settings(start)), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_template_of_the_users_own_replaces_that_of_the_tokenizer(
    made: dict[str, Path], tmp_path: Path
) -> None:
    start = shutil.copytree(made["start"], tmp_path / "start")
    old = read_json(start / "tokenizer_config.json") | {"chat_template": "{{ 'old' }}"}
    (start / "tokenizer_config.json").write_text(json.dumps(old))
    template = hub_like.TEMPLATE.replace("<|im_end|>", "<unk>")
    (tmp_path / "own.jinja").write_text(template)
    model = settings(start, chat_template=str(tmp_path / "own.jinja"))
    here(export, ExportRecipe(model=model), out=tmp_path / "out")
    out = tmp_path / "out"
    assert transformers.AutoTokenizer.from_pretrained(out).chat_template == template
    assert "chat_template" not in read_json(out / "tokenizer_config.json")
    assert (out / "tokenizer.json").read_bytes() == (start / "tokenizer.json").read_bytes()
    assert read_json(out / "generation_config.json")["eos_token_id"] == [2, 301, 3]


def test_a_fresh_model_keeps_its_rates_of_dropout(tokens: Path, tmp_path: Path) -> None:
    given = tiny.settings()
    model = tiny.settings(architecture=(given.architecture or {}) | {"attention_dropout": 0.1})
    here(export, ExportRecipe(model=model), tokens=tokens, out=tmp_path / "out")
    assert read_json(tmp_path / "out" / "config.json")["attention_dropout"] == 0.1
    for file in matching(tokens / "tokenizer", TOKENIZER):
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()


def test_a_card_says_what_a_model_was_trained_on_and_how(made: dict[str, Path], tmp_path: Path) -> None:
    card = ModelCard.load(made["tuned"] / "README.md")
    expected = {
        "base_model": "start",
        "base_model_relation": "finetune",
        "datasets": ["someone/pairs"],
        "language": ["en"],
        "library_name": "transformers",
        "license": "apache-2.0",
        "pipeline_tag": "text-generation",
        "tags": ["sams", "sft"],
    }
    assert card.data.to_dict() == expected
    assert "held_out.jsonl" in card.text and "/home/me" not in card.text
    card = ModelCard.load(made["adapted"] / "README.md")
    assert card.data.tags == ["sams", "simpo", "lora"]
    figures = read_json(made["dpo"] / "train_metrics.json")
    commit = read_json(made["dpo"] / "environment.json")["commit"].get("git_commit", "sams")
    for text in (
        "loss `simpo` with beta 0.1",
        "50% of the pairs, chosen by `random`",
        "learning_rate: 0.01",
        "seed: 3",
        f"| accuracy on test pairs, % | {figures['test_accuracy']:.4g} |",
        "| held-out reward margin | ",
        commit,
        "2506.17252",
    ):
        assert text in card.text
    adapter = ModelCard.load(made["adapted"] / "adapter" / "README.md")
    assert (adapter.data.library_name, adapter.data.base_model_relation) == ("peft", "adapter")
    assert f'from_pretrained("{made["start"]}")' in adapter.text
    baseline = ModelCard.load(made["baseline"] / "README.md")
    assert baseline.data.tags == ["sams"] and "A copy of `start`" in baseline.text


@pytest.mark.parametrize(
    ("card", "licence", "expected"),
    [
        (None, "MIT License", {"license": "mit"}),
        ("---\nlicense: [broken\n---\n", "Our own terms", {"license": "other", "license_link": "LICENSE"}),
        ("---\nlicense: llama3\nlicense_name: x\n---\n", None, {"license": "llama3", "license_name": "x"}),
        ("No metadata", None, {}),
    ],
)
def test_the_licence_is_that_of_the_base(
    tmp_path: Path, card: str | None, licence: str | None, expected: dict[str, str]
) -> None:
    from sams.training.card import write_cards

    for name, text in (("README.md", card), ("LICENSE", licence)):
        if text is not None:
            (tmp_path / name).write_text(text)
    (tmp_path / "out").mkdir()
    write_cards(tmp_path / "out", ExportRecipe(model=settings(tmp_path)), tmp_path, None)
    found = ModelCard.load(tmp_path / "out" / "README.md").data.to_dict()
    assert {key: value for key, value in found.items() if key.startswith("license")} == expected


def test_the_same_export_is_the_same_byte_for_byte(made: dict[str, Path], tmp_path: Path) -> None:
    inputs = {"tokens": made["tokens"], "model": made["baseline"], "trained": made["dpo"] / "trained"}
    here(export, ExportRecipe(model=settings(made["start"])), **inputs, out=tmp_path / "again")
    assert digest_of(tmp_path / "again") == digest_of(made["adapted"])
    assert (tmp_path / "again" / "README.md").read_text() == (made["adapted"] / "README.md").read_text()


def test_adapters_over_a_model_that_was_trained_name_that_model(made: dict[str, Path]) -> None:
    model = settings(made["start"], revision="abc")
    assert export.name_of_base(made["tuned"], model) == (str(made["tuned"]), None)
    assert export.name_of_base(made["baseline"], model) == (str(made["start"]), "abc")
    assert peft.LoraConfig(revision="abc").to_dict()["revision"] == "abc"
