"""Scheduler pretraining on the SFT loss of the chosen responses, with the policy frozen (SamS Section 5).

    torchrun --standalone --nproc-per-node 8 -m sams.training.pretrain_scheduler --recipe recipe.json \
        --tokens TOKENS --model MODEL --out OUT --checkpoints CHECKPOINTS
"""

from pathlib import Path

import torch
from transformers import AutoTokenizer

from sams.files import whole_folder
from sams.policy.model import blocks, load_model
from sams.policy.policy import Policy
from sams.scheduling.scheduler import Scheduler, context_width
from sams.scheduling.selectors import Sams
from sams.training.batches import count_rounds
from sams.training.job import TrainingJob
from sams.training.loop import train
from sams.training.tasks import SftTask, read_tokens


def main(recipe: str, tokens: Path, model: Path, out: Path, checkpoints: Path) -> None:
    """Pretrain the scheduler of one seed; leaves weights/, train.jsonl and train_metrics.json in `out`."""
    from sams.recipes import PretrainRecipe, current_job
    from sams.stage import read_recipe

    settings = read_recipe(recipe, PretrainRecipe)
    with TrainingJob(
        "pretrain_scheduler",
        "sams.training.pretrain_scheduler",
        settings,
        current_job(),
        out=out,
        checkpoints=checkpoints,
        upstream={"tokens": tokens, "model": model},
    ) as training_job:
        workers = training_job.workers

        pad = AutoTokenizer.from_pretrained(tokens / "tokenizer").pad_token_id
        loaded = load_model(model, settings.model)
        policy = workers.wrap(Policy(loaded), trained=False)
        task = SftTask(read_tokens(tokens, "train"), pad, response="chosen_ids")

        training = settings.training
        selected = training.selected
        scheduler = Scheduler(
            settings.scheduler,
            layers=len(blocks(loaded)),
            width=context_width(loaded.config.hidden_size, settings.scheduler.merge),
            seed=settings.seed,
            device=workers.device,
            train_encoder=True,
            rounds=count_rounds(
                len(task.ids), training.batch_size, training.epochs, training.max_steps, "pretrain"
            ),
            arms_per_round=selected,
        )
        figures, _ = train(
            policy,
            task,
            task,
            Sams(scheduler, gamma=training.gamma, seed=settings.seed, trained=False),
            training,
            selected=selected,
            merge=settings.scheduler.merge,
            frozen=True,
            seed=settings.seed,
            workers=workers,
            checkpoints=training_job.checkpoints,
            open_run=training_job.open_run,
        )
        if workers.is_main:
            with whole_folder(out / "weights") as part:
                torch.save(scheduler.weights(), part / "scheduler.pt")
        training_job.finish(figures)


if __name__ == "__main__":
    from sams.stage import run

    run(main)
