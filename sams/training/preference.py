"""Preference optimisation: a loss, and a selector that chooses whom to train on.

    torchrun --standalone --nproc-per-node 8 -m sams.training.preference --recipe recipe.json \
        --tokens TOKENS --model MODEL --reference REFERENCE --scheduler SCHEDULER \
        --out OUT --checkpoints CHECKPOINTS

`sams recipe train_preference --method dpo-sams` prints the recipe of a study's method. `--reference` is left
out for a loss without one. Only selector `sams` reads `--scheduler`; without it the scheduler starts untrained.
Only `selective` reads `--crossfit` (once per half of the data): see `sams.training.crossfit`.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sams.data.records import is_flipped
from sams.data.tokens import Swapped
from sams.losses.table import build_loss
from sams.policy.policy import bare
from sams.runtime.errors import UserError
from sams.runtime.files import read_json, whole_file
from sams.study.rounds import selection_of
from sams.training.crossfit_losses import easiest_first, read_losses
from sams.training.gates import refuse_foreign_reference
from sams.training.job import METRICS, TrainingJob, mean_and_error
from sams.training.loading import load_policy
from sams.training.loop import train
from sams.training.passes import score
from sams.training.selector import build_selector
from sams.training.tasks import Items, PreferenceTask, Scored, read_reference, read_tokens

if TYPE_CHECKING:
    from torch import nn

    from sams.study.recipes import PreferenceRecipe
    from sams.study.settings import Preference

LABELS = "labels.parquet"
EVALUATED = "evaluated"


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
    """Train one method with one seed; leaves trained/, train.jsonl and train_metrics.json in `out`.

    Under controlled noise (`flipped_share`) it leaves labels.parquet too, and with `validated` the weights of each
    evaluation in evaluated/.
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
        policy = load_policy(model, settings.model, job.workers, training=training)
        splits = ("train", training.evaluated_split)
        task, test = (read_task(tokens, reference, split, settings) for split in splits)
        if training.flipped_share and job.workers.is_main:
            write_labels(task, out)

        order = None
        if training.preselected is not None:
            order = easiest_first(task.ids, read_losses(crossfit or []), training.preselected)
        selection = selection_of(training, len(task.ids if order is None else order))
        selector = build_selector(
            training.selector,
            settings.scheduler,
            selection,
            model=bare(policy).model,
            job=job,
            pretrained=scheduler,
        )
        keep = None
        if training.validated:
            keep = partial(keep_weights, job, policy, training)
            if job.workers.is_main and not job.checkpoints.steps():
                shutil.rmtree(out / EVALUATED, ignore_errors=True)
        gate = None
        if reference is not None and starts_from(reference, job.upstream["model"]):
            gate = partial(refuse_foreign_reference, task, precision=settings.model.precision)

        figures, evaluated = train(
            policy,
            task,
            test,
            selector,
            selection,
            training,
            updates="selected",
            job=job,
            order=order,
            gate=gate,
            followed=training.followed_pairs,
            keep=keep,
        )
        job.publish(policy, training)
        prepared = [*(crossfit or []), *([] if scheduler is None else [scheduler])]
        figures["preparation_seconds"] = sum(seconds_of(folder) for folder in prepared)
        job.finish(figures | final_figures(evaluated, training.evaluated_split))


def read_task(tokens: Path, reference: Path | None, split: str, settings: PreferenceRecipe) -> PreferenceTask:
    """One split of the pairs, with its cached reference log-probs where the loss needs them.

    Raises:
        UserError: when they are not given.
    """
    training = settings.training
    loss = build_loss(
        training.loss, beta=training.beta, settings=training.loss_settings, sft_weight=training.sft_weight
    )
    data = read_tokens(tokens, split)
    if split == "test" and len(data["id"]) < 2:
        raise UserError(
            "one test pair has no standard error", where=f"{tokens}/test", remedy="give two or more"
        )
    flipped = flip(data, training) if split != "test" else set()
    if not loss.needs_reference:
        return PreferenceTask(data, loss=loss, reference=None)
    if reference is None:
        raise UserError(
            f"loss {training.loss} needs reference log-probs",
            where="--reference",
            remedy="give the folder that `sams.training.reference` wrote",
        )
    cached = read_reference(reference, split, data["id"])
    for pair in flipped:
        chosen, rejected, *mismatched = cached[pair]
        cached[pair] = (rejected, chosen, *mismatched)
    return PreferenceTask(data, loss=loss, reference=cached)


def flip(data: dict[str, Sequence[Any]], training: Preference) -> set[str]:
    """Swap the labels of the set share of the pairs in these columns, and flag every pair as flipped or not.

    This is done here and not in the data, so that methods under different noise share their data, tokens, SFT
    model and reference log-probs. A pair keeps its id. One whose labels the data knows to be flipped, and that is
    drawn again, is clean.

    Returns:
        Ids of the pairs that were swapped.
    """
    if not training.flipped_share:
        return set()
    drawn = [is_flipped(pair, training.flipped_share, training.flip_seed) for pair in data["id"]]
    data["flipped"] = [swap != bool(known) for swap, known in zip(drawn, data["flipped"], strict=True)]
    chosen, rejected = data["chosen_ids"], data["rejected_ids"]
    data["chosen_ids"] = Swapped(chosen, rejected, drawn)
    data["rejected_ids"] = Swapped(rejected, chosen, drawn)
    return {pair for pair, swap in zip(data["id"], drawn, strict=True) if swap}


def write_labels(task: PreferenceTask, out: Path) -> None:
    """Write labels.parquet: of every training pair, whether its labels are flipped."""
    import pyarrow as pa
    from pyarrow import parquet

    with whole_file(out / LABELS) as part:
        parquet.write_table(pa.table({"id": task.ids, "flipped": task.flipped}), part)


def starts_from(reference: Path, model: str) -> bool:
    """Whether the reference model is the very model that training starts from."""
    return bool(read_json(reference / "manifest.json").get("upstream", {}).get("model") == model)


def score_all(policy: nn.Module, task: PreferenceTask, items: list[int], job: TrainingJob) -> Items:
    """What the policy says of pairs after the loop."""
    assert job.tuning is not None
    micro_batch = job.tuning.scoring_micro_batch

    def scored(asked: Scored, places: list[int]) -> Items:
        return score(policy, asked, places, job.workers, micro_batch)[0]

    task.begin(items, scored)
    return scored(task, items)


def keep_weights(job: TrainingJob, policy: nn.Module, training: Preference, step: int) -> None:
    """Write the weights that were just evaluated, beside those of earlier evaluations."""
    job.publish(policy, training, evaluated_at(step))


def evaluated_at(step: int) -> str:
    """Where the weights of the evaluation at this step are, below the folder of the run."""
    return f"{EVALUATED}/step{step:06d}"


def seconds_of(prepared: Path) -> float:
    """Training seconds of a stage that prepared the selection: the cost of a method is not its last job's alone."""
    for folder in (prepared, prepared.parent):
        if (folder / METRICS).is_file():
            return float(read_json(folder / METRICS)["train_seconds"])
    return 0.0


def final_figures(found: Items, split: str) -> dict[str, float]:
    """What a table says of the trained policy on the evaluated split, with standard errors over its pairs."""
    figures = {}
    for name, values in (
        (f"{split}_accuracy", 100 * found["rewards/accuracies"]),
        ("chosen_reward", found["rewards/chosen"]),
        ("chosen_logp", found["logps/chosen"]),
    ):
        figures[name], figures[f"{name}_se_items"] = mean_and_error(values)
    return figures


if __name__ == "__main__":
    from sams.runtime.stage import run

    run(main)
