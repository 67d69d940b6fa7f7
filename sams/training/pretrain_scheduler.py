"""Scheduler pretraining on the SFT loss of the chosen responses, with the policy frozen (SamS Section 5).

    torchrun --standalone --nproc-per-node 8 -m sams.training.pretrain_scheduler --recipe recipe.json \
        --tokens TOKENS --model MODEL --out OUT --checkpoints CHECKPOINTS

With a moving policy the scheduler learns during SFT: see `sams.training.sft`.
"""

from pathlib import Path

from sams.policy.policy import bare
from sams.scheduling.selection import Selection
from sams.study.rounds import count_rounds
from sams.training.job import TrainingJob
from sams.training.loading import load_policy
from sams.training.loop import train
from sams.training.selector import build_selector, save_scheduler
from sams.training.tasks import SftTask, read_tokens


def main(recipe: str, tokens: Path, model: Path, out: Path, checkpoints: Path) -> None:
    """Pretrain the scheduler of one seed; leaves weights/, train.jsonl and train_metrics.json in `out`."""
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
        task = SftTask(read_tokens(tokens, "train"), response="chosen_ids")

        selection = Selection(
            training.batch_size,
            count_rounds(len(task.ids), training, "pretrain.batch_size"),
            (training.ratio,),
        )
        selector = build_selector(
            "sams",
            settings.scheduler,
            selection,
            model=bare(policy).model,
            job=job,
            train_encoder=True,
        )
        figures, _ = train(policy, task, task, selector, selection, training, updates="none", job=job)

        save_scheduler(selector, out / "weights", job)
        job.finish(figures)


if __name__ == "__main__":
    from sams.runtime.stage import run

    run(main)
