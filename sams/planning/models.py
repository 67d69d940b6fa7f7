"""Build architectures without weights, and count the weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import transformers

from sams.policy.model import add_lora, from_config
from sams.policy.policy import Policy, weights_of

if TYPE_CHECKING:
    from sams.study.settings import Lora


@dataclass(frozen=True)
class Sizes:
    """Numbers of weights.

    Attributes:
        total: all weights.
        body: weights that every token passes, N.
        head: weights of the output layer, N_h.
        cache: bytes of cached keys and values a token in generation, in bfloat16.
    """

    total: int
    body: int
    head: int
    cache: int


def build(config: dict[str, Any], attention: str, lora: Lora | None = None) -> Policy:
    """Build a policy of an architecture, with or without adapters, on the meta device."""
    known = dict(config)
    made = transformers.AutoConfig.for_model(known.pop("model_type"), **known)
    with torch.device("meta"):
        model = from_config(made, attention)
        if lora is not None:
            add_lora(model, lora)
        return Policy(model)


def sizes_of(config: dict[str, Any]) -> Sizes:
    """Count the weights of an architecture."""
    policy = build(config, "eager")
    body, head = weights_of(policy)
    made: Any = policy.model.config
    width = getattr(made, "head_dim", None) or made.hidden_size // made.num_attention_heads
    heads = getattr(made, "num_key_value_heads", None) or made.num_attention_heads
    total = sum(parameter.numel() for parameter in policy.parameters())
    return Sizes(total, body, head, 2 * made.num_hidden_layers * heads * width * 2)
