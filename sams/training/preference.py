"""Preference optimisation: a loss, and a selector that chooses the pairs to train on.

    torchrun --standalone --nproc-per-node 8 -m sams.training.preference --recipe recipe.json \
        --tokens TOKENS --model MODEL --reference REFERENCE --scheduler SCHEDULER \
        --out OUT --checkpoints CHECKPOINTS

`sams recipe train_preference --method dpo-sams` prints the recipe of a study's method. `--reference` is not given for
a loss without a reference. Only selector `sams` reads `--scheduler`; without it the scheduler starts untrained. Only
`selective` reads `--crossfit` (once per half of the data): see `sams.training.crossfit`.
"""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from sams.policy.policy import bare
from sams.runtime.errors import UserError
from sams.runtime.files import read_json
from sams.scheduling.rounds import selection_of
from sams.scheduling.selection import Selection
from sams.training.batches import Batches
from sams.training.crossfit_losses import easiest_first, read_losses
from sams.training.gates import refuse_foreign_reference
from sams.training.job import METRICS, TrainingJob, mean_and_error
from sams.training.loading import load_policy
from sams.training.loop import Reports, Selecting, train
from sams.training.pairs import PairLog
from sams.training.results import EVALUATED, evaluated_at
from sams.training.selector import build_selector
from sams.training.tasks.base import Items
from sams.training.tasks.preference import PreferenceTask, read_task
from sams.training.updates import AdamWStep

if TYPE_CHECKING:
    from torch import nn

    from sams.study.settings import Preference


def main(
    recipe: str,
    tokens: Path,
    model: Path,
    out: Path,
    checkpoints: Path,
    reference: Path | None = None,
    scheduler: Path | None = None,
    crossfit: list[Path] | None = None,
) -> None:
    """Train one method with one seed; write trained/, train.jsonl, pairs.parquet and train_metrics.json to `out`.

    With `validated` also write the weights of each evaluation to evaluated/.
    """
    from sams.runtime.stage import read_recipe
    from sams.study.recipes import PreferenceRecipe, current_job

    settings = read_recipe(recipe, PreferenceRecipe)
    training = settings.training
    upstream = {"tokens": tokens, "model": model}
    if reference is not None:
        upstream["reference"] = reference
    if scheduler is not None:
        upstream["scheduler"] = scheduler
    for number, half in enumerate(crossfit or []):
        upstream[f"crossfit{number}"] = half
    with TrainingJob(
        "train_preference",
        settings,
        current_job(),
        out=out,
        checkpoints=checkpoints,
        upstream=upstream,
    ) as job:
        is_own = starts_from(reference, job.upstream["model"], training)
        policy = load_policy(model, settings.model, job.workers, training=training, seed=settings.seed)
        splits = ("train", training.evaluated_split)
        task, test = (
            read_task(tokens, reference, split, training, precision=settings.model.precision)
            for split in splits
        )

        order = None
        if training.preselected is not None:
            order = easiest_first(task.ids, read_losses(crossfit or []), training.preselected)
        batches, selection = plan(task, training, order, settings.seed)
        selector = build_selector(
            training.selector,
            settings.scheduler,
            selection,
            task=task,
            own=training.selector_settings,
            beta=training.beta,
            model=bare(policy).model,
            job=job,
            pretrained=scheduler,
        )
        reports = Reports(test, followed=training.followed_pairs)
        if job.workers.is_main:
            reports.pairs = PairLog(
                job.checkpoints.folder,
                task,
                test,
                test_split=training.evaluated_split,
                epoch=batches.per_epoch,
            )
        if training.validated:
            reports.evaluated = partial(save_weights, job, policy, training)
            if job.workers.is_main and not job.checkpoints.steps():
                shutil.rmtree(out / EVALUATED, ignore_errors=True)
        gate = None
        if is_own:
            gate = partial(refuse_foreign_reference, task, precision=settings.model.precision)

        figures, evaluation = train(
            job,
            policy,
            task,
            batches,
            AdamWStep(policy, training, job.workers, batches.steps),
            selecting=Selecting(selector, task, selection, batches.per_epoch),
            reports=reports,
            gate=gate,
        )
        if reports.pairs is not None:
            reports.pairs.write(out)
        job.publish(policy, training)
        prepared = [*(crossfit or []), *([] if scheduler is None else [scheduler])]
        figures["preparation_seconds"] = sum(seconds_of(folder) for folder in prepared)
        job.finish(figures | final_figures(evaluation, training.evaluated_split))


def plan(
    task: PreferenceTask, training: Preference, order: list[int] | None, seed: int
) -> tuple[Batches, Selection]:
    """Return the batches and the selection of a run: of all pairs, or of those in `order`.

    Raises:
        UserError: when the data does not fill a batch, or a run is too short for its ratios.
    """
    items = len(task.ids) if order is None else order
    selection = selection_of(training, len(task.ids if order is None else order))
    return Batches(items, selection.batch_size, training.epochs, selection.rounds, seed), selection


def starts_from(reference: Path | None, model: str, training: Preference) -> bool:
    """Return whether the loss has a reference, and it is the model with this digest, which training starts from.

    Raises:
        UserError: it is another model, and the settings do not allow that.
    """
    if reference is None or not training.needs_reference:
        return False
    own = bool(read_json(reference / "manifest.json").get("upstream", {}).get("model") == model)
    if not own and not training.other_reference:
        raise UserError(
            f"these reference log-probs are not of the model with digest {model}, which training starts from",
            where=str(reference),
            remedy="run `compute_reference` with that model; if another one is meant, set other_reference: true",
        )
    return own


def save_weights(job: TrainingJob, policy: nn.Module, training: Preference, step: int) -> None:
    """Write the weights that were just evaluated, next to those of earlier evaluations."""
    job.publish(policy, training, evaluated_at(step))


def seconds_of(prepared: Path) -> float:
    """Training seconds of a stage that prepared the selection: they count as cost of the method."""
    for folder in (prepared, prepared.parent):
        if (folder / METRICS).is_file():
            return float(read_json(folder / METRICS)["train_seconds"])
    return 0.0


def final_figures(evaluation: Items, split: str) -> dict[str, float]:
    """Figures of the trained policy on the evaluated split for the tables, with standard errors over its pairs."""
    figures = {}
    for name, values in (
        (f"{split}_accuracy", 100 * evaluation["rewards/accuracies"]),
        ("chosen_reward", evaluation["rewards/chosen"]),
        ("chosen_logp", evaluation["logps/chosen"]),
    ):
        figures[name], figures[f"{name}_se_items"] = mean_and_error(values)
    return figures


if __name__ == "__main__":
    from sams.runtime.stage import run

    run(main)
