"""A tokenised toy data set, a tokenizer and small models, made in code for the tests."""

import random
from pathlib import Path
from typing import Any

import datasets
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from sams.runtime.files import write_manifest
from sams.study.settings import Model

WORDS = [f"w{number}" for number in range(40)]
SPECIAL = ["<pad>", "<bos>", "<eos>"]

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "num_key_value_heads": 2},
    "mistral": {"model_type": "mistral", "num_key_value_heads": 2, "sliding_window": 8},
    "gemma2": {"model_type": "gemma2", "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 8},
    "gpt_neox": {"model_type": "gpt_neox"},
}
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
}


def settings(kind: str = "llama", **overrides: Any) -> Model:
    """Settings of a small model of an architecture class."""
    attention = "eager" if kind == "gemma2" else "sdpa"
    values = {"architecture": SIZES | ARCHITECTURES[kind], "tokenizer": "words", "attention": attention}
    return Model.model_validate(values | overrides)


def tokenizer() -> transformers.PreTrainedTokenizerFast:
    """A word tokenizer over a closed vocabulary."""
    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *WORDS])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    )


def pairs(count: int, seed: int) -> dict[str, list[Any]]:
    """Preference pairs with a lesson in them: the chosen response repeats the prompt's first word."""
    draw = random.Random(seed)
    columns: dict[str, list[Any]] = {
        key: [] for key in ("id", "prompt_ids", "chosen_ids", "rejected_ids", "flipped")
    }
    for number in range(count):
        prompt = [1, *(draw.randrange(3, 43) for _ in range(draw.randint(3, 9)))]
        other = draw.choice([word for word in range(3, 43) if word != prompt[1]])
        columns["id"].append(f"{seed:04x}{number:012x}")
        columns["prompt_ids"].append(prompt)
        columns["chosen_ids"].append([prompt[1]] * draw.randint(1, 4) + [2])
        columns["rejected_ids"].append([other] * draw.randint(1, 4) + [2])
        columns["flipped"].append(number % 5 == 0)
    return columns


def write_tokens(folder: Path, *, train: int = 64, test: int = 24, mismatched: bool = False) -> Path:
    """A folder as the stage `tokenise` leaves it."""
    tokenizer().save_pretrained(folder / "tokenizer")
    for split, columns in (("train", pairs(train, 1)), ("test", pairs(test, 2))):
        if mismatched:
            columns["mismatched_ids"] = columns["chosen_ids"][1:] + columns["chosen_ids"][:1]
        datasets.Dataset.from_dict(columns).save_to_disk(folder / split)
    examples = pairs(train, 3)
    sft = {"id": examples["id"], "prompt_ids": examples["prompt_ids"], "response_ids": examples["chosen_ids"]}
    datasets.Dataset.from_dict(sft).save_to_disk(folder / "sft")
    write_manifest(folder)
    return folder
