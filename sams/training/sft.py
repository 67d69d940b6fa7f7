"""Supervised fine-tuning on prompt and response.

    torchrun --standalone --nproc-per-node 8 -m sams.training.sft --recipe recipe.json \
        --tokens TOKENS --out OUT --checkpoints CHECKPOINTS

`sams recipe train_sft` prints the recipe of a study. With `watching` in it a scheduler learns beside the policy
(SamS Eq. 12 to 14), and its weights are left in `--scheduler`.
"""

from pathlib import Path

from transformers import AutoTokenizer

from sams.policy.model import build_model
from sams.policy.policy import bare
from sams.runtime.errors import UserError
from sams.scheduling.selection import Selection
from sams.study.rounds import count_rounds
from sams.training.job import TrainingJob
from sams.training.loading import load_policy, wrap
from sams.training.loop import train
from sams.training.selector import build_selector, save_scheduler
from sams.training.tasks import SftTask, read_tokens


def main(recipe: str, tokens: Path, out: Path, checkpoints: Path, scheduler: Path | None = None) -> None:
    """Train the SFT model of one seed; leaves trained/, train.jsonl and train_metrics.json in `out`."""
    from sams.runtime.stage import read_recipe
    from sams.study.recipes import SftRecipe, current_job

    settings = read_recipe(recipe, SftRecipe)
    training, watching = settings.training, settings.watching
    if (scheduler is None) != (watching is None):
        raise UserError(
            "a scheduler that watches needs a place for its weights, and only then is there one",
            where="--scheduler",
            remedy="give `watching` in the recipe and `--scheduler` together",
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
            policy = wrap(built, settings.model, job.workers, training)
        else:
            policy = load_policy(
                settings.model.path,
                settings.model,
                job.workers,
                revision=settings.model.revision,
                training=training,
            )
        task = SftTask(read_tokens(tokens, "sft"))
        test = SftTask(read_tokens(tokens, "test"), response="chosen_ids")

        selection = Selection(
            training.batch_size,
            count_rounds(len(task.ids), training, "sft.batch_size"),
            (1.0 if watching is None else watching.ratio,),
        )
        selector = build_selector(
            "all" if watching is None else "sams",
            None if watching is None else watching.scheduler,
            selection,
            model=bare(policy).model,
            job=job,
            train_encoder=True,
        )
        figures, _ = train(policy, task, test, selector, selection, training, updates="all", job=job)

        if scheduler is not None:
            save_scheduler(selector, scheduler, job)
        job.publish(policy, training)
        job.finish(figures)


if __name__ == "__main__":
    from sams.runtime.stage import run

    run(main)
