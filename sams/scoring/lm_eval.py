"""Stage `score_lm_eval`: tasks of EleutherAI's lm-eval on an exported model, by the unmodified package.

    python -m sams.scoring.lm_eval --model R/dpo/seed0/model --recipe recipe.json --out metrics.json \\
        --items-out items.jsonl --results-out results.json

Prompts are written by the model's chat template. The harness's own results are kept in results.json, without its
samples; the score of each item is in items.jsonl. Tasks may run code of the package, and of `include_path`. Tasks
that run what a model writes are refused, as is code of models and data sets.
"""

import functools
import logging
import os
import statistics
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, ClassVar

import typer

from sams.judge.client import key_withheld
from sams.runtime.errors import UserError, first_line, nearest
from sams.runtime.files import write_json
from sams.runtime.jsonl import write_lines
from sams.runtime.stage import read_recipe, run
from sams.scoring.benchmark import Benchmark, ByColumn, Figures, Score, values_of
from sams.scoring.inputs import read_rows, some_of, versions
from sams.scoring.job import log_scores
from sams.study.recipes import LmEvalRecipe
from sams.study.settings import LmEval

log = logging.getLogger("lm_eval")

KEY = "benchmarks.lm_eval"
INSTALL = "`pip install 'lm-eval[ifeval]==0.4.13'` in this environment (extra `lm-eval` of this package)"


def score_lm_eval(model: Path, recipe: LmEvalRecipe, items_out: Path, results_out: Path) -> dict[str, Any]:
    """Evaluate a model on the tasks, and write the scores of the items and the harness's results.

    Args:
        model: exported model folder.
        recipe: the tasks.
        items_out: file for rows {task, item, score}.
        results_out: file for the results of the harness.

    Returns:
        The figures of `figures_of`, with versions and settings.

    Raises:
        UserError: lm-eval is not installed, an unknown task, or one whose data cannot be read.
    """
    settings = recipe.lm_eval
    manager = check_tasks(settings)
    from lm_eval import simple_evaluate

    results = simple_evaluate(
        model="hf",
        model_args={"pretrained": str(model), "dtype": recipe.precision, "trust_remote_code": False},
        tasks=settings.tasks,
        num_fewshot=settings.num_fewshot,
        batch_size=settings.batch_size,
        device=device(),
        limit=settings.limit,
        bootstrap_iters=0,  # errors are computed from the items
        apply_chat_template=True,
        task_manager=manager,
    )
    items = dict(items_of(results, settings.metrics))
    write_lines(
        items_out,
        [
            {"task": task, "item": item, "score": score}
            for task, scores in items.items()
            for item, score in scores.items()
        ],
    )
    write_json(results_out, readable({key: value for key, value in results.items() if key != "samples"}))
    return figures_of(results, settings.metrics, items) | {
        "recipe": settings.model_dump(mode="json"),
        "versions": versions("lm_eval", "transformers", "torch"),
    }


def device() -> str:
    """Return the device of the harness: the first GPU if there is one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def check_tasks(settings: LmEval) -> Any:
    """Check that the harness is installed and knows the tasks, fetch their data, and return its task manager.

    Raises:
        UserError: one of this does not hold; the message names the package, the task or what the hub answered.
    """
    if find_spec("lm_eval") is None:
        raise UserError("lm-eval is not installed", where=KEY, remedy=INSTALL)
    from lm_eval.tasks import TaskManager

    if settings.include_path is not None and not Path(settings.include_path).is_dir():
        raise UserError(f"no such folder: {settings.include_path}", where=f"{KEY}.include_path")
    # Reading the package's own 16,000 files takes half a minute.
    manager = TaskManager(include_path=settings.include_path, include_defaults=False)
    if not {*settings.tasks} <= {*manager.task_index}:
        manager = TaskManager(include_path=settings.include_path)
    for task in settings.tasks:
        if task not in manager.task_index:
            raise UserError(
                f"lm-eval has no task '{task}'{nearest(task, list(manager.task_index))}",
                where=f"{KEY}.tasks",
                remedy="`lm-eval ls tasks` lists them",
            )
    try:
        loaded = manager.load(settings.tasks)["tasks"]
    except Exception as error:  # tasks, `datasets` and the hub's client raise errors of any class
        raise UserError(
            f"the data of {', '.join(settings.tasks)} cannot be read: {first_line(error)}",
            where=f"{KEY}.tasks",
            remedy="check the network; data sets come from the hub, and stay in its cache",
        ) from error
    unsafe = sorted(name for name, task in loaded.items() if getattr(task, "UNSAFE_CODE", False))
    if unsafe:
        raise UserError(
            f"{some_of(unsafe)} would run code that the model writes",
            where=f"{KEY}.tasks",
            remedy="leave it out, and run it with lm-eval itself in a sandbox",
        )
    return manager


def items_of(
    results: Mapping[str, Any], metrics: Mapping[str, str]
) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield each task with the score of its items, in percent where it is between 0 and 1; groups have no items."""
    for task, samples in (results.get("samples") or {}).items():
        if task in shown(results):
            metric, _, chosen = metric_of(results, task, metrics).partition(",")
            scores = {
                f"{sample['doc_id']}-{sample['doc_hash'][:8]}": float(sample[metric])
                for sample in samples
                if sample["filter"] == chosen and isinstance(sample.get(metric), int | float)
            }
            if scores:
                scale = percent(scores.values())
                yield task, {item: scale * score for item, score in scores.items()}


