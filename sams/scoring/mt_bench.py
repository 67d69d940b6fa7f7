"""Stage `score_mt_bench`: MT-Bench of one model's answers, by FastChat's single-answer grading.

    python -m sams.scoring.mt_bench --answers answers.jsonl --questions question.jsonl \
        --references gpt-4.jsonl --judge-prompts judge_prompts.jsonl --recipe recipe.json --out metrics.json

FastChat's own summary drops failed judgments and averages repeated ones without a word. Here failed ones are
retried, and a score is given only if each turn of each question has exactly one rating.
"""

import functools
import json
import logging
import statistics
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import typer

from sams.judge.client import judge_client
from sams.judge.endpoint import STORE, Endpoint, judge_name, open_judge
from sams.judge.proxy import ATTEMPT_HEADER, DryRun
from sams.runtime.errors import UserError
from sams.runtime.files import whole_file
from sams.runtime.progress import progress
from sams.runtime.stage import read_recipe, run
from sams.scoring import fastchat_judge as fastchat
from sams.scoring.fastchat_judge import ERROR, FAILED, Grading, Messages
from sams.scoring.inputs import Row, input_hashes, read_json_lines, some_of, text_of, versions
from sams.scoring.job import run_scoring
from sams.scoring.mt_bench_inputs import TURNS, read_answers, read_prompts, read_questions, read_references
from sams.study.recipes import ScoreRecipe

log = logging.getLogger("mt_bench")

ATTEMPTS = 3

Place = tuple[Any, int]  # question id, turn


