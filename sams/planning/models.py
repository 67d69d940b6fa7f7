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
        layers: number of blocks.
        positions: most tokens of a sequence; None where the architecture has no limit.
    """

    total: int
    body: int
    head: int
    cache: int
    layers: int = 0
    positions: int | None = None


def config_object(config: dict[str, Any]) -> Any:
    """Return the transformers config of a dict, which has one name for what types name differently."""
    known = dict(config)
    return transformers.AutoConfig.for_model(known.pop("model_type"), **known)


def cut(config: dict[str, Any], layers: int) -> dict[str, Any]:
    """Return the config of the same architecture with fewer blocks."""
    made = config_object(config)
    text = made.get_text_config()
    for key, value in list(vars(text).items()):
        if isinstance(value, list | tuple) and len(value) == text.num_hidden_layers:  # one entry a block
            setattr(text, key, value[:layers])
    text.num_hidden_layers = layers
    return dict(made.to_dict())


def build(config: dict[str, Any], attention: str, lora: Lora | None = None) -> Policy:
    """Build a policy of an architecture, with or without adapters, on the meta device."""
    made = config_object(config)
    with torch.device("meta"):
        model = from_config(made, attention)
        if lora is not None:
            add_lora(model, lora)
    return Policy(model)


def sizes_of(config: dict[str, Any]) -> Sizes:
    """Count the weights of an architecture."""
    policy = build(config, "eager")
    body, head = weights_of(policy)
    made: Any = policy.model.config.get_text_config()
    heads = getattr(made, "num_attention_heads", None) or 1
    width = getattr(made, "head_dim", None) or made.hidden_size // heads
    cached = width * (getattr(made, "num_key_value_heads", None) or heads)
    total = sum(parameter.numel() for parameter in policy.parameters())
    layers = made.num_hidden_layers
    positions = getattr(made, "max_position_embeddings", None)
    return Sizes(total, body, head, 2 * layers * cached * 2, layers, positions)
