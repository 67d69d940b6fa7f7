"""Stage `score_reward_model`: rewards of one model's answers to test prompts, and its win rate over the start model.

    python -m sams.scoring.reward_model --answers answers.jsonl --data R/data --recipe recipe.json \\
        --start R/sft/seed0/reward_model/rewards.jsonl --out metrics.json --rewards-out rewards.jsonl

A reward says something within one reward model only, and the policy may have learned what that model likes: it is no
judgment of the answers.
"""

import functools
import logging
import statistics
from pathlib import Path
from typing import Annotated, Any, ClassVar

import typer

from sams.data.prompts import TEST_PAIRS, test_prompts
from sams.runtime.errors import UserError
from sams.runtime.jsonl import write_lines
from sams.runtime.stage import read_recipe, run
from sams.scoring.benchmark import Benchmark, ByColumn, Figures, Score, Work, spread, values_of
from sams.scoring.inputs import input_hashes, read_rows, some_of
from sams.scoring.job import log_scores
from sams.scoring.question_set import TestPrompts
from sams.scoring.wins import read_rewards, wins
from sams.study.recipes import RewardRecipe
from sams.study.settings import Judge, RewardScore

log = logging.getLogger("reward")


def score_reward_model(
    answers: Path, data: Path, recipe: RewardRecipe, rewards_out: Path, start: Path | None = None
) -> dict[str, Any]:
    """Score answers by a reward model, and write rows {id, reward}; null for an answer that is too long for it.

    Args:
        answers: rows {id, answer} of stage `generate_answers`.
        data: folder of the prepared data with the prompts.
        recipe: the reward model.
        rewards_out: file for the rewards.
        start: rewards of the start model's answers; None for the start model.

    Returns:
        `reward` with `reward_se` over answers; with `start`, `win_rate` over its answers to the same prompts in
        percent, a tie counting one half, with `win_rate_se`; the number of answers, and of those without a reward.

    Raises:
        UserError: an unusable reward model, answers to other prompts, or not one answer with a reward.
    """
    from sams.scoring.reward import RewardModel

    rows = read_rows(answers)
    wanted = {row["id"] for row in rows}
    found = (row for row in test_prompts(data / TEST_PAIRS, ["id", "prompt"]) if row["id"] in wanted)
    prompts = {row["id"]: row["prompt"] for row in found}
    if unknown := sorted(wanted - prompts.keys()):
        raise UserError(
            f"answers prompts that are not among {data / TEST_PAIRS}: {some_of(unknown)}",
            where=str(answers),
            remedy="delete it: snakemake then makes it again",
        )
    model = RewardModel(recipe.model, recipe.precision, recipe.batch_size)
    scores = model.scores(
        [[*prompts[row["id"]], {"role": "assistant", "content": row["answer"]}] for row in rows]
    )
    write_lines(
        rewards_out,
        [{"id": row["id"], "reward": score} for row, score in zip(rows, scores, strict=True)],
    )
    rewards = {row["id"]: score for row, score in zip(rows, scores, strict=True) if score is not None}
    if not rewards:
        raise UserError(
            f"none of {len(rows)} answers has a reward: all are too long",
            where=recipe.model,
            remedy="lower `decoding.max_new_tokens`, or give a reward model with a longer context",
        )
    return {
        **mean_and_error("reward", list(rewards.values())),
        **(
            {}
            if start is None
            else mean_and_error("win_rate", list(wins(rewards, read_rewards(start)).values()))
        ),
        "n_answers": len(rows),
        "n_too_long": scores.count(None),
        "judge": recipe.model,  # figures of different reward models are not comparable
        "reward_model": model.identity,
        "inputs": input_hashes({"answers": answers, "start": start}),
    }


def mean_and_error(name: str, values: list[float]) -> dict[str, float | None]:
    """Return the mean of values and its standard error, which is None for one value; empty without values."""
    if not values:
        return {}
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
    return {name: statistics.fmean(values), f"{name}_se": error}


# --- questions, tables and pages ------------------------------------------------------------------


QUESTIONS = TestPrompts()


class RewardScores(Benchmark):
    """Rewards of answers to test prompts."""

    name, title = "reward_model", "Reward model"
    answers, judged = "reward_model/answers.jsonl", "reward_model/rewards.jsonl"
    has_judge, asks_test_prompts, needs_gpu = False, True, True
    inputs, given = ("answers", "data", "start"), ("answers", "data", "start")
    options: ClassVar = {"rewards_out": "{output.judged}"}
    start = judged
    scores = (
        Score("reward", "reward_model", "reward", "reward_se", 3, "reward"),
        Score("reward_win_rate", "reward_model", "win_rate", "win_rate_se", 1, "reward win rate", "%"),
    )
    wins: ClassVar = {"reward": "reward_win_rate"}
    comparison_notes = (
        "reward win rate: percentage of prompts with a larger reward than the base's answer, minus 50.",
    )

    def work(self, settings: RewardScore, judge: Judge) -> Work:
        """Return the number of prompts."""
        return Work(prompts=settings.prompts)

    def items(self, path: Path) -> ByColumn:
        """Return the reward of the answer to each prompt."""
        return {"reward": read_rewards(path)}

    def notes(self, settings: RewardScore, figures: Figures) -> list[str]:
        """Return the model, the number of prompts, and of answers without a reward."""
        counts, longest = values_of(figures, "n_answers"), sum(values_of(figures, "n_too_long"))
        return [
            f"Rewards: by {settings.model}, of answers to {spread(counts)} test prompts; {longest:g} too long for "
            "it. Rewards are comparable within one reward model only. reward win rate is the percentage of prompts "
            "with a larger reward than the start model's answer, a tie counting one half."
        ]


BENCHMARK = RewardScores()


# --- command line ---------------------------------------------------------------------------------


def main(
    answers: Annotated[Path, typer.Option(help="Answers to test prompts.")],
    data: Annotated[Path, typer.Option(help="Folder of the prepared data.")],
    recipe: Annotated[str, typer.Option(help="RewardRecipe, as JSON or a file.")],
    out: Annotated[Path, typer.Option(help="File for the figures (metrics.json).")],
    rewards_out: Annotated[Path, typer.Option(help="File for the reward of each answer.")],
    start: Annotated[Path | None, typer.Option(help="Rewards of the start model's answers.")] = None,
) -> None:
    """Score answers to test prompts by a reward model."""
    settings = read_recipe(recipe, RewardRecipe)
    score = functools.partial(score_reward_model, answers, data, settings, rewards_out, start)
    metrics = log_scores("score_reward_model", score, settings, out)
    log.info("reward %.4f over %d answers", metrics["reward"], metrics["n_answers"])


if __name__ == "__main__":
    run(main)
