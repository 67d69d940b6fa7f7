"""Updates of the policy in a step: one AdamW step on the chosen items or on the batch, or none."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from transformers.trainer_pt_utils import get_parameter_names

from sams.training.distribution import Workers, reshard
from sams.training.gates import refuse_non_finite
from sams.training.passes import Passes
from sams.training.tasks.base import Items, Task

if TYPE_CHECKING:
    from sams.scheduling.selectors.base import Choice
    from sams.study.settings import Training

# Names of weights that do not decay, as in transformers' `Trainer.get_decay_parameter_names`.
NO_DECAY = [r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]


@dataclass
class Step:
    """One step of a run.

    Attributes:
        number: counted from 1.
        batch: items of the global batch.
        kl: KL term of the batch; None for a loss without one.
        chosen: positions in the batch that the selector chose.
        choice: weights, labels and scales of beta of the chosen items; None for the plain mean.
        seen: values of all items of the batch before the update; empty if they were not scored.
        trained: items that the policy was trained on.
        metrics: figures of the step, for the log; tensors stay on their device until the step is logged.
    """

    number: int
    batch: list[int]
    kl: Tensor | None
    chosen: list[int]
    choice: Choice | None = None
    seen: Items = field(default_factory=dict)
    trained: list[int] = field(default_factory=list)
    metrics: dict[str, float | Tensor] = field(default_factory=dict)

    @property
    def chosen_items(self) -> list[int]:
        """Items that the selector chose."""
        return [self.batch[position] for position in self.chosen]


class Update(Protocol):
    """The policy's part of a step."""

    @property
    def optimiser(self) -> torch.optim.Optimizer | None:
        """Optimiser, saved in every checkpoint; None for a frozen policy."""
        ...

    def most_items(self, batch: int, selected: int) -> int:
        """Most items of a step that are trained on, of a batch of which at most `selected` are selected."""
        ...

    def __call__(self, passes: Passes, task: Task, step: Step) -> Items:
        """Update the policy; return the values of the items that the step's log line reports."""
        ...


class Frozen:
    """No update: the policy stays as it is, and the scored values of the chosen items are reported."""

    optimiser = None

    def most_items(self, batch: int, selected: int) -> int:
        return 0

    def __call__(self, passes: Passes, task: Task, step: Step) -> Items:
        return {name: values[step.chosen] for name, values in step.seen.items()}


class AdamWStep:
    """One AdamW step, on the chosen items or on the complete batch.

    Args:
        policy: wrapped by the workers.
        training: learning rate and its schedule, weight decay, clipping.
        workers: the processes.
        steps: number of steps of the run.
        complete_batch: train on the complete batch, whatever the selector chooses.
    """

    def __init__(
        self,
        policy: nn.Module,
        training: Training,
        workers: Workers,
        steps: int,
        *,
        complete_batch: bool = False,
    ) -> None:
        self.training = training
        self.steps = steps
        self.complete_batch = complete_batch
        self.optimiser: torch.optim.Optimizer = adamw(policy, training, workers)

    def most_items(self, batch: int, selected: int) -> int:
        return batch if self.complete_batch else selected

    def __call__(self, passes: Passes, task: Task, step: Step) -> Items:
        workers, rate = passes.workers, learning_rate(step.number, self.steps, self.training)
        step.trained = step.batch if self.complete_batch else step.chosen_items
        workers.watch.at("training pass")
        self.optimiser.zero_grad()
        choice = None if self.complete_batch else step.choice
        items = passes.gradient(task, step.trained, step.kl, choice)
        refuse_non_finite(items, step.trained, task, step.number)
        workers.watch.at("optimiser")
        norm = workers.clip(passes.policy, self.training.max_grad_norm, self.optimiser)
        step.metrics |= {"grad_norm": norm, "learning_rate": rate}
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.step()
        return items


def adamw(policy: nn.Module, training: Training, workers: Workers) -> torch.optim.AdamW:
    """AdamW over the float32 master weights; biases and weights of norms do not decay.

    A step discards the bfloat16 weights that were made from the old ones, and the scale of the gradients.
    """
    reshard(policy)
    fused = workers.device.type == "cuda"
    groups = decay_groups(policy, training.weight_decay)
    optimiser = torch.optim.AdamW(groups, lr=training.learning_rate, fused=fused)

    def discard(optimiser: torch.optim.Optimizer, *_: Any) -> None:
        reshard(policy)
        vars(optimiser).pop("grad_scale", None)

    optimiser.register_step_post_hook(discard)
    return optimiser


def decay_groups(policy: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return AdamW's parameter groups: trained weights that decay, and those that do not.

    As with transformers' `Trainer`, biases and the weights of normalisation layers do not decay.
    """
    decaying = set(get_parameter_names(policy, [nn.LayerNorm], NO_DECAY))
    trained = [(name, weight) for name, weight in policy.named_parameters() if weight.requires_grad]
    groups = [
        {"params": [weight for name, weight in trained if name in decaying], "weight_decay": weight_decay},
        {"params": [weight for name, weight in trained if name not in decaying], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def learning_rate(step: int, steps: int, training: Training) -> float:
    """Learning rate of a step counted from 1: linear warm-up from 0, then constant, linear or cosine to 0.

    The rates are those of transformers' `get_scheduler`: the first step of a warm-up has rate 0.
    """
    done, warmup = step - 1, math.ceil(training.warmup_ratio * steps)
    if done < warmup:
        return training.learning_rate * done / warmup
    remaining = (steps - done) / max(1, steps - warmup)
    if training.schedule == "linear":
        return training.learning_rate * remaining
    if training.schedule == "cosine":
        return training.learning_rate * (1 - math.cos(math.pi * remaining)) / 2
    return training.learning_rate
