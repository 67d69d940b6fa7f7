"""A local start model with all that a hub repository may hold next to the weights, and data to train it on."""

import json
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from sams.runtime.files import write_manifest
from tests import tiny

TURN_END = "<|im_end|>"
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<|im_start|>", TURN_END]
WORDS = ["user", "assistant", "system", *(f"w{number}" for number in range(311))]
STOP_IDS = [2, 301]
SAMPLING = {"temperature": 0.6, "top_p": 0.9, "repetition_penalty": 1.1, "do_sample": True}
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + ' ' + message['content'] + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant ' }}{% endif %}"
)
CARD = "---\nlicense: apache-2.0\nlanguage: [en]\n---\n# A start model\n"


def write_start(folder: Path) -> Path:
    """Write a small Llama in bfloat16 as its authors might have: nothing is as transformers would write it."""
    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *WORDS])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<|im_start|>", TURN_END],
    )
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        **tiny.SIZES,
        num_key_value_heads=2,
        vocab_size=len(vocabulary),
        bos_token_id=1,
        eos_token_id=2,
        attention_dropout=0.1,
        initializer_range=0.2,
    )
    transformers.LlamaForCausalLM(config).bfloat16().save_pretrained(folder)
    tokenizer.save_pretrained(folder)

    written = _read(folder / "config.json")
    for name in ("dtype", "transformers_version", "rope_parameters"):
        written.pop(name, None)
    written |= {"torch_dtype": "bfloat16", "rope_theta": 5e5, "use_cache": False, "authors_note": {"a": 1}}
    _write(folder / "config.json", written)
    _write(folder / "generation_config.json", {**SAMPLING, "eos_token_id": STOP_IDS, "authors_key": 3})
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    named |= {"tokenizer_class": "PreTrainedTokenizerFast"}  # as of transformers 4, which reads no later form
    more = {"additional_special_tokens": ["<|im_start|>", TURN_END], "authors_key": 3}
    _write(folder / "tokenizer_config.json", {**named, **more})
    _write(folder / "special_tokens_map.json", {"eos_token": "</s>"})
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("{# tools #}" + TEMPLATE)
    (folder / "README.md").write_text(CARD)
    (folder / "LICENSE").write_text("Apache License, Version 2.0\n")
    (folder / "notes.txt").write_text("Not a file of the model.\n")
    return folder


def write_tokens(folder: Path, start: Path) -> Path:
    """Tokenised data for the start model: answers repeat the question's first word and end their turn."""
    tiny.write_tokens(folder)
    end = [SPECIAL.index(TURN_END), SPECIAL.index("</s>")]
    opening, closing = [1, 4, 6], [5, 4, 7]  # <s> <|im_start|> user ... <|im_end|> <|im_start|> assistant
    for split in ("sft", "train", "test"):
        rows = datasets.load_from_disk(folder / split).to_dict()
        for name in [name for name in rows if name.endswith("_ids")]:
            for ids in rows[name]:
                words = [token + 6 for token in ids if token > 2]
                ids[:] = [*opening, *words, *closing] if name == "prompt_ids" else [*words, *end]
        made = datasets.Dataset.from_dict(rows)
        for file in (folder / split).iterdir():
            file.unlink()
        made.save_to_disk(folder / split)
    transformers.AutoTokenizer.from_pretrained(start).save_pretrained(folder / "tokenizer")
    write_manifest(folder)
    return folder


def _read(file: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(file.read_text())
    return read


def _write(file: Path, value: dict[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=4))
