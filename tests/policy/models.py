"""Small models of several architecture classes, and items for them."""

from typing import Any

import torch

from sams.policy.model import build_model
from sams.policy.policy import Policy
from sams.policy.rows import Item
from tests import tiny

ARCHITECTURES: dict[str, dict[str, Any]] = tiny.ARCHITECTURES | {
    "phi3": {"model_type": "phi3", "num_key_value_heads": 2},
    "qwen2": {"model_type": "qwen2", "num_key_value_heads": 2},
    "qwen3": {"model_type": "qwen3", "num_key_value_heads": 2, "head_dim": 8},
}


def items_of(count: int, seed: int = 4) -> list[Item]:
    """Pairs: prompt, chosen, rejected."""
    data = tiny.pairs(count, seed)
    return [
        (prompt, [chosen, rejected])
        for prompt, chosen, rejected in zip(
            data["prompt_ids"], data["chosen_ids"], data["rejected_ids"], strict=True
        )
    ]


def policy_of(kind: str, dtype: torch.dtype = torch.float32, **overrides: Any) -> Policy:
    """A policy whose attention is far from uniform, as fresh weights' attention is: that would hide a wrong mask."""
    attention = "eager" if kind == "gemma2" else "sdpa"
    architecture = tiny.SIZES | ARCHITECTURES[kind] | overrides
    settings = tiny.settings(architecture=architecture, attention=attention)
    model = build_model(settings, tiny.tokenizer(), seed=0)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return Policy(model.to(dtype))