def score_mt_bench(
    answers: Path,
    questions: Path,
    references: Path,
    judge_prompts: Path,
    *,
    recipe: ScoreRecipe | None = None,
    judgments: Path | None = None,
    judgments_out: Path | None = None,
    accept_failed: bool = False,
    judge_store: Path | None = None,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Grade a model's answers from 1 to 10.

    Args:
        answers: the model's answers, in FastChat's form.
        questions: FastChat's question.jsonl, or questions in its form.
        references: reference answers for the categories math, reasoning and coding.
        judge_prompts: FastChat's judge_prompts.jsonl, or prompts in its form.
        recipe: who judges; None when `judgments` holds every judgment.
        judgments: recorded judgments, in FastChat's form; those of other models are passed over. What it
            lacks is judged if the recipe's judge is the one that made them.
        judgments_out: where all judgments go.
        accept_failed: give a score although judgments are missing; they are left out of it.
        judge_store: file that keeps an endpoint's answers as they come; those in it are not paid again.
        dry_run: say what the judge's calls will take, and end.

    Returns:
        `turn_1`, `turn_2`, `average`, `average_standard_error` (over questions), `categories`,
        `n_judgments`, `n_failed`, and what they were computed from.

    Raises:
        UserError: inputs that do not fit together, or a judgment that is missing after the retries.
        DryRun: the end of a dry run.
    """
    asked = read_questions(questions)
    answered, model = read_answers(answers, asked)
    given = read_references(references, asked)
    matches = fastchat.make_matches(asked, model, answered, given, read_prompts(judge_prompts))

    rated, recorded_by = _recorded(judgments, model, matches) if judgments else ({}, None)
    unrated = [match for match in matches if _place(match) not in rated]
    judge = recorded_by or (judge_name(recipe.judge) if recipe else None)
    log.info("%d judgments are needed of %s", len(unrated), judge)
    calls = None
    if unrated and recipe is not None and judge == judge_name(recipe.judge):
        with open_judge(recipe, judge_store, dry_run) as endpoint:
            if endpoint.proxy is not None:
                _ask(unrated, endpoint)
                endpoint.proxy.admit()
            rated.update(_ask(unrated, endpoint))
            if endpoint.proxy is not None:
                if not accept_failed:
                    endpoint.proxy.check_complete()
                calls = endpoint.proxy.facts()
    if dry_run:
        raise DryRun
    failed = [_place(match) for match in matches if rated.get(_place(match), NO_RATING).score == FAILED]
    rows = [
        _row(match, model, str(judge), rated[_place(match)])
        for match in matches
        if _place(match) not in failed
    ]
    if judgments_out is not None and rows:
        _write_judgments(judgments_out, rows)
    if failed and not (accept_failed and rows):
        raise UserError(
            f"{len(failed)} of {len(matches)} judgments of {model} are missing or failed: "
            + some_of([f"question {question} turn {turn}" for question, turn in failed]),
            where=str(judgments) if judgments else str(answers),
            remedy="give a --recipe with the judge to ask, or run it again"
            + (f" (judge: {recorded_by}, as for the others)" if recorded_by else ""),
        )
    return {
        **summary(rows, {question["question_id"]: question["category"] for question in asked}),
        "n_judgments": len(rows),
        "n_failed": len(failed),
        "judge": judge,
        "judge_calls": calls,
        "model_id": model,
        "references": sorted({str(row.get("model_id")) for row in given.values()}),
        "recipe": recipe.judge.model_dump(mode="json") if recipe else None,
        "versions": versions("fschat", "openai"),
        "inputs": input_hashes(
            {
                "answers": answers,
                "questions": questions,
                "references": references,
                "judge_prompts": judge_prompts,
                "judgments": judgments,
            }
        ),
    }


def summary(rows: Sequence[Row], categories: Mapping[Any, str]) -> dict[str, Any]:
    """Means of ratings by turn, in all and by category, as FastChat's show_result.py has them.

    The standard error is that of the mean over questions, each with the mean of its turns.
    """
    by_question = defaultdict(list)
    by_category = defaultdict(list)
    for row in rows:
        by_question[row["question_id"]].append(row["score"])
        by_category[categories[row["question_id"]]].append(row["score"])
    means = [statistics.fmean(scores) for scores in by_question.values()]
    turns = {
        f"turn_{turn}": _mean([row["score"] for row in rows if row["turn"] == turn])
        for turn in range(1, TURNS + 1)
    }
    return {
        **turns,
        "average": _mean([row["score"] for row in rows]),
        "average_standard_error": statistics.stdev(means) / len(means) ** 0.5 if len(means) > 1 else None,
        "categories": {category: _mean(scores) for category, scores in by_category.items()},
    }


def _mean(scores: Sequence[float]) -> float | None:
    return statistics.fmean(scores) if scores else None


# --- judging --------------------------------------------------------------------------------------

NO_RATING = Grading("", ERROR, FAILED)


def _place(match: Any) -> Place:
    return match.question["question_id"], fastchat.turn_of(match)


def _ask(matches: Sequence[Any], endpoint: Endpoint) -> dict[Place, Grading]:
    """Ask the judge for each match, several at a time; an answer without a rating is asked for again."""
    import openai

    judge = judge_client(endpoint.base_url, endpoint.token)

    def chat(messages: Messages, temperature: float, max_tokens: int, *, attempt: int) -> str:
        answer = judge.chat.completions.create(
            model=endpoint.model,
            messages=messages,  # type: ignore[arg-type]  # plain dicts are what the types stand for
            n=1,
            temperature=temperature,
            max_tokens=max_tokens,
            extra_headers={ATTEMPT_HEADER: str(attempt)},
        )
        return answer.choices[0].message.content or ERROR

    def ask(match: Any) -> tuple[Place, Grading]:
        grading = NO_RATING
        for attempt in range(1, ATTEMPTS + 1):
            endpoint.check()
            try:
                grading = fastchat.grade_match(match, functools.partial(chat, attempt=attempt))
            except openai.OpenAIError:  # after all tries; the proxy counts and tells them
                break
            if grading.score != FAILED:
                break
        return _place(match), grading

    with ThreadPoolExecutor(endpoint.concurrency) as pool:
        answers = pool.map(ask, matches)
        if endpoint.proxy is not None:  # which counts the calls itself, and what they cost
            return dict(answers)
        return dict(progress(answers, "mt_bench", len(matches), "judgments"))


def _recorded(path: Path, model: str, matches: Sequence[Any]) -> tuple[dict[Place, Grading], str | None]:
    """Recorded ratings of a model, and the judge that made them.

    FastChat itself builds each prompt and parses each rating again, to see that the record belongs to these
    answers.

    Raises:
        UserError: several ratings of one turn, several judges, or a row of other answers, prompts or rating.
    """
    by_place = {_place(match): match for match in matches}
    rated: dict[Place, Grading] = {}
    judges: set[str] = set()
    for number, row in enumerate(read_json_lines(path), start=1):
        if row.get("model") != model or row.get("score") == FAILED:
            continue
        where = f"{path}, line {number}"
        place: Any = (row.get("question_id"), row.get("turn"))
        match = by_place.get(place)
        name = f"question {place[0]} turn {place[1]}"
        if match is None:
            raise UserError(f"{name} is not among the questions", where=where)
        if place in rated:
            raise UserError(
                f"rates {name} of {model} again", where=where, remedy="keep one rating of each turn"
            )
        judgment = text_of(row, "judgment", where)
        grading = fastchat.grade_match(match, lambda *_, text=judgment: text)
        for key, found, expected in (
            ("user_prompt", row.get("user_prompt"), grading.user_prompt),
            ("score", row.get("score"), grading.score),
        ):
            if found != expected:
                raise UserError(
                    f"of {name} is not what follows from the answers, questions and prompts given",
                    where=f"{where}, key '{key}'",
                    remedy="give the files that the judgments were made from",
                )
        rated[place] = grading
        judge = row.get("judge")
        judges.add(str(judge[0] if isinstance(judge, list) and judge else judge))
    if len(judges) > 1:
        raise UserError(f"mixes ratings of {some_of(sorted(judges))}", where=str(path))
    return rated, judges.pop() if judges else None


def _row(match: Any, model: str, judge: str, grading: Grading) -> Row:
    """A judgment in FastChat's form."""
    return {
        "question_id": match.question["question_id"],
        "model": model,
        "judge": [judge, match.judge.prompt_template["name"]],
        "user_prompt": grading.user_prompt,
        "judgment": grading.judgment,
        "score": grading.score,
        "turn": fastchat.turn_of(match),
        "tstamp": time.time(),
    }


def _write_judgments(path: Path, rows: Sequence[Row]) -> None:
    with whole_file(path) as part, part.open("w", encoding="utf-8") as stream:
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")


# --- command line ---------------------------------------------------------------------------------


def main(
    answers: Annotated[Path, typer.Option(help="Answers of the model, FastChat's JSONL, gzip or not.")],
    questions: Annotated[Path, typer.Option(help="Questions (question.jsonl).")],
    references: Annotated[Path, typer.Option(help="Reference answers.")],
    judge_prompts: Annotated[Path, typer.Option(help="Judge prompts (judge_prompts.jsonl).")],
    out: Annotated[Path, typer.Option(help="Where the figures go (metrics.json).")],
    recipe: Annotated[str | None, typer.Option(help="ScoreRecipe, as JSON or a file: who judges.")] = None,
    judgments: Annotated[Path | None, typer.Option(help="Recorded judgments.")] = None,
    judgments_out: Annotated[Path | None, typer.Option(help="Where all judgments go.")] = None,
    accept_failed: Annotated[bool, typer.Option(help="Give a score without the missing judgments.")] = False,
    judge_store: Annotated[
        Path | None, typer.Option(help=f"Keeps an endpoint's answers; else {STORE} beside --out.")
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="Say what the judge's calls will take, and end.")] = False,
) -> None:
    """Score a model's answers with MT-Bench."""
    score = functools.partial(
        score_mt_bench,
        answers,
        questions,
        references,
        judge_prompts,
        judgments=judgments,
        judgments_out=judgments_out,
        accept_failed=accept_failed,
    )
    settings = read_recipe(recipe, ScoreRecipe) if recipe else None
    metrics = run_scoring("score_mt_bench", score, settings, out, judge_store, dry_run)
    if metrics is None:
        return
    log.info(
        "%s: %.2f (first turn %s, second %s), %d judgments, %d failed, %s",
        metrics["model_id"],
        metrics["average"],
        metrics["turn_1"],
        metrics["turn_2"],
        metrics["n_judgments"],
        metrics["n_failed"],
        metrics["judge"],
    )


if __name__ == "__main__":
    run(main)
