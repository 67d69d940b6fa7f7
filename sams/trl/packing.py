"""Whether a TRL trainer computes packed rows: tried on pairs of its data before the first step."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sams.policy.policy import Own, Policy, Scores, own_of
from sams.policy.rows import Rows
from sams.runtime.errors import UserError, first_line
from sams.study.settings import Model
from sams.training.agreement import logps_of
from sams.training.layout import choose_layout
from sams.training.tasks.pairs import PairTask
from sams.trl.forward import Forward, bare, padded
from sams.trl.packed import PackedModel, packed

log = logging.getLogger(__name__)

BATCH = {"attention_mask", "completion_mask", "input_ids", "ref_chosen_logps", "ref_rejected_logps"}
"""What a packed pass knows of a batch."""
TRIED, LONGEST = 64, 2048
"""Pairs at the start of the data, of which the two longest are computed in both layouts, and tokens of a sequence."""


def choose_forward(trainer: Any, inputs: Mapping[str, Tensor]) -> Forward:
    """Return the forward pass of a run: over packed rows where they give what padded ones give. A collective call.

    Args:
        trainer: TRL's DPOTrainer, whose model is wrapped; `args.packing` is auto, true or false.
        inputs: a batch of its collator.

    Raises:
        UserError: rows cannot be packed, and `packing` is true.
    """
    setting = str(trainer.args.packing).lower()
    if setting == "false":
        return padded
    model = PackedModel.of(bare(trainer.model))
    cause = _unsupported(trainer, inputs)
    sentences = [_padded(model, cause)] if cause else _try(model, trainer)
    if model.attention is None and setting == "true":
        raise UserError("; ".join(sentences), where="packing", remedy="set it to auto or false")
    if trainer.accelerator.is_main_process:
        for sentence in sentences:
            log.warning(sentence)
    if model.attention is None:
        return padded
    if trainer.ref_model is not None:
        PackedModel.of(bare(trainer.ref_model)).attention = model.attention
    return packed


def _padded(model: PackedModel, cause: str) -> str:
    return f"{type(model.model).__name__} computes padded rows, which is slower ({cause})"


def _unsupported(trainer: Any, inputs: Mapping[str, Tensor]) -> str | None:
    """Return what in the trainer's settings has no packed rows; None for nothing."""
    other = set(inputs) - BATCH
    peft = getattr(trainer.model, "active_peft_config", None)
    causes = {
        f"its batches have {', '.join(sorted(other))}": other,
        "prompt learning puts tokens before each row": getattr(peft, "is_prompt_learning", False),
        "the loss of its experts' load is of padded rows": trainer.aux_loss_enabled,
        "torch_compile is on": trainer.args.torch_compile,
    }
    return next((cause for cause, holds in causes.items() if holds), None)


def _try(model: PackedModel, trainer: Any) -> list[str]:
    """Choose the attention of packed rows by pairs of the data; return a sentence for each fall-back."""
    pairs = _pairs(trainer)
    if not pairs["id"]:
        return [_padded(model, f"the first {TRIED} pairs have no prompt or no response")]
    half = trainer.args.bf16 or trainer.args.fp16 or model.model.dtype != torch.float32
    settings = Model(path="any", precision="bfloat16" if half else "float32")
    probe, wrapped, task = _Probe(model, trainer), trainer.model_wrapped, PairTask(pairs)
    was_training = wrapped.training
    try:
        wrapped.eval()
        model.attention, sentences = choose_layout(probe, task, probe, settings)
        if model.attention is not None:
            wrapped.train()  # whose attention may have dropout
            with torch.random.fork_rng(devices=[probe.device] if probe.device.type == "cuda" else []):
                logps_of(probe, task.sequences([0]), probe)
    except UserError as error:  # the layout is not the cause
        model.attention, sentences = None, [f"rows are padded, as TRL computes them: {error.problem}"]
    except Exception as error:  # models raise any type
        model.attention, sentences = None, [_padded(model, first_line(error))]
    finally:
        wrapped.train(was_training)
    return sentences


class _Probe(Policy):
    """A trainer's wrapped model with TRL's head as a policy, and its processes, for `choose_layout`."""

    def __init__(self, packed: PackedModel, trainer: Any) -> None:
        nn.Module.__init__(self)
        self.model = packed.model
        self._packed = packed
        self._accelerator = trainer.accelerator
        self._wrapped = [trainer.model_wrapped]  # in a list, so that it is no part of this module
        self.device = trainer.accelerator.device
        self.packed = None

    def largest(self, value: float) -> float:
        """Return the largest of the processes' values."""
        every: Tensor = self._accelerator.gather(torch.tensor([value], device=self.device))
        return float(every.max())

    def pack(self, attention: str | None) -> None:
        self.packed = self._packed.attention = attention

    def forward(self, rows: Rows, with_contexts: bool = False, own: bool = False) -> Scores | Own:
        [model] = self._wrapped
        if own:
            return own_of(model, rows)
        if rows.branches is not None:
            logps = model(packed_rows=rows, fused_lm_head=True).log_probs[0]
        else:
            labels = torch.full_like(rows.input_ids, -100)
            labels.view(-1)[rows.answers] = rows.input_ids.flatten()[rows.answers]
            mask = rows.attention_mask
            found = model(input_ids=rows.input_ids, attention_mask=mask, labels=labels, fused_lm_head=True)
            logps = nn.functional.pad(found.log_probs, (1, 0)).flatten()[rows.answers]
        return Scores(logps.float(), rows.counts)


def _pairs(trainer: Any) -> dict[str, list[Any]]:
    """Return token ids of the first pairs, cut to `max_length`, without those that have no prompt or response."""
    longest = min(trainer.args.max_length or LONGEST, LONGEST)
    pairs: dict[str, list[Any]] = {
        name: [] for name in ("id", "prompt_ids", "chosen_ids", "rejected_ids", "flipped")
    }
    first = trainer.train_dataset[:TRIED]
    for number, (prompt, *both) in enumerate(
        zip(first["prompt_ids"], first["chosen_ids"], first["rejected_ids"], strict=True)
    ):
        prompt = prompt[-(longest - 1) :]
        chosen, rejected = (ids[: longest - len(prompt)] for ids in both)
        if prompt and chosen and rejected:
            row = (str(number), prompt, chosen, rejected, None)
            for column, value in zip(pairs.values(), row, strict=True):
                column.append(value)
    return pairs
