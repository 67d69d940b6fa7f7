"""From hidden states to logits, by the code of the model's own class.

Classes differ in what they do around the output layer: some scale states or logits, some cap logits, some have
another layer before it. So that code runs, with the body's result replaced by the states of few tokens. What it does
after the output layer is found once, by trying it on known values, and computed in float32 with the log-probs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from sams.runtime.errors import UserError, first_line


@dataclass(frozen=True)
class Final:
    """What a model class makes of the output layer's result x: c tanh(scale x / c), of the first `width` values.

    Attributes:
        width: number of logits of a token.
        scale: factor of the output layer's result.
        cap: c; None for scale x.
    """

    width: int
    scale: float = 1.0
    cap: float | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        """Return the final logits: [..., vocabulary] -> [..., width]."""
        logits = logits[..., : self.width]
        if self.scale != 1:
            logits = logits * self.scale
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap


def output_layer(model: transformers.PreTrainedModel, states: Tensor) -> Tensor:
    """Return what the output layer gives for hidden states of the body: [M, width] -> [M, vocabulary]."""
    layer = _layer(model)
    original, given = layer.forward, []

    def keep(*args: Any, **kwargs: Any) -> Tensor:
        given.append(original(*args, **kwargs))
        kept: Tensor = given[-1][:, :0]  # what the class does next is done on no tokens
        return kept

    _own_forward(model, states[None], keep)
    logits: Tensor = given[-1][0]
    return logits


def final_of(model: transformers.PreTrainedModel) -> Final:
    """Find what the class of a model does after the output layer.

    Raises:
        UserError: where it is no scale or cap; where there is no output layer that the class calls.
    """
    name = type(model).__name__
    vocabulary = model.config.get_text_config().vocab_size
    tried = torch.linspace(-60, 60, vocabulary, dtype=torch.float64, device="cpu")[None, None]
    near, far = 2.0**-26, 2.0**100  # exact in any type
    try:
        weight = _layer(model).weight
        width = getattr(model.config.get_text_config(), "hidden_size", 1)
        states = torch.zeros(1, 0, width, dtype=weight.dtype, device=weight.device)
        found, small, large = (
            _own_forward(model, states, lambda *_, given=given: given)
            for given in (tried, torch.full_like(tried, near), torch.full_like(tried, far))
        )
        slope, limit = small.flatten()[0].item() / near, large.flatten()[0].item()
        final = Final(found.shape[-1], slope, limit if limit < far**0.5 else None)
        known = not found.requires_grad and found.shape[:-1] == tried.shape[:-1]
        known = known and torch.allclose(final(tried), found.double(), rtol=1e-5, atol=1e-5)
        cause = "its logits are no scaled or capped result of its output layer"
    except Exception as error:  # classes raise any type
        known, cause = False, first_line(error)
    if not known:
        raise UserError(
            f"log-probs of {name} are not supported: {cause}",
            where="model",
            remedy="take a causal language model of another class",
        )
    return final


def body_of(model: transformers.PreTrainedModel) -> nn.Module:
    """Return the model without its output layer."""
    return model.model if model.base_model is model else model.base_model  # Llama 4 names it wrongly


def _layer(model: transformers.PreTrainedModel) -> Any:
    layer: Any = model.get_output_embeddings()
    if layer is None:
        raise TypeError("it has no output layer")
    return layer


class _Body(tuple[Tensor]):
    """The result of a body: its hidden states, and None under any other name."""

    def __getattr__(self, name: str) -> Tensor | None:
        return self[0] if name == "last_hidden_state" else None


def _own_forward(model: transformers.PreTrainedModel, states: Tensor, layer: Callable[..., Tensor]) -> Tensor:
    """Run the class's forward, with these states as the body's result and `layer` for the output layer."""

    def body(*_: Any, **__: Any) -> _Body:
        return _Body((states,))

    with ExitStack() as stack:
        for module in {body_of(model), model.get_decoder()} - {model}:  # OPT calls the decoder of its body
            stack.enter_context(_replaced(module, body))
        stack.enter_context(_replaced(_layer(model), layer))
        ids = torch.zeros(states.shape[:2], dtype=torch.int64, device=states.device)
        logits: Tensor = model.forward(input_ids=ids).logits
    return logits


@contextmanager
def _replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Replace the forward of one module."""
    before = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before
