"""Scheduler pretraining on the SFT loss of the chosen responses, with the policy frozen (SamS Section 5).

    torchrun --standalone --nproc-per-node 8 -m sams.training.pretrain_scheduler --recipe recipe.json \
        --tokens TOKENS --model MODEL --out OUT --checkpoints CHECKPOINTS

A scheduler can learn during SFT too, from a policy that moves: see `sams.training.sft`.
"""

from pathlib import Path

from sams.scheduling.rounds import count_rounds
from sams.training.batches import Batches
from sams.training.job import TrainingJob
from sams.training.loading import load_policy
from sams.training.loop import train
from sams.training.tasks.base import read_tokens
from sams.training.updates import Frozen
from sams.training.watching import WatchedTask, Watching


def main(recipe: str, tokens: Path, model: Path, out: Path, checkpoints: Path) -> None:
    """Pretrain the scheduler of one seed; write weights/, train.jsonl and train_metrics.json to `out`."""
    from sams.runtime.stage import read_recipe
    from sams.study.recipes import PretrainRecipe, current_job

    settings = read_recipe(recipe, PretrainRecipe)
    training = settings.training
    with TrainingJob(
        "pretrain_scheduler",
        settings,
        current_job(),
        out=out,
        checkpoints=checkpoints,
        upstream={"tokens": tokens, "model": model},
    ) as job:
        policy = load_policy(model, settings.model, job.workers)
        task = WatchedTask(read_tokens(tokens, "train"), response="chosen_ids")
        batches = Batches(
            len(task.ids),
            training.batch_size,
            training.epochs,
            steps=count_rounds(len(task.ids), training, "pretrain.batch_size"),
            seed=settings.seed,
        )
        watching = Watching(
            settings.scheduler,
            task,
            batches,
            ratio=training.ratio,
            policy=policy,
            job=job,
        )
        figures, _ = train(job, policy, task, batches, Frozen(), selecting=watching)

        watching.save(out / "weights", job)
        job.finish(figures)


if __name__ == "__main__":
    from sams.runtime.stage import run

    run(main)
