"""TRL's padded batches as one packed row, and the pass of a model with TRL's head over it.

TRL's head scores the token after each position of a row. A packed row has positions that predict two tokens, the
last ones of prompts, and positions that predict none; so the head gets the states that predict completion tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from sams.policy.packing import Branches
from sams.policy.policy import completion_means, packed_layout
from sams.policy.rows import Rows
from sams.trl.forward import padded

PER_TOKEN = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1", "label_mask")


class PackedModel:
    """Gives the forward pass of a causal language model with TRL's head one more argument, `packed_rows`.

    It is replaced inside of DDP, FSDP2 and PEFT, which call it. Without that argument it does what it did.

    Attributes:
        attention: attention of packed rows (`sams.policy.attention`).
    """

    def __init__(self, model: transformers.PreTrainedModel) -> None:
        self.model = model
        self.attention: str | None = None
        self._own = model.forward
        parts: list[Any] = [part for part in model.modules() if hasattr(part, "config")]
        self._configs = list({id(part.config): part.config for part in parts}.values())
        for part in parts:
            if part not in (model, model.base_model):
                part.forward = functools.partial(self._inner, part.forward)

        @functools.wraps(type(model).forward)  # `generate` checks its arguments by the signature
        def forward(_: Any, *args: Any, packed_rows: Rows | None = None, **named: Any) -> Any:
            return self._own(*args, **named) if packed_rows is None else self._scored(packed_rows)

        model.forward = MethodType(forward, model)

    @classmethod
    def of(cls, model: transformers.PreTrainedModel) -> PackedModel:
        """Return the one of this model, which is made once."""
        if "packed" not in vars(model):
            model.packed = cls(model)
        found: PackedModel = vars(model)["packed"]
        return found

    def _scored(self, rows: Rows) -> Any:
        """Run TRL's head on the states that predict the completion tokens: values [1, M]."""
        assert self.attention is not None
        answers = rows.input_ids.flatten().index_select(0, rows.answers)

        def select(_module: Any, _inputs: Any, output: Any) -> Any:
            states = output.last_hidden_state.flatten(0, 1)
            output.last_hidden_state = states.index_select(0, rows.predicts)[None]
            return output

        handle = self.model.base_model.register_forward_hook(select)
        try:
            with self._attending():
                return self._own(
                    input_ids=rows.input_ids,
                    shift_labels=answers[None],
                    fused_lm_head=True,
                    **packed_layout(rows, self.attention, self.model.config),
                )
        finally:
            handle.remove()

    def _inner(self, forward: Any, *args: Any, **named: Any) -> Any:
        """Run an inner module; over a packed row with its attention, where the backward pass recomputes it too."""
        if "branches" not in named:
            return forward(*args, **named)
        with self._attending():
            return forward(*args, **named)

    @contextmanager
    def _attending(self) -> Iterator[None]:
        """Let the model use the attention of packed rows."""
        before = [config._attn_implementation for config in self._configs]
        for config in self._configs:
            config._attn_implementation = self.attention
        try:
            yield
        finally:
            for config, attention in zip(self._configs, before, strict=True):
                config._attn_implementation = attention


def packed(
    model: nn.Module, inputs: Mapping[str, Any], watched: Sequence[nn.Module] = ()
) -> tuple[Any, Tensor | None]:
    """Compute a padded batch of TRL's as a packed row; see `sams.trl.forward.Forward`."""
    ids = inputs["input_ids"]
    rows, places = pack(ids, inputs["attention_mask"], inputs["labels"])
    if not len(rows.answers):  # TRL's head gives a 0 with a gradient
        return padded(model, inputs, watched)
    rows, places = rows.to(ids.device), places.to(ids.device)
    with completion_means(watched, rows) as means:
        outputs = model(packed_rows=rows, fused_lm_head=True)
    shape = ids.shape[0], ids.shape[1] - 1
    for name in PER_TOKEN:
        values = getattr(outputs, name)
        if values is not None:
            flat = values.new_zeros(shape[0] * shape[1])
            setattr(outputs, name, flat.index_copy(0, places.to(values.device), values[0]).view(shape))
    return outputs, torch.stack(means, dim=1) if watched else None


def pack(ids: Tensor, attended: Tensor, labels: Tensor) -> tuple[Rows, Tensor]:
    """Pack a padded batch of B pairs into one row without padding, with what a pair's sequences begin with once.

    This is the prompt, with equal first tokens of both responses, and less where TRL has cut the start of the prompt.

    Args:
        ids: [2B, T], token ids, padded on the right, the chosen responses first.
        attended: [2B, T], 1 for tokens and 0 for padding.
        labels: [2B, T], ids of the completion tokens, -100 elsewhere.

    Returns:
        The row, on the CPU, and the index of each completion token in the flattened [2B, T - 1] of TRL's values.

    Raises:
        ValueError: when the padding is on the left.
    """
    ids, attended, labels = torch.stack([ids, attended, labels]).cpu()
    if (attended[:, 1:] > attended[:, :-1]).any():
        raise ValueError("batches are padded on the left")
    pairs, longest = ids.shape[0] // 2, ids.shape[1]
    lengths = attended.sum(dim=1).view(2, pairs)
    same = ids[:pairs] == ids[pairs:]
    # The last token of a sequence is never shared, so that no completion of the row is empty.
    shared = torch.minimum(same.cumprod(dim=1).sum(dim=1), lengths.amin(dim=0) - 1)
    branches = Branches.of(torch.stack([shared, *(lengths - shared)], dim=1).tolist())
    item, completion, position = branches.parts.long()
    sequence = torch.where(completion == 2, pairs + item, item)
    index = torch.zeros_like(ids)
    index[sequence, position] = torch.arange(len(item))
    stem = completion == 0
    index[pairs + item[stem], position[stem]] = stem.nonzero()[:, 0]

    scored = labels[:, 1:] != -100
    row, column = scored.nonzero(as_tuple=True)
    rows = Rows(
        ids[sequence, position][None],
        row,
        index[row, column + 1],
        index[row, column],
        scored.sum(dim=1),
        position_ids=position[None],
        branches=branches,
    )
    return rows, row * (longest - 1) + column
