"""Stage `prepare_questions`: write the inputs of the benchmarks, from the synthetic world or from files."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sams.data.sources import Row, numbered_rows
from sams.runtime.errors import UserError
from sams.runtime.files import sha256_of, whole_folder, write_json
from sams.runtime.jsonl import write_lines
from sams.runtime.stage import read_recipe, run
from sams.scoring.fetch import published
from sams.study.recipes import QuestionsRecipe
from sams.study.settings import MtBench, World
from sams.study.sources import digests_of_sources
from sams.world import examples as synthetic
from sams.world.judge_prompts import judge_prompts

log = logging.getLogger(__name__)

Check = Callable[[Row], str]

# Prompts of single-answer grading (fastchat/llm_judge/gen_judgment.py, make_judge_single).
JUDGE_PROMPTS = {"single-v1", "single-math-v1", "single-v1-multi-turn", "single-math-v1-multi-turn"}


def main(recipe: str, out: Path) -> None:
    """Write alpaca_eval.json, mt_bench_questions.jsonl, mt_bench_references.jsonl, judge_prompts.jsonl.

    A benchmark that is not in the study has no files. source.json holds the source of each file.

    Raises:
        UserError: naming key, file and row; nothing is written then.
    """
    settings = read_recipe(recipe, QuestionsRecipe)
    sources: dict[str, dict[str, str]] = {}
    with whole_folder(out, sources=digests_of_sources(settings)) as part:
        if settings.alpaca_eval is not None:
            given = settings.alpaca_eval.reference_outputs
            key = "benchmarks.alpaca_eval.reference_outputs"
            rows = (
                checked(given, key, "instruction", alpaca_eval_problem)
                if given
                else synthetic.baseline_outputs(required(settings.world, key))
            )
            write_json(part / "alpaca_eval.json", rows)
            sources["alpaca_eval.json"] = source(given)
        if settings.mt_bench is not None:
            for name, (rows, given) in mt_bench_rows(settings.mt_bench, settings.world).items():
                write_lines(part / name, rows)
                sources[name] = source(given)
        write_json(part / "source.json", sources)
    log.info("%s", sources or "no benchmark is scored")


def mt_bench_rows(settings: MtBench, world: World | None) -> dict[str, tuple[list[Row], str | None]]:
    """Return the rows of MT-Bench's three files, and the path of each in the settings.

    Raises:
        UserError: a file is missing or broken, or questions and references do not belong together.
    """
    key = "benchmarks.mt_bench."
    if (settings.questions is None) != (settings.references is None):
        lacking = "questions" if settings.questions is None else "references"
        raise UserError(
            "questions and references belong together: give both files or neither", where=key + lacking
        )
    if settings.questions and settings.references:
        questions = checked(settings.questions, key + "questions", "question_id", question_problem)
        references = checked(settings.references, key + "references", "question_id", reference_problem)
    else:
        own = required(world, key + "questions")
        questions, references = synthetic.mt_bench_questions(own), synthetic.mt_bench_references(own)
    if settings.judge_prompts:
        prompts = checked(settings.judge_prompts, key + "judge_prompts", "name", judge_prompt_problem)
    else:
        required(world, key + "judge_prompts")
        prompts = judge_prompts()
    if absent := JUDGE_PROMPTS - {prompt["name"] for prompt in prompts}:
        raise UserError(
            f"prompts are missing: {', '.join(sorted(absent))}",
            where=f"{key}judge_prompts: {settings.judge_prompts}",
        )
    answered = {reference["question_id"] for reference in references}
    for question in questions:
        needs = question["category"] in synthetic.REFERENCE_CATEGORIES
        if needs and question["question_id"] not in answered:
            raise UserError(
                f"question {question['question_id']} ({question['category']}) has no reference answer",
                where=f"{key}references: {settings.references}",
                remedy="math, reasoning and coding are graded with a reference",
            )
    return {
        "mt_bench_questions.jsonl": (questions, settings.questions),
        "mt_bench_references.jsonl": (references, settings.references),
        "judge_prompts.jsonl": (prompts, settings.judge_prompts),
    }


def required(world: World | None, key: str) -> World:
    """Return the synthetic world.

    Raises:
        UserError: there is none.
    """
    if world is None:
        raise UserError(
            "a file is required, since the study has no synthetic world", where=key, remedy="give its path"
        )
    return world


def source(given: str | None) -> dict[str, str]:
    """Return the source of a file."""
    if given is None:
        return {"made_from": "the synthetic world"}
    known = published(given)
    address = {"url": known.url} if known else {}
    return {"file": given, "sha256": sha256_of(Path(given)), **address}


# --- files of the user ----------------------------------------------------------------------------


def checked(given: str, key: str, unique: str, problem: Check) -> list[Row]:
    """Read a JSON list or JSON lines, gzip or not, whose rows have no `problem` and differ in `unique`.

    Raises:
        UserError: naming key, file and row.
    """
    if not Path(given).is_file():
        raise UserError(f"no such file: {given}", where=key, remedy="correct the path")
    rows: list[Row] = []
    first: dict[Any, str] = {}
    for where, row in numbered_rows(given, "train"):
        if reason := problem(row):
            raise UserError(reason, where=f"{key}: {where}", remedy="correct the row")
        if row[unique] in first:
            raise UserError(
                f"the same `{unique}` as in {first[row[unique]]}", where=f"{key}: {where}", remedy="drop one"
            )
        first[row[unique]] = where
        rows.append(row)
    return rows


def alpaca_eval_problem(row: Row) -> str:
    """Return the problem of a row of AlpacaEval's outputs; empty if there is none."""
    return _texts(row, ("instruction", "output", "generator"))


def question_problem(row: Row) -> str:
    """Return the problem of a question in FastChat's format; empty if there is none."""
    if not isinstance(row.get("question_id"), int):
        return "expected an integer `question_id`"
    return _texts(row, ("category",)) or _two_turns(row.get("turns"))


def reference_problem(row: Row) -> str:
    """Return the problem of a reference answer in FastChat's format; empty if there is none."""
    if not isinstance(row.get("question_id"), int):
        return "expected an integer `question_id`"
    try:
        return _two_turns(row["choices"][0]["turns"])
    except (KeyError, IndexError, TypeError):
        return "expected `choices` with `turns`"


def judge_prompt_problem(row: Row) -> str:
    """Return the problem of a judge prompt in FastChat's format; empty if there is none."""
    return _texts(row, ("name", "type", "system_prompt", "prompt_template", "output_format"))


def _texts(row: Row, keys: tuple[str, ...]) -> str:
    lacking = [key for key in keys if not isinstance(row.get(key), str)]
    return f"expected text at {', '.join(f'`{key}`' for key in lacking)}" if lacking else ""


def _two_turns(turns: Any) -> str:
    good = isinstance(turns, list) and len(turns) == 2 and all(isinstance(turn, str) for turn in turns)
    return "" if good else "expected `turns` of two texts"


if __name__ == "__main__":
    run(main)