def figures_of(
    results: Mapping[str, Any], metrics: Mapping[str, str], items: Mapping[str, Mapping[str, float]]
) -> dict[str, Any]:
    """Return the score of each task, its standard error over items as `<task>_se`, and what was scored in `tasks`.

    Args:
        results: what `simple_evaluate` returns.
        metrics: metric and filter by task, for others than the first.
        items: scores of the items by task.
    """
    figures: dict[str, Any] = {}
    described: dict[str, Any] = {}
    for task in shown(results):
        metric = metric_of(results, task, metrics)
        value = float(results["results"][task][metric])
        figures[task] = percent([value]) * value
        scores = list(items.get(task, {}).values())
        if len(scores) > 1:
            figures[task] = statistics.fmean(scores)
            figures[f"{task}_se"] = statistics.stdev(scores) / len(scores) ** 0.5
        described[task] = {"metric": metric, "n": len(scores) or None}
    return figures | {"tasks": described}


def shown(results: Mapping[str, Any]) -> list[str]:
    """Return the tasks and groups of the results without the parts of groups."""
    parts = {part for names in (results.get("group_subtasks") or {}).values() for part in names}
    return [name for name in results["results"] if name not in parts]


def metric_of(results: Mapping[str, Any], task: str, metrics: Mapping[str, str]) -> str:
    """Return the metric and filter of a task, as `acc,none`: the one that is set, or the first.

    Raises:
        UserError: the task has no such metric.
    """
    known = [key for key in results["results"][task] if "," in key and "_stderr," not in key]
    chosen = metrics.get(task, known[0] if known else "")
    if chosen not in known:
        raise UserError(
            f"{task} has no metric '{chosen}'{nearest(chosen, known)}",
            where=f"{KEY}.metrics",
            remedy=f"choose one of {', '.join(known)}",
        )
    return chosen


def percent(values: Any) -> float:
    """Return 100 for values between 0 and 1, such as accuracies, and 1 for others."""
    return 100.0 if all(0 <= value <= 1 for value in values) else 1.0


def readable(value: Any) -> Any:
    """Return results as JSON: functions and arrays as text."""
    match value:
        case dict():
            return {str(key): readable(part) for key, part in value.items()}
        case list() | tuple():
            return [readable(part) for part in value]
        case bool() | int() | str() | None:
            return value
        case float():
            return value if value == value and abs(value) != float("inf") else None
        case _:
            return str(value)


# --- tables ---------------------------------------------------------------------------------------

COLUMN = "lm_eval_"
"""Prefix of the columns of tasks."""


class LmEvalScores(Benchmark):
    """Tasks of lm-eval, a column each."""

    name, title = "lm_eval", "lm-eval"
    judged = "lm_eval/items.jsonl"
    has_judge, needs_gpu = False, True
    inputs, given = ("model",), ("model",)
    options: ClassVar = {"items_out": "{output.judged}", "results_out": "{output.results}"}
    outputs: ClassVar = {"results": "lm_eval/results.json"}

    def columns(self, metrics: Mapping[str, Any]) -> list[Score]:
        """Return a column for each task."""
        return [_score(task) for task in metrics.get("tasks", {})]

    def score_of(self, column: str) -> Score | None:
        """Return the score of a task's column."""
        return _score(column.removeprefix(COLUMN)) if column.startswith(COLUMN) else None

    def items(self, path: Path) -> ByColumn:
        """Return the score of each item of each task."""
        items: ByColumn = {}
        for row in read_rows(path) if path.stat().st_size else []:
            items.setdefault(COLUMN + row["task"], {})[row["item"]] = row["score"]
        return items

    def notes(self, settings: LmEval, figures: Figures) -> list[str]:
        """Return the metric and the number of items of each task."""
        described = {task: facts for tasks in values_of(figures, "tasks") for task, facts in tasks.items()}
        tasks = [
            f"{task} ({facts['metric'].removesuffix(',none')}"
            + (f", {facts['n']} items)" if facts["n"] else ")")
            for task, facts in described.items()
        ]
        return [f"lm-eval, in percent, with the chat template: {', '.join(tasks) or 'no results yet'}."]


def _score(task: str) -> Score:
    return Score(COLUMN + task, "lm_eval", task, f"{task}_se", 1, task, "%")


BENCHMARK = LmEvalScores()


# --- command line ---------------------------------------------------------------------------------


def main(
    model: Annotated[Path, typer.Option(help="Exported model folder.")],
    recipe: Annotated[str, typer.Option(help="LmEvalRecipe, as JSON or a file.")],
    out: Annotated[Path, typer.Option(help="File for the figures (metrics.json).")],
    items_out: Annotated[Path, typer.Option(help="File for the score of each item.")],
    results_out: Annotated[Path, typer.Option(help="File for the results of the harness.")],
) -> None:
    """Evaluate a model on tasks of lm-eval."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    settings = read_recipe(recipe, LmEvalRecipe)
    score = functools.partial(score_lm_eval, model, settings, items_out, results_out)
    with key_withheld():  # from the code of tasks
        metrics = log_scores("score_lm_eval", score, settings, out)
    log.info("%s", ", ".join(f"{task} {metrics[task]:.2f}" for task in metrics["tasks"]))


if __name__ == "__main__":
    run(main)
