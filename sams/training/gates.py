"""Gates: what must hold before and while a run trains, or it stops on all processes and says why."""

import math

import torch

from sams.runtime.errors import UserError
from sams.training.tasks import Items, PreferenceTask, Task


class TrainingFailure(UserError):
    """A failure that the same settings, code and data would meet again: a retry is in vain."""


# Mean log-ratio per token that honest rounding leaves between a policy and the cache of its own log-probs, and
# how many times that a single pair may be off. float32 was measured (docs/correctness.md), bfloat16 awaits a GPU.
TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-3}
OUTLIER = 20


def refuse_foreign_reference(task: PreferenceTask, items: list[int], found: Items, *, precision: str) -> None:
    """See, before the first step, that the policy agrees with the cached reference it starts from.

    Args:
        task: the training pairs with their reference.
        items: the first global batch.
        found: what the policy says of it; needs `logps/chosen` and `logps/rejected`.
        precision: compute type.

    Raises:
        TrainingFailure: naming the mean and the worst pair.
    """
    assert task.reference is not None
    tokens = torch.tensor(
        [[task.chosen_tokens[item], task.rejected_tokens[item]] for item in items], dtype=torch.float64
    )
    logps = torch.stack([found["logps/chosen"], found["logps/rejected"]], dim=1).double()
    ratios = logps - task.reference[items, :2].double()
    mean = (ratios.sum() / tokens.sum()).item()
    each = (ratios / tokens).abs().amax(dim=1)
    worst = int(each.argmax())
    limit = TOLERANCE[precision]
    if not (abs(mean) <= limit and each[worst].item() <= OUTLIER * limit):
        raise TrainingFailure(
            f"the policy disagrees with the cached reference log-probs it starts from: log-ratio per token "
            f"{mean:.2e} in the mean (allowed {limit:.0e}), {each[worst].item():.2e} for pair "
            f"{task.ids[items[worst]]} (allowed {OUTLIER * limit:.0e})",
            where="step 1",
            remedy="precision, attention kernel, template and truncation must be those of the reference stage: "
            "delete the reference folder and run `compute_reference` again",
        )


def refuse_non_finite(items: Items, chosen: list[int], task: Task, step: int) -> None:
    """Stop on a loss that is not finite. Every process holds all losses, so all stop together.

    Raises:
        TrainingFailure: naming the step, the items and their values.
    """
    wrong = [place for place, loss in enumerate(items["loss"].tolist()) if not math.isfinite(loss)]
    if wrong:
        named = ", ".join(f"{task.ids[chosen[place]]} ({items['loss'][place].item()})" for place in wrong[:5])
        raise TrainingFailure(
            f"the loss of {len(wrong)} of {len(chosen)} items is not finite: {named}",
            where=f"step {step}",
            remedy="look at these items, lower the learning rate, or use precision float32",
        )
