"""Checks before and during training that stop a run on all processes with a message."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from sams.runtime.errors import UserError
from sams.training.tasks.base import Items, Scored

if TYPE_CHECKING:
    from sams.training.tasks.preference import PreferenceTask


class TrainingFailure(UserError):
    """A failure that a retry with the same settings, code and data would repeat."""


# TOLERANCE: largest mean log-ratio per token, due to rounding, between a policy and its own cached log-probs.
# OUTLIER: factor for a single pair.
# NOISE: standard deviation of the rounding of a token's log-prob, which differs between layouts of rows and between
# tokens: measured on SmolLM2-135M (docs/real_model.md). In float32 it is far below the tolerance.
TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-3}
OUTLIER = 20
NOISE = {"float32": 0.0, "bfloat16": 0.05}


def allowed(precision: str, tokens: float, *, outlier: bool = False) -> float:
    """Return the largest log-ratio per token that rounding explains: a bias, and six deviations of so many tokens."""
    bias = (OUTLIER if outlier else 1) * TOLERANCE[precision]
    return bias + 6 * NOISE[precision] / math.sqrt(tokens)


def refuse_foreign_reference(
    task: PreferenceTask, items: list[int], values: Items, *, precision: str
) -> None:
    """Check before the first step that the policy agrees with the cached reference log-probs of the same model.

    Args:
        task: the training pairs with their reference.
        items: the first global batch.
        values: values of these items under the policy, with `logps/chosen` and `logps/rejected`.
        precision: compute type.

    Raises:
        TrainingFailure: naming the mean and the worst pair.
    """
    assert task.reference is not None
    tokens = torch.tensor(
        [[task.chosen_tokens[item], task.rejected_tokens[item]] for item in items], dtype=torch.float64
    )
    logps = torch.stack([values["logps/chosen"], values["logps/rejected"]], dim=1).double()
    ratios = logps - task.reference[items, :2].double()
    mean = (ratios.sum() / tokens.sum()).item()
    limit = allowed(precision, tokens.sum().item())
    each = (ratios / tokens).abs().flatten()
    limits = torch.tensor([allowed(precision, count, outlier=True) for count in tokens.flatten().tolist()])
    worst = int((each / limits).argmax())
    if not (abs(mean) <= limit and each[worst] <= limits[worst]):
        raise TrainingFailure(
            f"the policy disagrees with the cached reference log-probs it starts from: log-ratio per token "
            f"{mean:.2e} in the mean (allowed {limit:.0e}), {each[worst]:.2e} for pair "
            f"{task.ids[items[worst // 2]]} (allowed {limits[worst]:.0e})",
            where="step 1",
            remedy="precision, attention kernel, template and truncation must be those of the reference stage: "
            "delete the reference folder and run `compute_reference` again",
        )


def refuse_non_finite(values: Items, items: list[int], task: Scored, step: int) -> None:
    """Stop on a loss that is not finite. Every process has all losses, so all stop together.

    Raises:
        TrainingFailure: naming the step, the items and their values.
    """
    losses = values["loss"].tolist()
    wrong = [(item, loss) for item, loss in zip(items, losses, strict=True) if not math.isfinite(loss)]
    if wrong:
        named = ", ".join(f"{task.ids[item]} ({loss})" for item, loss in wrong[:5])
        raise TrainingFailure(
            f"the loss of {len(wrong)} of {len(items)} items is not finite: {named}",
            where=f"step {step}",
            remedy="look at these items, lower the learning rate, or use precision float32",
        )
