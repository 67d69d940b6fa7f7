"""Read the inputs of MT-Bench: questions, answers, reference answers, judge prompts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sams.runtime.errors import UserError
from sams.scoring.fastchat_judge import needs_reference, try_prompts
from sams.scoring.inputs import Row, doubled, numbered, some_of, text_of
from sams.study.settings import MT_BENCH_TEMPERATURES

TURNS = 2
CATEGORIES = tuple(MT_BENCH_TEMPERATURES)
PROMPTS = ("single-v1", "single-math-v1", "single-v1-multi-turn", "single-math-v1-multi-turn")


def read_questions(path: Path) -> list[Row]:
    """Read two-turn questions {question_id, category, turns}.

    Raises:
        UserError: naming the line.
    """
    rows = []
    for where, row in numbered(path):
        _question_id(row, where)
        category = text_of(row, "category", where)
        if category not in CATEGORIES and (known := category.strip().lower()) in CATEGORIES:
            # FastChat grades an unknown category without a reference answer.
            raise UserError(
                f"unknown category {category!r}",
                where=f"{where}, key 'category'",
                remedy=f"did you mean {known!r}?",
            )
        _check_turns(row.get("turns"), where, empty=False)
        rows.append(row)
    if twice := doubled([row.get("question_id") for row in rows]):
        raise UserError(
            f"questions occur more than once: {some_of(twice)}", where=str(path), remedy="drop the repeats"
        )
    return rows


def read_answers(path: Path, questions: Sequence[Row]) -> tuple[dict[Any, Row], str]:
    """Read the answers of one model by question id, and the name of the model.

    Raises:
        UserError: naming the line or the questions.
    """
    answers, models = _by_question(path)
    required = [question["question_id"] for question in questions]
    if absent := [question for question in required if question not in answers]:
        raise UserError(
            f"{len(absent)} of {len(required)} questions have no answer: {some_of(absent)}", where=str(path)
        )
    if unknown := [question for question in answers if question not in set(required)]:
        raise UserError(f"answers unknown questions: {some_of(unknown)}", where=str(path))
    if len(models) != 1:
        raise UserError(f"expected answers of one model, found {some_of(sorted(models))}", where=str(path))
    return answers, models.pop()


def read_references(path: Path, questions: Sequence[Row]) -> dict[Any, Row]:
    """Read reference answers by question id.

    Raises:
        UserError: naming the line, or the questions that need a reference and have none.
    """
    references, _ = _by_question(path)
    needed = [row["question_id"] for row in questions if needs_reference(row["category"])]
    if absent := [question for question in needed if question not in references]:
        raise UserError(
            f"has no reference answer to questions {some_of(absent)}",
            where=str(path),
            remedy="math, reasoning and coding are graded with a reference",
        )
    return {question: references[question] for question in needed}


def _by_question(path: Path) -> tuple[dict[Any, Row], set[str]]:
    rows: dict[Any, Row] = {}
    models = set()
    for where, row in numbered(path):
        question = _question_id(row, where)
        if question in rows:
            raise UserError(f"answers question {question} again", where=where, remedy="drop one")
        choices = row.get("choices")
        if not (isinstance(choices, list) and choices and isinstance(choices[0], dict)):
            raise UserError(
                "expected a list with the answer's turns",
                where=f"{where}, key 'choices'",
                remedy="correct the row",
            )
        _check_turns(choices[0].get("turns"), where, empty=True)
        models.add(text_of(row, "model_id", where))
        rows[question] = row
    return rows, models


def _question_id(row: Row, where: str) -> int:
    question = row.get("question_id")
    if not isinstance(question, int):
        raise UserError(
            f"expected an integer, found {question!r:.60}",
            where=f"{where}, key 'question_id'",
            remedy="correct the row",
        )
    return question


def _check_turns(turns: Any, where: str, *, empty: bool) -> None:
    if not (isinstance(turns, list) and len(turns) == TURNS and all(isinstance(turn, str) for turn in turns)):
        raise UserError(
            f"expected {TURNS} texts, found {turns!r:.60}",
            where=f"{where}, key 'turns'",
            remedy="correct the row",
        )
    if not empty and not all(turn.strip() for turn in turns):
        raise UserError(
            "expected text, found an empty one", where=f"{where}, key 'turns'", remedy="correct the row"
        )


def read_prompts(path: Path) -> dict[str, Row]:
    """Read judge prompts by name, those for single-answer grading.

    Raises:
        UserError: naming the row, the prompts that are missing, or a prompt with which FastChat cannot grade.
    """
    prompts: dict[str, Row] = {}
    for where, row in numbered(path):
        name = text_of(row, "name", where)
        if name in PROMPTS:
            if name in prompts:
                raise UserError(f"a second prompt {name}", where=where, remedy="drop one")
            for key in ("prompt_template", "system_prompt", "output_format"):
                text_of(row, key, where, empty=True)
            prompts[name] = row
    if absent := [name for name in PROMPTS if name not in prompts]:
        raise UserError(
            f"has no prompt {some_of(absent)}",
            where=str(path),
            remedy="add it; FastChat's judge_prompts.jsonl has all",
        )
    for name, reason in try_prompts(prompts):
        raise UserError(f"the template {reason}", where=f"{path}, prompt {name}", remedy="correct it")
    return {name: prompts[name] for name in PROMPTS}
