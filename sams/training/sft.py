"""Supervised fine-tuning on prompt and response.

    torchrun --standalone --nproc-per-node 8 -m sams.training.sft --recipe recipe.json \
        --tokens TOKENS --out OUT --checkpoints CHECKPOINTS

`sams recipe train_sft` prints the recipe of a study. With `watching` in the recipe, a scheduler learns from the same
batches (SamS Eq. 12 to 14), and its weights are written to `--scheduler`.
"""

from importlib import import_module
from pathlib import Path

from transformers import AutoTokenizer

from sams.policy.model import build_model
from sams.runtime.errors import UserError
from sams.scheduling.rounds import count_rounds
from sams.training.batches import Batches
from sams.training.job import TrainingJob
from sams.training.loading import load_policy, wrap
from sams.training.loop import Reports, train
from sams.training.tasks.base import read_tokens
from sams.training.tasks.sft import SftTask
from sams.training.updates import AdamWStep


def main(recipe: str, tokens: Path, out: Path, checkpoints: Path, scheduler: Path | None = None) -> None:
    """Train the SFT model of one seed; write trained/, train.jsonl and train_metrics.json to `out`."""
    from sams.runtime.stage import read_recipe
    from sams.study.code import WATCHING
    from sams.study.recipes import SftRecipe, current_job

    settings = read_recipe(recipe, SftRecipe)
    training, watching = settings.training, settings.watching
    if (scheduler is None) != (watching is None):
        raise UserError(
            "only one of `watching` and `--scheduler` is given",
            where="--scheduler",
            remedy="set `watching` in the recipe and give `--scheduler`, or neither",
        )
    with TrainingJob(
        "train_sft",
        settings,
        current_job(),
        out=out,
        checkpoints=checkpoints,
        upstream={"tokens": tokens},
    ) as job:
        if settings.model.path is None:
            tokenizer = AutoTokenizer.from_pretrained(tokens / "tokenizer", trust_remote_code=False)
            built = build_model(settings.model, tokenizer, settings.seed)
            policy = wrap(built, settings.model, job.workers, training, settings.seed)
        else:
            policy = load_policy(
                settings.model.path,
                settings.model,
                job.workers,
                revision=settings.model.revision,
                training=training,
                seed=settings.seed,
            )
        data, test = read_tokens(tokens, "sft"), SftTask(read_tokens(tokens, "test"), response="chosen_ids")
        steps = count_rounds(len(data["id"]), training, "sft.batch_size")
        batches = Batches(
            len(data["id"]), training.batch_size, training.epochs, steps=steps, seed=settings.seed
        )
        task, watch = SftTask(data), None
        if watching is not None:
            module = import_module(WATCHING)
            task = module.WatchedTask(data)
            watch = module.Watching(
                watching.scheduler, task, batches, ratio=watching.ratio, policy=policy, job=job
            )
        update = AdamWStep(policy, training, job.workers, steps, complete_batch=True)
        figures, _ = train(job, policy, task, batches, update, selecting=watch, reports=Reports(test=test))

        if watch is not None:
            watch.save(scheduler, job)
        job.publish(policy, training)
        job.finish(figures)


if __name__ == "__main__":
    from sams.runtime.stage import run

    run(main)
