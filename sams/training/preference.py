"""Preference optimisation: a loss, and a selector that chooses whom to train on.

    torchrun --standalone --nproc-per-node 8 -m sams.training.preference --recipe recipe.json \
        --tokens TOKENS --model MODEL --reference REFERENCE --scheduler SCHEDULER \
        --out OUT --checkpoints CHECKPOINTS

`sams recipe train_preference --method dpo-sams` prints the recipe of a study's method. Only selector `sams`
reads `--scheduler`; without it the scheduler starts untrained.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import AutoTokenizer, PreTrainedModel

from sams.policy.model import blocks, load_model
from sams.policy.policy import Policy
from sams.scheduling.scheduler import Scheduler, context_width
from sams.scheduling.selectors import All, Random, Sams, Selector
from sams.training.batches import count_rounds
from sams.training.distribution import Workers
from sams.training.job import TrainingJob, mean_and_error
from sams.training.loop import train
from sams.training.tasks import Items, PreferenceTask, read_reference, read_tokens

if TYPE_CHECKING:
    from sams.recipes import PreferenceRecipe


def main(
    recipe: str,
    tokens: Path,
    model: Path,
    reference: Path,
    out: Path,
    checkpoints: Path,
    scheduler: Path | None = None,
) -> None:
    """Train one method with one seed; leaves trained/, train.jsonl and train_metrics.json in `out`."""
    from sams.recipes import PreferenceRecipe, current_job
    from sams.stage import read_recipe

    settings = read_recipe(recipe, PreferenceRecipe)
    upstream = {"tokens": tokens, "model": model, "reference": reference}
    if scheduler is not None:
        upstream["scheduler"] = scheduler
    with TrainingJob(
        "train_preference",
        "sams.training.preference",
        settings,
        current_job(),
        out=out,
        checkpoints=checkpoints,
        upstream=upstream,
    ) as training_job:
        workers = training_job.workers
        training = settings.training

        pad = AutoTokenizer.from_pretrained(tokens / "tokenizer").pad_token_id
        loaded = load_model(model, settings.model)
        policy = workers.wrap(
            Policy(loaded, activation_checkpointing=settings.model.activation_checkpointing)
        )
        train_task, test_task = (
            read_task(tokens, reference, split, settings, pad) for split in ("train", "test")
        )
        selector = build_selector(settings, loaded, len(train_task.ids), scheduler, workers)

        figures, evaluated = train(
            policy,
            train_task,
            test_task,
            selector,
            training,
            selected=training.selected,
            merge=settings.scheduler.merge if settings.scheduler else "",
            frozen=False,
            seed=settings.seed,
            workers=workers,
            checkpoints=training_job.checkpoints,
            open_run=training_job.open_run,
        )
        training_job.checkpoints.publish(policy, out / "trained", config=loaded.config)
        training_job.finish(figures | final_figures(evaluated))


def read_task(
    tokens: Path, reference: Path, split: str, settings: PreferenceRecipe, pad: int
) -> PreferenceTask:
    """One split of the pairs with its cached reference log-probs."""
    data = read_tokens(tokens, split)
    cached = read_reference(reference, split, data["id"])
    return PreferenceTask(
        data, pad, reference=cached, loss=settings.training.loss, beta=settings.training.beta
    )


def build_selector(
    settings: PreferenceRecipe, model: PreTrainedModel, pairs: int, pretrained: Path | None, workers: Workers
) -> Selector:
    """The selector that the recipe names."""
    training = settings.training
    if training.selector == "all":
        return All()
    if training.selector == "random":
        return Random(settings.seed)
    assert settings.scheduler is not None
    scheduler = Scheduler(
        settings.scheduler,
        layers=len(blocks(model)),
        width=context_width(model.config.hidden_size, settings.scheduler.merge),
        seed=settings.seed,
        device=workers.device,
        train_encoder=False,
        rounds=count_rounds(
            pairs, training.batch_size, training.epochs, training.max_steps, "preference.batch_size"
        ),
        arms_per_round=training.selected,
    )
    if pretrained is not None:
        scheduler.load_weights(torch.load(pretrained / "scheduler.pt", map_location="cpu", weights_only=True))
    return Sams(scheduler, gamma=settings.scheduler.gamma, seed=settings.seed, trained=pretrained is not None)


def final_figures(found: Items) -> dict[str, float]:
    """What a table says of the trained policy on the test split, with standard errors over its pairs."""
    figures = {}
    for name, values in (
        ("test_accuracy", 100 * found["rewards/accuracies"]),
        ("chosen_reward", found["rewards/chosen"]),
        ("chosen_logp", found["logps/chosen"]),
    ):
        figures[name], figures[f"{name}_se_items"] = mean_and_error(values)
    return figures


if __name__ == "__main__":
    from sams.stage import run

    run(main)
