"""Stage `assess`: accuracies of the chosen weights of one seed on test pairs and held-out instructions.

One job assesses all methods of a seed, because they share data and reference, and starting a job takes longer than an
assessment. The SFT model is assessed too; it is the reference and has no preference accuracy.
"""

import logging
import tempfile
from pathlib import Path

import torch

from sams.data.records import Message
from sams.generation.decode import Decoder
from sams.policy.model import load_model
from sams.policy.policy import Policy
from sams.runtime.files import read_json, whole_file, write_json
from sams.study.recipes import AssessRecipe, ExportRecipe, current_job, recipe_json
from sams.study.settings import WorldAccuracy
from sams.study.study import BASE_METHOD
from sams.training import export
from sams.training.distribution import Workers
from sams.training.passes import score
from sams.training.results import evaluated_at
from sams.training.tasks.preference import read_task
from sams.training.tuning import tune
from sams.world.grading import grade, grade_follow_up

log = logging.getLogger(__name__)

SCORING_ITEMS = 64


def main(
    recipe: str, choice: Path, results: Path, data: Path, tokens: Path, reference: Path, out: Path
) -> None:
    """Write the figures of the SFT model and of each chosen point, under the point's name in `choice`.

    Args:
        recipe: AssessRecipe.
        choice: choice.json of stage `choose`.
        results: folder of the study's setting.
        data: prepared data, for the text of the prompts.
        tokens: tokenised data.
        reference: log-probs of the reference.
        out: figures.json, in percent.
    """
    from sams.runtime.stage import read_recipe

    settings = read_recipe(recipe, AssessRecipe)
    prompts = read_prompts(data, settings.accuracy.instructions)
    start = results / BASE_METHOD / f"seed{settings.seed}" / "model"
    figures = {BASE_METHOD: answer_accuracies(start, settings, prompts)}
    launch = current_job().launch
    workers = Workers(
        device=launch.device,
        strategy="ddp",
        precision=settings.model.precision,
        threads=launch.threads_per_process,
        timeout_minutes=launch.timeout_minutes,
    )
    for name, point in read_json(choice)["points"].items():
        run, step = point["run"], point["step"]
        weights = results / run / f"seed{settings.seed}" / evaluated_at(step)
        with tempfile.TemporaryDirectory() as folder:
            exported = Path(folder) / "model"
            export.main(
                recipe_json(ExportRecipe(model=settings.model)),
                exported,
                tokens=tokens,
                trained=weights,
                model=start if settings.runs[run].lora is not None else None,
            )
            accuracies = answer_accuracies(exported, settings, prompts)
            accuracies["test_accuracy"] = test_accuracy(exported, settings, run, tokens, reference, workers)
        figures[name] = accuracies
        log.info("%s: %s", name, accuracies)
    with whole_file(out) as part:
        write_json(part, figures)
    workers.leave()


def read_prompts(data: Path, count: int) -> list[list[Message]]:
    """Return the first `count` prompts of the test pairs; the synthetic world can grade their answers."""
    from pyarrow import parquet

    return list(parquet.read_table(data / "test.parquet", columns=["prompt"])["prompt"][:count].to_pylist())


def answer_accuracies(model: Path, settings: AssessRecipe, prompts: list[list[Message]]) -> dict[str, float]:
    """Return the percent of right answers, with sampled and with greedy decoding."""
    accuracy: WorldAccuracy = settings.accuracy
    decoder = Decoder(
        model, settings.model.precision, accuracy.decoding, settings.seed, date=settings.model.template_date
    )
    percentages = {}
    for name, temperature in (("sampled", accuracy.decoding.temperature), ("greedy", 0.0)):
        answers = decoder.answer(prompts, [temperature] * len(prompts), name)
        right = [is_right(prompt, answer.text) for prompt, answer in zip(prompts, answers, strict=True)]
        percentages[name] = 100 * sum(right) / len(right)
    return percentages


def is_right(prompt: list[Message], answer: str) -> bool:
    """Return whether the answer to the last question is completely right."""
    texts = [message["content"] for message in prompt]
    if len(texts) == 1:
        return grade(texts[0], answer) == 1.0
    first, shown, second = texts
    return grade_follow_up(first, shown, second, answer) == 1.0


def test_accuracy(
    model: Path, settings: AssessRecipe, run: str, tokens: Path, reference: Path, workers: Workers
) -> float:
    """Return the percent of the clean test pairs in which the right answer has the larger implicit reward."""
    training = settings.runs[run]
    cached = reference if training.needs_reference else None
    task = read_task(tokens, cached, "test", training, precision=settings.model.precision)
    dtype = getattr(torch, settings.model.precision)
    policy = workers.wrap(Policy(load_model(model, settings.model, dtype=dtype)), trained=False)
    tuning = tune(
        policy,
        task,
        workers,
        settings.model,
        micro_batch=1,
        scoring_micro_batch=training.scoring_micro_batch_size,
        items=0,
        scored_items=SCORING_ITEMS,
    )
    tuning.apply(policy)
    items = list(range(len(task.ids)))
    metrics, _ = score(policy, task, items, workers, tuning.scoring_micro_batch)
    return 100 * metrics["rewards/accuracies"].double().mean().item()


if __name__ == "__main__":
    from sams.runtime.stage import run

    run(main)
