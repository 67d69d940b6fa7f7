"""The path of the paper's studies, no rehearsal: local folders of the hub's form, and a judge behind an endpoint.

The models are tiny and fresh; their folders, tokenizers, templates, the data sets' files and the benchmarks' inputs
have the form of the real ones.
"""

import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
import transformers
import yaml
from pyarrow import parquet
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from sams.data.published import rendered
from sams.runtime.files import read_json
from sams.study.settings import Form, World
from sams.training.tasks.base import read_tokens
from sams.world import examples as world
from sams.world.judge_prompts import judge_prompts
from tests.chain.test_workflow import snakemake
from tests.conftest import ROOT
from tests.judge.endpoint import KEY, Endpoint, serving

WORLD = World(sft_examples=64, train_pairs=256, test_pairs=64, flipped_share=0.0)

# Of Llama 3 as it is published: a BOS from the template and one from the tokenizer, EOS as end of a turn, no padding.
LLAMA_TOKENS = [
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
]
LLAMA_TEMPLATE = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' "
    "+ message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
LLAMA = {"model_type": "llama", "num_key_value_heads": 2}
SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 512,
}

# What a machine without GPUs needs; all else is the study's own.
SMALL: dict[str, Any] = {
    "scheduler": {"preset": "small"},
    "preference": {"epochs": 1, "checkpoint_every": 50, "evaluations": 1},
    "launch": {"nproc_per_node": 2, "device": "cpu", "strategy": "fsdp2"},
    "data": {"max_length": 256, "max_prompt_length": 192},
}


def save_model(
    folder: Path, kind: dict[str, Any], special: list[str], **names: str
) -> transformers.PreTrainedTokenizerFast:
    """A fresh model in a folder as the hub has it; returns its tokenizer, without pad token."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    texts = [f" {turn['content']} {pair.chosen}" for pair in world.train_pairs(WORLD) for turn in pair.prompt]
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(texts, trainer)
    if "bos_token" in names and names["bos_token"] != names["eos_token"]:
        bos = names["bos_token"]
        raw.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, raw.token_to_id(bos))]
        )
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=raw, **names)
    config = transformers.AutoConfig.for_model(
        kind["model_type"],
        **{**SIZES, **{key: value for key, value in kind.items() if key != "model_type"}},
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tokenizer


def split_rows(form: Form) -> dict[str, list[dict[str, Any]]]:
    """The world's pairs as rows, and in `train` one that is broken, as real data have them."""
    row_of = rendered(form)
    rows = {
        "train": list(map(row_of, world.train_pairs(WORLD))),
        "test": list(map(row_of, world.test_pairs(WORLD))),
    }
    broken = dict(rows["train"][0])
    rows["train"].append(broken | {"rejected": broken["chosen"]})
    return rows


