"""A study's model without its weights: from config/models, a local folder, or the study's own architecture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers

from sams.errors import UserError
from sams.files import read_json
from sams.policy.model import without_dropout
from sams.policy.policy import Policy
from sams.training.costs import weights_of

if TYPE_CHECKING:
    from sams.settings import Model

FOLDER = Path(__file__).resolve().parents[2] / "config" / "models"


@dataclass(frozen=True)
class Sizes:
    """Numbers of weights.

    Attributes:
        total: all.
        body: those that every token meets, N.
        head: of the output layer, N_h.
        cache: bytes of keys and values that generation keeps per token, in bfloat16.
    """

    total: int
    body: int
    head: int
    cache: int


def config_of(settings: Model) -> dict[str, Any]:
    """The transformers config of a model, with its `model_type`; nothing is asked of a hub.

    Raises:
        UserError: when the model is neither built from scratch, nor in a folder, nor in config/models.
    """
    if settings.architecture is not None:
        return {"vocab_size": settings.vocab_size, **settings.architecture}
    assert settings.path is not None
    for file in (Path(settings.path) / "config.json", FOLDER / f"{settings.path}.json"):
        if file.is_file():
            found: dict[str, Any] = read_json(file)
            return found
    known = sorted(str(file.relative_to(FOLDER).with_suffix("")) for file in FOLDER.rglob("*.json"))
    raise UserError(
        f"the architecture of {settings.path} is not known",
        where="model.path",
        remedy=f"put its config.json at config/models/{settings.path}.json (there are: {', '.join(known)})",
    )


def build(config: dict[str, Any], attention: str) -> Policy:
    """A policy of that architecture on the meta device: shapes, and nothing in them."""
    known = dict(config)
    made = transformers.AutoConfig.for_model(known.pop("model_type"), **known)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(
            made, dtype=torch.float32, attn_implementation=attention, trust_remote_code=False
        )
        return Policy(without_dropout(model))


def sizes_of(config: dict[str, Any]) -> Sizes:
    """Count the weights of an architecture."""
    policy = build(config, "eager")
    body, head = weights_of(policy)
    made: Any = policy.model.config
    width = getattr(made, "head_dim", None) or made.hidden_size // made.num_attention_heads
    heads = getattr(made, "num_key_value_heads", None) or made.num_attention_heads
    total = sum(parameter.numel() for parameter in policy.parameters())
    return Sizes(total, body, head, 2 * made.num_hidden_layers * heads * width * 2)
