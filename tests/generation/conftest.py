"""A small Llama with a word tokenizer for the synthetic world, exported as by the workflow."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from sams.study.settings import World
from sams.world.examples import baseline_outputs, mt_bench_questions

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<user>", "<assistant>"]
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ ' <' + message['role'] + '> ' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ ' ' + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ ' <assistant>' }}{% endif %}"
)


def make_tokenizer(template: str = TEMPLATE) -> transformers.PreTrainedTokenizerFast:
    """Return a tokenizer of the world's words."""
    texts = [row[key] for row in baseline_outputs(World()) for key in ("instruction", "output")]
    texts += [turn for row in mt_bench_questions(World()) for turn in row["turns"]]
    words = sorted({word for text in texts for word in text.split()})
    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *words])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=SPECIAL[4:],
        chat_template=template,
    )


def make_model(folder: Path, **architecture: Any) -> Path:
    """Export a fresh model, with decoding settings that must be ignored."""
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 128,
        "initializer_range": 0.2,
    }
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), bos_token_id=1, eos_token_id=2, pad_token_id=0, **(sizes | architecture)
    )
    model = transformers.LlamaForCausalLM(config)
    model.generation_config = transformers.GenerationConfig(
        do_sample=True, top_k=2, repetition_penalty=9.0, eos_token_id=2, pad_token_id=0
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported model."""
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A questions folder with 20 AlpacaEval instructions and the 80 questions of MT-Bench."""
    folder = tmp_path_factory.mktemp("questions")
    (folder / "alpaca_eval.json").write_text(json.dumps(baseline_outputs(World())[:20]))
    lines = [json.dumps(row) + "\n" for row in mt_bench_questions(World())]
    (folder / "mt_bench_questions.jsonl").write_text("".join(lines))
    return folder
