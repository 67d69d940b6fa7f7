"""Scores of a global batch: what a selector is shown of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sams.policy.blocks import blocks
from sams.runtime.errors import UserError
from sams.trl.forward import bare
from sams.trl.losses import Inputs, arguments_of, pair_values
from sams.trl.rows import NUMBER

if TYPE_CHECKING:
    from sams.trl.trainer import ScheduledDPOTrainer

VALUES = (
    *("loss", "chosen_rewards", "rejected_rewards", "margins", "chosen_logps", "rejected_logps"),
    *("reference_chosen", "reference_rejected", "chosen_tokens", "rejected_tokens"),
)


@dataclass
class Batch:
    """The candidates of an optimiser step, in the order of the sampler, equal on all processes.

    Attributes:
        numbers: [n] int64, positions of the pairs in the data.
        values: `VALUES` of each pair, [n] float32 on the CPU: tokens always, others if required.
        contexts: [n, 2, layers, width], on the device; None unless required.
    """

    numbers: Tensor
    values: dict[str, Tensor]
    contexts: Tensor | None = None


def gather_batch(
    trainer: ScheduledDPOTrainer,
    batches: list[dict[str, Tensor]],
    *,
    scores: bool,
    reference: bool,
    contexts: bool,
) -> Batch:
    """Return the candidates of a step, from the micro-batches of all processes. A collective call.

    Args:
        trainer: the trainer.
        batches: micro-batches of this process.
        scores: whether a forward pass of the policy and the values of its pairs are required.
        reference: whether log-probs under the reference are required.
        contexts: whether hidden states are required, of the same pass.
    """
    was_training = trainer.model.training
    trainer.model_wrapped.eval()
    with torch.no_grad():
        found = [
            score(trainer, inputs, policy=scores, reference=scores or reference, contexts=contexts)
            for inputs in (scored_batches(trainer, batches) if scores or reference else batches)
        ]
    trainer.model_wrapped.train(was_training)
    # In the order of the sampler, which gives micro-batch i of a pass to process i % world.
    numbers = torch.cat([inputs[NUMBER] for inputs in batches])
    rounds = torch.cat([torch.full_like(inputs[NUMBER], index) for index, inputs in enumerate(batches)])
    order = gathered(trainer, rounds).argsort(stable=True)
    values = {name: gathered(trainer, torch.cat([part[name] for part in found]))[order] for name in found[0]}
    features = values.pop("contexts", None)
    return Batch(
        gathered(trainer, numbers)[order].cpu(),
        {name: value.float().cpu() for name, value in values.items()},
        features,
    )


def gathered(trainer: ScheduledDPOTrainer, tensor: Tensor) -> Tensor:
    """Return the rows of all processes, which may have different numbers of rows. A collective call."""
    accelerator = trainer.accelerator
    if accelerator.num_processes == 1:
        return tensor
    rows = accelerator.gather(torch.tensor([len(tensor)], device=accelerator.device)).tolist()
    together = accelerator.gather(accelerator.pad_across_processes(tensor.contiguous()))
    return torch.cat([part[:count] for part, count in zip(together.split(max(rows)), rows, strict=True)])


def scored_batches(
    trainer: ScheduledDPOTrainer, batches: list[dict[str, Tensor]]
) -> Sequence[dict[str, Tensor]]:
    """Return the batches of the scoring pass: the micro-batches, or others of `scoring_batch_size` pairs."""
    size = trainer.args.scoring_batch_size
    if size is None or size == trainer.args.per_device_train_batch_size:
        return batches
    numbers = torch.cat([inputs[NUMBER] for inputs in batches]).tolist()
    return [trainer.read_rows(numbers[start : start + size]) for start in range(0, len(numbers), size)]


def score(
    trainer: ScheduledDPOTrainer, inputs: dict[str, Tensor], *, policy: bool, reference: bool, contexts: bool
) -> dict[str, Tensor]:
    """Return values of the pairs of a padded batch, each [B]: tokens, and what else is required."""
    tokens = inputs["completion_mask"][:, 1:].sum(dim=1).chunk(2)
    found = dict(zip(("chosen_tokens", "rejected_tokens"), tokens, strict=True))
    if not reference:
        return found
    inputs = {key: value for key, value in inputs.items() if key != NUMBER}
    if "ref_chosen_logps" not in inputs or not trainer.precompute_ref_logps:
        inputs |= reference_of(trainer, inputs)
    found |= {
        "reference_chosen": inputs["ref_chosen_logps"],
        "reference_rejected": inputs["ref_rejected_logps"],
    }
    if not policy:
        return found
    watched = [*blocks(bare(trainer.model_wrapped))] if contexts else []
    outputs, means = trainer.forward(trainer.model_wrapped, arguments_of(trainer, inputs), watched)
    found |= vars(pair_values(trainer, inputs, outputs))

    if means is not None:
        found["contexts"] = torch.stack(means.chunk(2), dim=1)
    return found


def reference_of(trainer: ScheduledDPOTrainer, inputs: Inputs) -> dict[str, Tensor]:
    """Return the log-probs of a padded batch under the reference, as its collator's keys: [B] each."""
    model = trainer.ref_model or trainer.model
    known = {key: value for key, value in inputs.items() if key != NUMBER}

    def call(**arguments: Any) -> Any:
        return trainer.forward(model, arguments)[0]

    chosen, rejected = trainer.compute_ref_log_probs(call, known)
    return {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected}


def refuse_non_finite(batch: Batch, ids: Sequence[str], step: int) -> None:
    """Stop on a loss that is not finite, which selectors cannot order. All processes have all losses.

    Raises:
        UserError: naming the step, the pairs and their losses.
    """
    losses = batch.values["loss"].tolist()
    wrong = [f"{name} ({loss})" for name, loss in zip(ids, losses, strict=True) if not math.isfinite(loss)]
    if wrong:
        raise UserError(
            f"the loss of {len(wrong)} of {len(losses)} pairs is not finite: {', '.join(wrong[:5])}",
            where=f"step {step}",
            remedy="look at these pairs, lower the learning rate, or use bf16=False",
        )
