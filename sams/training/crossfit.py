"""Cross-fitting for selector `selective`: train on one half of the pairs, score the other half.

    torchrun --standalone --nproc-per-node 8 -m sams.training.crossfit --recipe recipe.json --half 0 \
        --tokens TOKENS --model MODEL --reference REFERENCE --out OUT --checkpoints CHECKPOINTS

Together, both halves (0 and 1) give the validation loss of every pair under a model that was not trained on it
(Selective DPO, arXiv 2502.09650).
"""

from pathlib import Path

import torch

from sams.policy.policy import bare
from sams.runtime.files import whole_folder
from sams.training.crossfit_losses import LOSSES
from sams.training.distribution import seeded
from sams.training.job import TrainingJob
from sams.training.loading import load_policy
from sams.training.loop import Reports, Selecting, train
from sams.training.passes import score
from sams.training.preference import plan, starts_from
from sams.training.selector import build_selector
from sams.training.tasks.preference import read_task
from sams.training.updates import AdamWStep


def main(
    recipe: str,
    tokens: Path,
    model: Path,
    out: Path,
    checkpoints: Path,
    half: int,
    reference: Path | None = None,
) -> None:
    """Train on one half; write losses/ (of the other half), train.jsonl and train_metrics.json to `out`."""
    import pyarrow as pa
    from pyarrow import parquet

    from sams.runtime.stage import read_recipe
    from sams.study.recipes import PreferenceRecipe, current_job

    settings = read_recipe(recipe, PreferenceRecipe)
    training = settings.training
    upstream = {"tokens": tokens, "model": model} | ({} if reference is None else {"reference": reference})
    with TrainingJob(
        "train_crossfit",
        settings,
        current_job(),
        out=out,
        checkpoints=checkpoints,
        upstream=upstream,
        part=f"half{half}",
    ) as job:
        starts_from(reference, job.upstream["model"], training)
        policy = load_policy(model, settings.model, job.workers, training=training, seed=settings.seed)
        splits = ("train", training.evaluated_split)
        task, test = (
            read_task(tokens, reference, split, training, precision=settings.model.precision)
            for split in splits
        )
        halves = torch.randperm(len(task.ids), generator=seeded("crossfit", settings.seed)).chunk(2)
        mine, others = halves[half].tolist(), halves[1 - half].tolist()

        batches, selection = plan(task, training, mine, settings.seed)
        selector = build_selector(
            training.selector, None, selection, task=task, model=bare(policy).model, job=job
        )
        update = AdamWStep(policy, training, job.workers, batches.steps)
        selecting = Selecting(selector, task, selection, batches.per_epoch)
        figures, _ = train(job, policy, task, batches, update, selecting=selecting, reports=Reports(test))
        assert job.tuning is not None
        values, _ = score(policy, task, others, job.workers, job.tuning.scoring_micro_batch)
        if job.workers.is_main:
            table = pa.table({"id": [task.ids[item] for item in others], "loss": values["loss"].numpy()})
            with whole_folder(out / "losses") as part:
                parquet.write_table(table, part / LOSSES)
        job.finish(figures)


if __name__ == "__main__":
    from sams.runtime.stage import run

    run(main)