def write_lines(file: Path, rows: Iterable[Any]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def run_study(folder: Path, study: str, overlay: dict[str, Any]) -> Path:
    """Run a study of the paper with what this machine has; returns the folder of its results."""
    config = folder / "here.yaml"
    config.write_text(yaml.safe_dump(overlay))
    base = ROOT / "config" / "studies" / f"{study}.yaml"
    snakemake(folder, "--configfile", str(base), str(config), seconds=1800)
    return folder / "results" / study


@pytest.mark.slow
def test_table_1_from_local_folders_and_an_endpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>", "chat_template": LLAMA_TEMPLATE}
    tokenizer = save_model(tmp_path / "Meta-Llama-3-8B-Instruct", LLAMA, LLAMA_TOKENS, **names)
    data = tmp_path / "llama3-ultrafeedback"
    (data / "data").mkdir(parents=True)
    for split, rows in split_rows("messages").items():
        sampled = {"all_generated_responses": ["1", "2"], "all_rm_scores": [0.25, 0.5]}
        table = pa.Table.from_pylist([row | sampled for row in rows])
        parquet.write_table(table, data / "data" / f"{split}-00000-of-00001.parquet")
    (tmp_path / "baseline.json").write_text(json.dumps(world.baseline_outputs(WORLD)))
    stop = [tokenizer.convert_tokens_to_ids(token) for token in ("<|end_of_text|>", "<|eot_id|>")]
    decoding = {"max_new_tokens": 8, "batch_size": 805, "stop_token_ids": stop}
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    with serving(Endpoint()) as endpoint:
        overlay = {
            **SMALL,
            "methods": ["sft", "kto", "dpo-sams"],
            "model": {"path": str(tmp_path / "Meta-Llama-3-8B-Instruct"), "revision": None},
            "benchmarks": {
                "judge": {"base_url": endpoint.base_url, "model": "judge"},
                "alpaca_eval": {
                    "reference_outputs": str(tmp_path / "baseline.json"),
                    "difficulty": None,
                    "decoding": decoding,
                },
                "mt_bench": {
                    "questions": write_lines(tmp_path / "question.jsonl", world.mt_bench_questions(WORLD)),
                    "references": write_lines(tmp_path / "gpt-4.jsonl", world.mt_bench_references(WORLD)),
                    "judge_prompts": write_lines(tmp_path / "judge_prompts.jsonl", judge_prompts()),
                    "decoding": decoding,
                },
            },
        }
        overlay["data"] = SMALL["data"] | {"train": f"{data}:train", "test": f"{data}:test"}
        results = run_study(tmp_path, "table1_llama3_instruct", overlay)
    assert endpoint.distinct > 160 and endpoint.keys == {f"Bearer {KEY}", None}

    setting = results / "llama3-instruct"
    report = read_json(setting / "data" / "report.json")
    assert (report["train"]["rows"], report["train"]["broken_rows"], report["train"]["written"]) == (
        257,
        1,
        256,
    )
    assert report["train"]["published_rows"] == 58119
    assert read_json(results / "preflight.json")["commits"] == {}
    tokens = read_tokens(setting / "tokens", "train")
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    assert all(prompt[0] == bos and prompt.count(bos) == 1 for prompt in tokens["prompt_ids"])
    assert all(answer[-1] == eos and answer.count(eos) == 1 for answer in tokens["chosen_ids"])

    table = pd.read_csv(results / "tables" / "main.csv").set_index("method")
    assert table[["win_rate", "mt_bench"]].notna().all(axis=None)
    assert table.loc[["kto", "dpo-sams"], "test_accuracy"].notna().all()
    page = (results / "tables" / "main.md").read_text()
    assert "REHEARSAL" not in page and "Length control: unavailable" in page
    told = "".join(file.read_text() for file in results.rglob("*.log"))
    assert KEY not in told


@pytest.mark.slow
def test_table_2_from_local_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Pythia's tokenizer: one token for begin, end and all, and no template.
    end = "<|endoftext|>"
    save_model(
        tmp_path / "pythia-2.8b",
        {"model_type": "gpt_neox"},
        [end],
        bos_token=end,
        eos_token=end,
        unk_token=end,
    )
    data = tmp_path / "hh-rlhf" / "helpful-base"
    data.mkdir(parents=True)
    for split, rows in split_rows("hh").items():
        (data / f"{split}.jsonl.gz").write_bytes(
            gzip.compress("".join(json.dumps(r) + "\n" for r in rows).encode())
        )
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    overlay = {
        **SMALL,
        "methods": ["sft", "dpo", "dpo-sams"],
        "model": {"path": str(tmp_path / "pythia-2.8b"), "revision": None},
        "data": SMALL["data"] | {"train": f"{data.parent}:train", "test": f"{data.parent}:test"},
    }
    results = run_study(tmp_path, "table2_hh", overlay)
    report = read_json(results / "pythia-2.8b-hh" / "data" / "report.json")
    assert (report["train"]["rows"], report["train"]["broken_rows"]) == (257, 1)
    assert "chosen and rejected are equal" in report["train"]["first_broken"][0]
    table = pd.read_csv(results / "tables" / "main.csv").set_index("method")
    assert (
        table.loc[["dpo", "dpo-sams"], ["test_accuracy", "chosen_reward", "chosen_logp"]]
        .notna()
        .all(axis=None)
    )
    assert (results / "pythia-2.8b-hh/scheduler/seed0/weights/manifest.json").is_file(), "learnt beside SFT"
