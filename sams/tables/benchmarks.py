"""The benchmarks that tables show: columns of the main table, files below a method's seed folder, readers of items.

A further benchmark is an entry here, its notes in `captions` and its part of the answers page in `side_by_side`.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from sams.runtime.errors import UserError
from sams.scoring.inputs import read_json_lines, read_json_rows
from sams.scoring.wins import read_rewards
from sams.study.study import Study

Items = dict[str, float]
ByColumn = dict[str, Items]
"""Scores of items by column of the main table that is their mean."""


class Score(NamedTuple):
    """A column of the main table.

    Args:
        column: name of the column.
        benchmark: metrics file with the figure, a key of METRICS.
        key: the figure's key in that file.
        se_key: key of its standard error over items.
        decimals: decimals shown, as many as the standard error justifies.
        label: name of the score in the paper's tables.
        unit: its unit, for headings.
    """

    column: str
    benchmark: str
    key: str
    se_key: str
    decimals: int
    label: str
    unit: str = ""


class Benchmark(NamedTuple):
    """Files of one benchmark, below the seed folder.

    Args:
        title: its published name.
        judged: the verdicts or scores of each item.
        items: reads `judged`.
        answers: the answers that were judged; empty if a benchmark asks and scores in one job.
        answers_key: key of the SHA-256 of `answers` among the `inputs` of metrics.json.
        columns: columns that a metrics.json adds to those that every main table has.
        has_judge: whether a judge scores the answers, which a page then shows with its verdicts.
    """

    title: str
    judged: str
    items: Callable[[Path], ByColumn]
    answers: str
    answers_key: str
    columns: Callable[[Mapping[str, Any]], list[Score]] = lambda _: []
    has_judge: bool = True


def alpaca_eval_items(path: Path) -> ByColumn:
    """Preference for the model on each instruction, in percent: their mean is AlpacaEval's `win_rate`.

    AlpacaEval counts preferences from 1 (baseline) to 2 (model); older versions wrote 0 for a draw.
    """
    items: Items = {}
    for row in read_json_rows(path):
        preference = row.get("preference")
        if preference is not None and (preference == 0 or 1 <= preference <= 2):
            items[row["instruction"]] = 100 * ((preference or 1.5) - 1)
    return {"win_rate": items}


def mt_bench_items(path: Path) -> ByColumn:
    """Return the mean rating of both turns of each question; questions with a failed turn are left out.

    Raises:
        UserError: the file holds judgments of several models.
    """
    turns: dict[str, dict[int, float]] = {}
    models = set()
    for row in read_json_lines(path):
        models.add(row.get("model"))
        if row["score"] != -1:  # FastChat's mark of a judgment without a rating
            turns.setdefault(str(row["question_id"]), {})[row["turn"]] = row["score"]
    if len(models) > 1:
        raise UserError(f"judgments of {len(models)} models, expected one", where=str(path))
    means = {question: (rated[1] + rated[2]) / 2 for question, rated in turns.items() if len(rated) == 2}
    return {"mt_bench": means}


REWARDS = [
    Score("reward", "reward_model", "reward", "reward_se", 3, "reward"),
    Score("reward_win_rate", "reward_model", "win_rate", "win_rate_se", 1, "reward win rate", "%"),
]
WINS = {"reward": "reward_win_rate"}
"""Columns with the share of items on which a method is better than a base, by the column that says what is better."""

LM_EVAL = "lm_eval_"
"""Prefix of the columns of lm-eval's tasks."""


def lm_eval_items(path: Path) -> ByColumn:
    """Return the score of each item of each task."""
    items: ByColumn = {}
    for row in read_json_lines(path) if path.stat().st_size else []:
        items.setdefault(LM_EVAL + row["task"], {})[row["item"]] = row["score"]
    return items


def lm_eval_columns(metrics: Mapping[str, Any]) -> list[Score]:
    """Return a column for each task."""
    return [score_named(LM_EVAL + task) for task in metrics.get("tasks", {})]


def reward_items(path: Path) -> ByColumn:
    """Return the reward of the answer to each prompt."""
    return {"reward": read_rewards(path)}


BENCHMARKS = {
    "alpaca_eval": Benchmark(
        title="AlpacaEval 2",
        judged="alpaca_eval/annotations.json",
        items=alpaca_eval_items,
        answers="alpaca_eval/answers.json",
        answers_key="model_outputs",
    ),
    "mt_bench": Benchmark(
        title="MT-Bench",
        judged="mt_bench/judgments.jsonl",
        items=mt_bench_items,
        answers="mt_bench/answers.jsonl",
        answers_key="answers",
    ),
    "reward_model": Benchmark(
        title="Reward model",
        judged="reward_model/rewards.jsonl",
        items=reward_items,
        answers="reward_model/answers.jsonl",
        answers_key="answers",
        columns=lambda _: REWARDS,
        has_judge=False,
    ),
    "lm_eval": Benchmark(
        title="lm-eval",
        judged="lm_eval/items.jsonl",
        items=lm_eval_items,
        answers="",
        answers_key="",
        columns=lm_eval_columns,
        has_judge=False,
    ),
}
SCORES = [
    Score(
        "length_controlled_winrate",
        "alpaca_eval",
        "length_controlled_winrate",
        "lc_standard_error",
        1,
        "LC win rate",
        "%",
    ),
    Score("win_rate", "alpaca_eval", "win_rate", "standard_error", 1, "win rate", "%"),
    Score("mt_bench", "mt_bench", "average", "average_standard_error", 2, "MT-Bench", "1–10"),
    Score("test_accuracy", "train", "test_accuracy", "test_accuracy_se_items", 1, "test accuracy", "%"),
    Score("chosen_reward", "train", "chosen_reward", "chosen_reward_se_items", 3, "chosen reward"),
    Score("chosen_logp", "train", "chosen_logp", "chosen_logp_se_items", 1, "chosen log-prob", "nats"),
]
# Metrics files; `train` is the training job's.
METRICS = {"train": "train_metrics.json"} | {name: f"{name}/metrics.json" for name in BENCHMARKS}


def score_named(column: str) -> Score:
    """Return the score of a column of the main table."""
    if column.startswith(LM_EVAL):
        task = column.removeprefix(LM_EVAL)
        return Score(column, "lm_eval", task, f"{task}_se", 1, task, "%")
    return {score.column: score for score in (*SCORES, *REWARDS)}[column]


def scores_in(cells: Mapping[Any, Mapping[str, Any]]) -> list[Score]:
    """Return the scores of a main table: `SCORES`, and what the benchmarks of its cells add."""
    added = {
        score.column: score
        for cell, values in cells.items()
        if cell.benchmark in BENCHMARKS
        for score in BENCHMARKS[cell.benchmark].columns(values)
    }
    return [*SCORES, *added.values()]


def judged_files(study: Study) -> list[str]:
    """Answers, verdicts and metrics of the benchmarks that a judge scores, below a seed folder."""
    return [
        file
        for name in judged(study)
        for file in (BENCHMARKS[name].answers, BENCHMARKS[name].judged, METRICS[name])
    ]


def scored(study: Study) -> list[str]:
    """Return the names of the benchmarks that a study scores."""
    return [name for name in BENCHMARKS if getattr(study.benchmarks, name) is not None]


def judged(study: Study) -> list[str]:
    """Return the names of the benchmarks that a judge scores."""
    return [name for name in scored(study) if BENCHMARKS[name].has_judge]
