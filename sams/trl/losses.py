"""TRL's loss of single pairs, and of weighted pairs, from TRL's own code.

`DPOTrainer._compute_loss` returns the mean loss of a batch only. Its formulas are not copied: it runs on outputs that
are given, while the mean over pairs at its end is observed, or replaced by a weighted one; its metrics of pairs pass
through `accelerator.gather`, where they are observed too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from sams.runtime.errors import UserError

if TYPE_CHECKING:
    from sams.trl.trainer import ScheduledDPOTrainer

COUPLED = ("aot", "aot_unpaired", "sft")
"""Losses that are not a mean over the pairs of a batch: they sort the batch, or average over its tokens."""
NOT_OF_PAIRS = ("aot_unpaired", "sft")
"""Losses that are not a loss of a pair."""

Inputs = Mapping[str, Any]
Call = Callable[..., Any]
"""A stand-in for a model: takes TRL's keyword arguments, and returns TRL's outputs."""


@dataclass(frozen=True)
class PairValues:
    """Values of B pairs, each [B].

    Attributes:
        loss: loss of each pair, as TRL computes it of a batch of this pair alone.
        chosen_rewards, rejected_rewards: implicit rewards.
        margins: reward of the chosen minus that of the rejected response.
        chosen_logps, rejected_logps: log-probs of the responses under the policy.
    """

    loss: Tensor
    chosen_rewards: Tensor
    rejected_rewards: Tensor
    margins: Tensor
    chosen_logps: Tensor
    rejected_logps: Tensor


class _Means(TorchFunctionMode):
    """Observes the first means of [pairs] values, which are those of the losses, and weighs their values.

    Args:
        pairs: number of pairs of the batch.
        losses: number of losses.
        weights: [pairs] factors of the pairs; None for 1.
    """

    def __init__(self, pairs: int, losses: int, weights: Tensor | None = None) -> None:
        super().__init__()
        self.pairs = pairs
        self.losses = losses
        self.weights = weights
        self.found: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.mean and len(args) == 1 and not kwargs and len(self.found) < self.losses:
            values = args[0]
            if values.shape == (self.pairs,):
                self.found.append(values)
                if self.weights is not None:
                    return (values * self.weights).mean()
        return func(*args, **(kwargs or {}))


class _Observed:
    """An accelerator that notes what is gathered, and gathers only if asked to.

    Args:
        accelerator: the trainer's.
        gathers: whether values of other processes are gathered.
    """

    def __init__(self, accelerator: Any, gathers: bool) -> None:
        self._accelerator = accelerator
        self._gathers = gathers
        self.seen: list[Tensor] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._accelerator, name)

    def gather(self, tensor: Tensor) -> Any:
        self.seen.append(tensor)
        return self._accelerator.gather(tensor) if self._gathers else tensor

    def gather_for_metrics(self, tensor: Tensor) -> Any:
        return self._accelerator.gather_for_metrics(tensor) if self._gathers else tensor


@contextmanager
def changed(owner: Any, **values: Any) -> Iterator[None]:
    """Set attributes for a while."""
    before = {name: getattr(owner, name) for name in values}
    for name, value in values.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)


def pair_values(trainer: ScheduledDPOTrainer, inputs: Inputs, outputs: Any) -> PairValues:
    """Return the values of the pairs of a batch, from the outputs of the policy. Logs nothing, gathers nothing.

    Args:
        trainer: the trainer.
        inputs: a padded batch with log-probs of the reference.
        outputs: TRL's outputs of the policy.
    """
    pairs = len(inputs["input_ids"]) // 2
    loss, found = _of_batch(trainer, inputs, outputs, pairs)
    if set(trainer.loss_types) & {*COUPLED}:
        loss = torch.stack(
            [
                _of_batch(trainer, _pair(inputs, pair, pairs), _pair_of_outputs(outputs, pair, pairs), 1)[0][
                    0
                ]
                for pair in range(pairs)
            ]
        )
    return PairValues(loss, *found)


def _of_batch(
    trainer: ScheduledDPOTrainer, inputs: Inputs, outputs: Any, pairs: int
) -> tuple[Tensor, list[Tensor]]:
    """Return the losses of the pairs, [pairs], and the five other values."""
    observed = _Observed(trainer.accelerator, gathers=False)
    means = _Means(pairs, len(trainer.loss_types))
    with changed(trainer, accelerator=observed, precompute_ref_logps=True, **_quiet()), means:
        mean = trainer._compute_loss(lambda **_: outputs, inputs, False)
    _check(means, observed)
    if pairs == 1:
        loss = mean[None]
    else:
        weights = trainer.loss_weights
        loss = torch.stack([part * weight for part, weight in zip(means.found, weights, strict=True)]).sum(0)
    return loss.detach(), reorder(observed.seen)


def reorder(seen: list[Tensor]) -> list[Tensor]:
    """Return rewards, margins and log-probs of what TRL gathers: [pairs] each."""
    chosen, rejected, _accuracies, margins, *logps = (values.detach() for values in seen)
    return [chosen, rejected, margins, *logps]


def _check(means: _Means, observed: _Observed) -> None:
    if len(means.found) != means.losses or len(observed.seen) != 6:
        raise UserError(
            f"TRL's loss has {len(means.found)} means over pairs and gathers {len(observed.seen)} values of pairs, "
            f"where {means.losses} and 6 are expected",
            where="sams.trl",
            remedy="install a version of trl that this version of sams supports",
        )


def _pair(inputs: Inputs, pair: int, pairs: int) -> dict[str, Any]:
    """Return the batch of one pair; rows are [chosen, rejected]."""
    return {
        key: value[[pair]] if key.startswith("ref_") else value[[pair, pairs + pair]]
        for key, value in inputs.items()
        if isinstance(value, Tensor)
    }


def _pair_of_outputs(outputs: Any, pair: int, pairs: int) -> Any:
    return _rows_of_outputs(outputs, torch.tensor([pair, pairs + pair]))


def _rows_of_outputs(outputs: Any, rows: Tensor) -> Any:
    taken = {}
    for part in fields(outputs):
        value = getattr(outputs, part.name)
        is_of_tokens = isinstance(value, Tensor) and value.dim() > 1
        taken[part.name] = value[rows.to(value.device)] if is_of_tokens else value
    return replace(outputs, **taken)


def arguments_of(trainer: ScheduledDPOTrainer, inputs: Inputs) -> dict[str, Any]:
    """Return the keyword arguments with which TRL calls the policy for a padded batch."""

    class Called(Exception):
        """Carries the arguments out of TRL's code."""

    def stop(**arguments: Any) -> Any:
        raise Called(arguments)

    try:
        trainer._compute_loss(stop, inputs, False)
    except Called as called:
        found: dict[str, Any] = called.args[0]
        return found
    raise AssertionError("TRL's loss does not call the policy")


