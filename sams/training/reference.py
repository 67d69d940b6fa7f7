"""Compute the log-probs of all pairs under the reference model, by pair id: once, for every method.

    torchrun --standalone --nproc-per-node 8 -m sams.training.reference --recipe recipe.json \
        --tokens TOKENS --model MODEL --out OUT
"""

import shutil
from pathlib import Path

from sams.runtime.files import digest_of, whole_folder
from sams.training.distribution import Workers
from sams.training.loading import load_policy
from sams.training.passes import score
from sams.training.tasks.base import Items, Scored, read_tokens
from sams.training.tasks.pairs import MismatchedTask, PairTask
from sams.training.tuning import tune

MOST_ITEMS = 32
"""Most pairs of a scoring micro-batch, per process, where the recipe says `auto`."""


def main(recipe: str, tokens: Path, model: Path, out: Path) -> None:
    """Write train.parquet, test.parquet and, if the data has that split, validation.parquet.

    Columns are id, chosen, rejected (summed log-probs, float32), and with `mismatched` in the recipe also mismatched:
    the log-probs of the completions on which KTO's KL term is estimated.
    """
    import pyarrow as pa
    from pyarrow import parquet

    from sams.runtime.stage import read_recipe
    from sams.study.recipes import ReferenceRecipe, current_job

    settings = read_recipe(recipe, ReferenceRecipe)
    launch = current_job().launch
    upstream = {"tokens": digest_of(tokens), "model": digest_of(model)}
    workers = Workers(
        device=launch.device,
        strategy=launch.strategy,
        precision=settings.model.precision,
        threads=launch.threads_per_process,
        shard_over=launch.shard_over,
        timeout_minutes=launch.timeout_minutes,
        deterministic=launch.deterministic,
    )
    positions = out.with_name(f".{out.name}.positions")
    workers.begin_watch(positions)
    try:
        policy = load_policy(model, settings.model, workers, load_in_4bit=settings.load_in_4bit)
        tables, tuning = {}, None
        for split in ("train", "test", *(["validation"] if (tokens / "validation").is_dir() else [])):
            data = read_tokens(tokens, split)
            tasks: list[Scored] = [PairTask(data)]
            if settings.mismatched:
                tasks.append(MismatchedTask(data))
            if tuning is None:
                tuning = tune(
                    policy,
                    tasks[0],
                    workers,
                    settings.model,
                    micro_batch=1,
                    scoring_micro_batch=settings.micro_batch_size,
                    items=0,
                    scored_items=MOST_ITEMS * workers.world,
                    passes=len(data["id"]) // (MOST_ITEMS * workers.world),
                )
            values: Items = {}
            for task in tasks:
                items = list(range(len(task.ids)))
                values |= score(
                    policy, task, items, workers, tuning.scoring_micro_batch, what=f"reference of {split}"
                )[0]
            columns = {name.removeprefix("logps/"): pa.array(logps.numpy()) for name, logps in values.items()}
            tables[split] = pa.table({"id": data["id"]} | columns)
        if workers.is_main:
            with whole_folder(out, upstream=upstream, recipe=settings.model_dump(mode="json")) as part:
                for split, table in tables.items():
                    parquet.write_table(table, part / f"{split}.parquet")
    finally:
        workers.watch.stop()
    workers.barrier()
    if workers.is_main:
        shutil.rmtree(positions)
    workers.leave()


if __name__ == "__main__":
    from sams.runtime.stage import run

    run(main)
