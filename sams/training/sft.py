"""Supervised fine-tuning on prompt and response.

    torchrun --standalone --nproc-per-node 8 -m sams.training.sft --recipe recipe.json \
        --tokens TOKENS --out OUT --checkpoints CHECKPOINTS

`sams recipe train_sft` prints the recipe of a study.
"""

from pathlib import Path

from transformers import AutoTokenizer

from sams.policy.model import build_model, load_model
from sams.policy.policy import Policy
from sams.scheduling.selectors import All
from sams.training.job import TrainingJob
from sams.training.loop import train
from sams.training.tasks import SftTask, read_tokens


def main(recipe: str, tokens: Path, out: Path, checkpoints: Path) -> None:
    """Train the SFT model of one seed; leaves trained/, train.jsonl and train_metrics.json in `out`."""
    from sams.recipes import SftRecipe, current_job
    from sams.stage import read_recipe

    settings = read_recipe(recipe, SftRecipe)
    with TrainingJob(
        "train_sft",
        "sams.training.sft",
        settings,
        current_job(),
        out=out,
        checkpoints=checkpoints,
        upstream={"tokens": tokens},
    ) as training_job:
        workers = training_job.workers

        tokenizer = AutoTokenizer.from_pretrained(tokens / "tokenizer")
        if settings.model.path is None:
            model = build_model(settings.model, tokenizer, settings.seed)
        else:
            model = load_model(settings.model.path, settings.model, revision=settings.model.revision)
        policy = workers.wrap(Policy(model, activation_checkpointing=settings.model.activation_checkpointing))

        figures, _ = train(
            policy,
            SftTask(read_tokens(tokens, "sft"), tokenizer.pad_token_id),
            SftTask(read_tokens(tokens, "test"), tokenizer.pad_token_id, response="chosen_ids"),
            All(),
            settings.training,
            selected=settings.training.batch_size,
            merge="",
            frozen=False,
            seed=settings.seed,
            workers=workers,
            checkpoints=training_job.checkpoints,
            open_run=training_job.open_run,
        )
        training_job.checkpoints.publish(policy, out / "trained", config=model.config)
        training_job.finish(figures)


if __name__ == "__main__":
    from sams.stage import run

    run(main)
