"""Model, tokenizer and pairs of the step benchmark: a Llama, and pairs as long as those of the HH data.

`hh_lengths.json` holds 256 triples [prompt, chosen, rejected] of token counts under a byte-level BPE of 4,096, drawn
with seed 0 from 3,000 pairs of HH-RLHF (helpful), end-of-sequence included. The tokens themselves are random.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from sams.policy.model import from_config
from sams.study.settings import Model

VOCABULARY = 4096
BOS, EOS = 1, 2
LENGTHS = Path(__file__).with_name("hh_lengths.json")


@dataclass(frozen=True)
class Shape:
    """Sizes of the Llama; the default has 8.4 million parameters."""

    hidden: int = 256
    layers: int = 8
    heads: int = 8
    kv_heads: int = 8
    intermediate: int = 688
    vocabulary: int = VOCABULARY

    def config(self) -> dict[str, Any]:
        """Return the transformers config."""
        return {
            "model_type": "llama",
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "intermediate_size": self.intermediate,
            "max_position_embeddings": 2048,
            "initializer_range": 0.05,
        }


LLAMA_8B = Shape(4096, 32, 32, 8, 14336, 128_256)


def settings_of(shape: Shape, *, precision: str = "float32", packing: bool = True) -> Model:
    """Return the model settings of a contestant."""
    return Model.model_validate(
        {"architecture": shape.config(), "tokenizer": "words", "precision": precision, "packing": packing}
    )


def build(
    shape: Shape, seed: int, device: str, *, dtype: torch.dtype = torch.float32
) -> transformers.PreTrainedModel:
    """Build the model with weights drawn from `seed`."""
    config = shape.config()
    kind = config.pop("model_type")
    torch.manual_seed(seed)
    with torch.device(device):
        return from_config(
            transformers.AutoConfig.for_model(
                kind,
                **config,
                vocab_size=shape.vocabulary,
                bos_token_id=BOS,
                eos_token_id=EOS,
                pad_token_id=0,
            ),
            "sdpa",
            dtype,
        )


def tokenizer(vocabulary: int) -> transformers.PreTrainedTokenizerFast:
    """Return a tokenizer with one word per token, so that TRL gets our token ids from text."""
    words = {"<pad>": 0, "<bos>": BOS, "<eos>": EOS} | {
        f"w{number}": number for number in range(3, vocabulary)
    }
    raw = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    )


def draw_pairs(
    batches: int,
    batch: int,
    *,
    seed: int = 0,
    vocabulary: int = VOCABULARY,
    scale: float = 1.0,
    jitter: float = 0.0,
) -> dict[str, list[Any]]:
    """Return tokenised pairs as columns, enough for `batches` batches.

    Args:
        batches: number of batches.
        batch: pairs of a batch.
        seed: seed of lengths and tokens.
        vocabulary: number of token ids.
        scale: factor of all lengths.
        jitter: a pair's factor is drawn between (1 - jitter) and (1 + jitter) times `scale`, so that no two batches
            have the same shapes.
    """
    draw = random.Random(seed)
    lengths = json.loads(LENGTHS.read_text(encoding="utf-8"))
    data: dict[str, list[Any]] = {
        name: [] for name in ("id", "prompt_ids", "chosen_ids", "rejected_ids", "flipped")
    }
    for number in range(batches * batch):
        factor = scale * draw.uniform(1 - jitter, 1 + jitter) if jitter else scale
        prompt, chosen, rejected = (max(2, round(factor * length)) for length in draw.choice(lengths))
        data["id"].append(f"{number:016x}")
        data["prompt_ids"].append([BOS, *(draw.randrange(3, vocabulary) for _ in range(prompt - 1))])
        for name, length in (("chosen_ids", chosen), ("rejected_ids", rejected)):
            data[name].append([*(draw.randrange(3, vocabulary) for _ in range(length - 1)), EOS])
        data["flipped"].append(None)
    return data