def plain_loss(trainer: ScheduledDPOTrainer, inputs: Inputs, call: Call) -> tuple[Tensor, list[Tensor]]:
    """Return TRL's loss of a training batch, and rewards, margins and log-probs of its pairs; logs TRL's metrics."""
    observed = _Observed(trainer.accelerator, gathers=True)
    has_reference = trainer.precompute_ref_logps or "ref_chosen_logps" in inputs
    with changed(trainer, accelerator=observed, precompute_ref_logps=has_reference):
        return trainer._compute_loss(call, inputs, False), reorder(observed.seen)


def weighted_loss(
    trainer: ScheduledDPOTrainer,
    inputs: Inputs,
    call: Call,
    *,
    weights: Tensor,
    labels: Tensor | None = None,
    beta_scales: Tensor | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """Return what `plain_loss` returns, with a weighted mean over the pairs as the loss.

    Args:
        trainer: the trainer.
        inputs: a padded batch with log-probs of the reference.
        call: the policy.
        weights, labels, beta_scales: [B], as in `Choice`.

    Raises:
        UserError: the loss is not a mean over pairs.
    """
    if coupled := [loss for loss in trainer.loss_types if loss in COUPLED]:
        raise UserError(
            f"the selector gives weights, labels or betas to pairs, and `{coupled[0]}` is not a mean over pairs",
            where="loss_type",
            remedy="choose another loss or another selector",
        )
    pairs = len(inputs["input_ids"]) // 2
    outputs = call(**arguments_of(trainer, inputs))  # outside of the modes below
    given: dict[str, Any] = {"precompute_ref_logps": True}
    if beta_scales is not None:
        given["beta"] = trainer.beta * beta_scales
    means = _Means(pairs, len(trainer.loss_types), weights if labels is None else weights * labels)
    observed = _Observed(trainer.accelerator, gathers=True)
    with changed(trainer, accelerator=observed, **given), means:
        loss: Tensor = trainer._compute_loss(lambda **_: outputs, inputs, False)
    _check(means, observed)
    if labels is not None:
        rows = torch.arange(2 * pairs).roll(pairs)
        swapped = {
            key: value[rows.to(value.device)] for key, value in inputs.items() if len(value) == 2 * pairs
        }
        swapped |= {
            "ref_chosen_logps": inputs["ref_rejected_logps"],
            "ref_rejected_logps": inputs["ref_chosen_logps"],
        }
        means = _Means(pairs, len(trainer.loss_types), weights * (1 - labels))
        again = _Observed(trainer.accelerator, gathers=False)
        with changed(trainer, accelerator=again, **given, **_quiet()), means:
            loss = loss + trainer._compute_loss(lambda **_: _rows_of_outputs(outputs, rows), swapped, False)
    return loss, reorder(observed.seen)


def _quiet() -> dict[str, Any]:
    """Return attributes of a trainer that logs nothing, and has no loss of a mixture of experts."""
    scratch: dict[str, Any] = {mode: defaultdict(list) for mode in ("train", "eval")}
    return {"_metrics": scratch, "_total_train_tokens": 0, "aux_loss_enabled": False}
