"""The benchmarks that tables show: columns of the main table, files below a method's seed folder, readers of items.

A further benchmark is an entry here, its notes in `captions` and its part of the answers page in `side_by_side`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from sams.runtime.errors import UserError
from sams.scoring.inputs import read_json_lines, read_json_rows
from sams.study.study import Study

Items = dict[str, float]


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
        judged: the judge's verdicts.
        items: reads `judged` as a score for each item.
        item_score: column of the main table that is the mean of these scores.
        answers: the answers that were judged.
        answers_key: key of the SHA-256 of `answers` among the `inputs` of metrics.json.
    """

    title: str
    judged: str
    items: Callable[[Path], Items]
    item_score: str
    answers: str
    answers_key: str


def alpaca_eval_items(path: Path) -> Items:
    """Preference for the model on each instruction, in percent: their mean is AlpacaEval's `win_rate`.

    AlpacaEval counts preferences from 1 (baseline) to 2 (model); older versions wrote 0 for a draw.
    """
    items: Items = {}
    for row in read_json_rows(path):
        preference = row.get("preference")
        if preference is not None and (preference == 0 or 1 <= preference <= 2):
            items[row["instruction"]] = 100 * ((preference or 1.5) - 1)
    return items


def mt_bench_items(path: Path) -> Items:
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
    return {question: (rated[1] + rated[2]) / 2 for question, rated in turns.items() if len(rated) == 2}


BENCHMARKS = {
    "alpaca_eval": Benchmark(
        title="AlpacaEval 2",
        judged="alpaca_eval/annotations.json",
        items=alpaca_eval_items,
        item_score="win_rate",
        answers="alpaca_eval/answers.json",
        answers_key="model_outputs",
    ),
    "mt_bench": Benchmark(
        title="MT-Bench",
        judged="mt_bench/judgments.jsonl",
        items=mt_bench_items,
        item_score="mt_bench",
        answers="mt_bench/answers.jsonl",
        answers_key="answers",
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
SCORE = {score.column: score for score in SCORES}
# Metrics files; `train` is the training job's.
METRICS = {"train": "train_metrics.json"} | {name: f"{name}/metrics.json" for name in BENCHMARKS}


def judged_files(study: Study) -> list[str]:
    """Answers, verdicts and metrics of the benchmarks that a study scores, below a seed folder."""
    return [
        file
        for name in scored(study)
        for file in (BENCHMARKS[name].answers, BENCHMARKS[name].judged, METRICS[name])
    ]


def scored(study: Study) -> list[str]:
    """Return the names of the benchmarks that a study scores."""
    return [name for name in BENCHMARKS if getattr(study.benchmarks, name) is not None]
