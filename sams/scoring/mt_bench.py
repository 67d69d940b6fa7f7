"""Stage `score_mt_bench`: MT-Bench of one model's answers, by FastChat's single-answer grading.

    python -m sams.scoring.mt_bench --answers answers.jsonl --questions question.jsonl \
        --references gpt-4.jsonl --judge-prompts judge_prompts.jsonl --recipe recipe.json --out metrics.json

FastChat's own summary silently drops failed judgments and averages repeated ones, and takes any number as a rating.
Here, an answer without a rating from 1 to 10 is requested again, and a score is given only if each turn of each
question has a rating.
"""

import functools
import hashlib
import logging
import statistics
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

import typer

from sams.data.records import Message
from sams.judge.ask import RETRY, DryRun, Judgment, ask_judge, check_missing, judge_name
from sams.judge.calls import Answer, Call, Reading, Unusable, is_snapshot, text_of, without_thoughts
from sams.judge.noise import judge_standard_error
from sams.judge.store import USUAL_ANSWER_TOKENS
from sams.runtime.errors import UserError
from sams.runtime.files import canonical_json
from sams.runtime.jsonl import write_lines
from sams.runtime.stage import read_recipe, run
from sams.scoring import fastchat_judge as fastchat
from sams.scoring import inputs
from sams.scoring.benchmark import (
    Benchmark,
    ByColumn,
    Figures,
    Score,
    Shown,
    Work,
    named,
    noise_notes,
    spread,
    values_of,
)
from sams.scoring.fastchat_judge import FAILED
from sams.scoring.inputs import Row, input_hashes, numbered, read_rows, some_of, versions
from sams.scoring.job import DryRunOption, MissingOption, RecipeOption, StoreOption, run_scoring
from sams.scoring.mt_bench_inputs import TURNS, read_answers, read_prompts, read_questions, read_references
from sams.scoring.question_set import Decoded, Decoder, Prepared, QuestionSet, sample_label, user
from sams.study.recipes import ScoreRecipe
from sams.study.settings import Judge, MtBench, World
from sams.world import examples as synthetic
from sams.world.judge_prompts import judge_prompts

log = logging.getLogger("mt_bench")

LOWEST, HIGHEST = 1, 10

Turn = tuple[Any, int]  # question id, number of the turn


def score_mt_bench(
    answers: Path,
    questions: Path,
    references: Path,
    judge_prompts: Path,
    *,
    recipe: ScoreRecipe | None = None,
    judgments: Path | None = None,
    judgments_out: Path | None = None,
    accept_missing: int = 0,
    judge_store: Path | None = None,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Grade a model's answers from 1 to 10.

    Args:
        answers: the model's answers, in FastChat's form.
        questions: FastChat's question.jsonl, or questions in its form.
        references: reference answers for the categories math, reasoning and coding.
        judge_prompts: FastChat's judge_prompts.jsonl, or prompts in its form.
        recipe: the judge; None if `judgments` holds every judgment.
        judgments: recorded judgments, in FastChat's form; those of other models are ignored. Missing ones are
            requested from the judge of the recipe if it made the recorded ones.
        judgments_out: file for all judgments.
        accept_missing: number of judgments that may be missing; the score is then that of the others.
        judge_store: file of a remote endpoint's answers, which are not paid again.
        dry_run: only log the estimate of the judge's calls.

    Returns:
        `turn_1`, `turn_2`, `average`, `average_standard_error` (over questions), `categories`, `n_judgments`,
        `n_failed`, missing and doubtful judgments with their reasons, `judge_standard_error` of repeated judgments,
        and the inputs, versions and settings.

    Raises:
        UserError: inputs that do not fit together, or a judgment that is missing after the retries.
        DryRun: at the end of a dry run.
    """
    question_rows = read_questions(questions)
    answer_rows, model = read_answers(answers, question_rows)
    reference_rows = read_references(references, question_rows)
    prompts = read_prompts(judge_prompts)
    matches = fastchat.make_matches(question_rows, model, answer_rows, reference_rows, prompts)

    rated, recorded_by = _recorded(judgments, model, matches) if judgments else ({}, None)
    unrated = [match for match in matches if _turn(match) not in rated or rated[_turn(match)].missing]
    requested = judge_name(recipe.judge) if recipe else ""
    asked = None
    # The recorded name may be that of a snapshot.
    if unrated and recipe is not None and is_snapshot(recorded_by or requested, requested):
        log.info("%d judgments are needed of %s", len(unrated), requested)
        asked = ask_judge(recipe, [_call(match) for match in unrated], store=judge_store, dry_run=dry_run)
        rated.update({_turn(match): judgment for match, judgment in zip(unrated, asked.each, strict=True)})
    if dry_run:
        raise DryRun
    judge = asked.judge if asked else recorded_by or requested
    if recorded_by not in (None, judge):
        raise UserError(f"mixes ratings of {recorded_by} and {judge}", where=str(judgments))
    complete = [rated.get(_turn(match)) or Judgment(_name(match), missing=NOT_RECORDED) for match in matches]
    check_missing(complete, accept_missing, str(judgments or answers), RETRY if asked else RECORDED_ONLY)
    rows = [
        _row(match, model, judge, judgment)
        for match, judgment in zip(matches, complete, strict=True)
        if not judgment.missing
    ]
    if judgments_out is not None:
        write_lines(judgments_out, rows)
    return {
        **summary(rows, {question["question_id"]: question["category"] for question in question_rows}),
        "n_judgments": len(rows),
        "n_failed": len(matches) - len(rows),
        "missing": {judgment.name: judgment.missing for judgment in complete if judgment.missing},
        "doubtful": {judgment.name: judgment.doubt for judgment in complete if judgment.doubt},
        "judge_standard_error": judge_standard_error(complete),
        "judge": judge,
        "judge_calls": asked.facts if asked else None,
        "model_id": model,
        "references": sorted({str(row.get("model_id")) for row in reference_rows.values()}),
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
    """Return mean ratings by turn, over all and by category, as FastChat's show_result.py computes them.

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

NOT_RECORDED = "not among the recorded judgments"
RECORDED_ONLY = "give judgments of these answers, or a --recipe with the judge of the recorded ones"


def _turn(match: Any) -> Turn:
    return match.question["question_id"], fastchat.turn_of(match)


def _name(match: Any) -> str:
    return "question {} turn {}".format(*_turn(match))


def _call(match: Any) -> Call:
    """Return the call that rates a match."""
    _, messages, fields = fastchat.prompt_of(match)
    return Call(_name(match), messages, functools.partial(_read, match), fields)


def _read(match: Any, answer: Answer) -> Reading:
    """Read the rating in an answer of the judge."""
    return reading_of(match, text_of(answer))


def reading_of(match: Any, judgment: str) -> Reading:
    """Return the rating in a judgment, as FastChat reads it: the first `[[n]]`, else the first `[n]`.

    It is doubtful if the judgment holds another rating too, or only `[n]`, which may be any number in brackets.
    Thoughts are left out.

    Raises:
        Unusable: no rating, or one that is not from 1 to 10.
    """
    judgment = without_thoughts(judgment)
    try:
        rating = fastchat.rating_of(match, judgment)
    except Exception:  # FastChat evaluates the text of the rating
        raise Unusable("a rating that is no number") from None
    if rating == FAILED:
        raise Unusable("no rating")
    if not LOWEST <= rating <= HIGHEST:
        raise Unusable(f"a rating of {rating:g}, not from {LOWEST} to {HIGHEST}")
    ratings = fastchat.ratings_in(judgment)
    if len(ratings) > 1:
        return Reading(rating, doubt="several ratings, of which the first counts")
    return Reading(rating, doubt="" if ratings else "a rating in single brackets")


def _recorded(path: Path, model: str, matches: Sequence[Any]) -> tuple[dict[Turn, Judgment], str | None]:
    """Read recorded ratings of a model, and the name of their judge.

    FastChat builds each prompt and parses each rating again, to check that the record belongs to these answers.

    A judgment without a rating from 1 to 10 counts as missing.

    Raises:
        UserError: several ratings of one turn, several judges, or a row of other answers, prompts or rating.
    """
    by_turn = {_turn(match): match for match in matches}
    rated: dict[Turn, Judgment] = {}
    judges: set[str] = set()
    for where, row in numbered(path):
        if row.get("model") != model or row.get("score") == FAILED:
            continue
        turn: Any = (row.get("question_id"), row.get("turn"))
        match = by_turn.get(turn)
        name = f"question {turn[0]} turn {turn[1]}"
        if match is None:
            raise UserError(f"{name} is not among the questions", where=where)
        if turn in rated and not rated[turn].missing:
            raise UserError(
                f"rates {name} of {model} again", where=where, remedy="keep one rating of each turn"
            )
        texts = tuple(row.get("judgments") or [inputs.text_of(row, "judgment", where)])
        try:
            rated[turn] = Judgment(name, tuple(reading_of(match, text) for text in texts), texts)
        except Unusable as error:
            rated[turn] = Judgment(name, missing=str(error))
        score = row.get("score") if rated[turn].missing else rated[turn].value
        for key, expected in (("user_prompt", fastchat.prompt_of(match)[0]), ("score", score)):
            if row.get(key) != expected:
                raise UserError(
                    f"of {name} is not what follows from the answers, questions and prompts given",
                    where=f"{where}, key '{key}'",
                    remedy="give the files that the judgments were made from",
                )
        judge = row.get("judge")
        judges.add(str(judge[0] if isinstance(judge, list) and judge else judge))
    if len(judges) > 1:
        raise UserError(f"mixes ratings of {some_of(sorted(judges))}", where=str(path))
    return rated, judges.pop() if judges else None


def _row(match: Any, model: str, judge: str, judgment: Judgment) -> Row:
    """Return a judgment in FastChat's form."""
    return {
        "question_id": match.question["question_id"],
        "model": model,
        "judge": [judge, match.judge.prompt_template["name"]],
        "user_prompt": fastchat.prompt_of(match)[0],
        "judgment": judgment.text,
        **({"judgments": list(judgment.texts)} if len(judgment.texts) > 1 else {}),
        "score": judgment.value,
        "turn": fastchat.turn_of(match),
        "tstamp": time.time(),
    }


# --- questions and answers ------------------------------------------------------------------------


class Dialogues(QuestionSet):
    """MT-Bench's questions of two turns, and a model's answers, each turn after the answer to the one before."""

    key = "mt_bench"
    file = "mt_bench_questions.jsonl"
    references = "mt_bench_references.jsonl"
    judge_prompts = "judge_prompts.jsonl"

    def prepare(self, settings: MtBench, world: World | None) -> dict[str, Prepared]:
        """Return questions, references and judge prompts, which the scorer must be able to read together."""
        if (settings.questions is None) != (settings.references is None):
            lacking = "questions" if settings.questions is None else "references"
            raise UserError(
                "questions and references belong together: give both files or neither",
                where=self.where(lacking),
            )
        if settings.questions and settings.references:
            with self.naming("questions"):
                questions = read_questions(Path(settings.questions))
            with self.naming("references"):
                references = read_rows(Path(settings.references))
                read_references(Path(settings.references), questions)
        else:
            own = self.world(world, "questions")
            questions, references = synthetic.mt_bench_questions(own), synthetic.mt_bench_references(own)
        if settings.judge_prompts:
            with self.naming("judge_prompts"):
                prompts = read_rows(Path(settings.judge_prompts))
                read_prompts(Path(settings.judge_prompts))
        else:
            self.world(world, "judge_prompts")
            prompts = judge_prompts()
        return {
            self.file: Prepared(questions, settings.questions),
            self.references: Prepared(references, settings.references),
            self.judge_prompts: Prepared(prompts, settings.judge_prompts),
        }

    def read(self, folder: Path) -> tuple[list[Row], Path]:
        """Read rows {question_id, category, turns}; return them and their file."""
        path = folder / self.file
        return read_questions(path), path

    def answer(
        self, decoder: Decoder, rows: Sequence[Row], name: str
    ) -> tuple[list[Row], dict[str, Decoded]]:
        """Return answers in FastChat's form, and the answers by the name of their turn; samples are `choices`."""
        dialogues = [_dialogues(decoder, rows, sample) for sample in range(decoder.decoding.samples)]
        answers = {
            f"question {row['question_id']}, {sample_label(f'turn {turn}', sample)}": answer
            for sample, answered in enumerate(dialogues)
            for row, turns in zip(rows, answered, strict=True)
            for turn, answer in enumerate(turns, start=1)
        }
        outputs = [
            _fastchat_row(row, name, [[answer.text for answer in turns] for turns in samples])
            for row, *samples in zip(rows, *dialogues, strict=True)
        ]
        return outputs, answers


def _dialogues(decoder: Decoder, rows: Sequence[Row], sample: int) -> list[list[Decoded]]:
    """Return the answers to all turns of each question."""
    settings = decoder.decoding
    temperatures = [settings.category_temperatures.get(row["category"], settings.temperature) for row in rows]
    conversations: list[list[Message]] = [[] for _ in rows]
    dialogues: list[list[Decoded]] = [[] for _ in rows]
    for turn in range(TURNS):
        for conversation, row in zip(conversations, rows, strict=True):
            conversation.append(user(row["turns"][turn]))
        label = sample_label(f"mt_bench turn {turn + 1}", sample)
        answers = decoder.answer(conversations, temperatures, label)
        for conversation, dialogue, answer in zip(conversations, dialogues, answers, strict=True):
            conversation.append({"role": "assistant", "content": answer.text})
            dialogue.append(answer)
    return dialogues


def _fastchat_row(question: Row, name: str, samples: list[list[str]]) -> Row:
    content = canonical_json([question["question_id"], name, samples])
    return {
        "question_id": question["question_id"],
        "answer_id": hashlib.sha256(content.encode()).hexdigest()[:22],
        "model_id": name,
        "choices": [{"index": index, "turns": turns} for index, turns in enumerate(samples)],
        "tstamp": 0.0,  # required by the form; a constant makes the files of equal answers equal
    }


QUESTIONS = Dialogues()


# --- tables and pages -----------------------------------------------------------------------------


class MtBenchScores(Benchmark):
    """MT-Bench, by single-answer grading."""

    name, title = "mt_bench", "MT-Bench"
    answers, judged, judgment = "mt_bench/answers.jsonl", "mt_bench/judgments.jsonl", "rating"
    options: ClassVar = {
        "questions": "{questions}/mt_bench_questions.jsonl",
        "references": "{questions}/mt_bench_references.jsonl",
        "judge_prompts": "{questions}/judge_prompts.jsonl",
        "judgments_out": "{output.judged}",
    }
    scores = (Score("mt_bench", "mt_bench", "average", "average_standard_error", 2, "MT-Bench", "1–10"),)
    in_every_table = True
    page_scores = (("average", "average", 2), ("first turn", "turn_1", 2), ("second turn", "turn_2", 2))
    compared = ("average", "of 10", "questions")
    verdict_note = "Ratings are 1 to 10 for each turn. Equal: the same mean of both turns"

    def work(self, settings: MtBench, judge: Judge) -> Work:
        """Return the work of 80 questions; prompts are the mean of 480 recorded ones (3,101 characters)."""
        turns = 80 * TURNS
        return Work(turns, turns * judge.repeats, prompt_tokens=775, answer_tokens=USUAL_ANSWER_TOKENS)

    def items(self, path: Path) -> ByColumn:
        """Return the mean rating of both turns of each question; questions with a failed turn are left out.

        Raises:
            UserError: the file holds judgments of several models.
        """
        turns: dict[str, dict[int, float]] = {}
        models = set()
        for row in read_rows(path):
            models.add(row.get("model"))
            if row["score"] != FAILED:
                turns.setdefault(str(row["question_id"]), {})[row["turn"]] = row["score"]
        if len(models) > 1:
            raise UserError(f"judgments of {len(models)} models, expected one", where=str(path))
        means = {
            question: (rated[1] + rated[2]) / 2 for question, rated in turns.items() if len(rated) == TURNS
        }
        return {"mt_bench": means}

    def notes(self, settings: MtBench, figures: Figures) -> list[str]:
        """Return the number of judgments, of missing and doubtful ones with their reasons, and the judge's noise."""
        counts = spread(values_of(figures, "n_judgments"))
        note = f"MT-Bench: mean of both turns, 1 to 10, over {counts} judgments; "
        note += f"{named(figures, 'missing')}; {named(figures, 'doubtful')}."
        return [note, *noise_notes("MT-Bench", figures, "average_standard_error")]

    def shown(self, run: Path, questions: Path) -> dict[str, Shown]:
        """Return questions with the answers to both turns, and the judge's rating and explanation for each."""
        rated = {(str(row["question_id"]), row["turn"]): row for row in read_rows(run / self.judged)}
        asked = {str(row["question_id"]): row for row in read_rows(questions / QUESTIONS.file)}
        shown = {}
        for row in read_rows(run / self.answers):
            key = str(row["question_id"])
            of_turns = [rated.get((key, turn)) for turn in range(1, TURNS + 1)]
            judges = [row["judge"][0] for row in of_turns if row]
            shown[key] = Shown(
                name=f"question {key}, {asked[key]['category']}",
                questions=asked[key]["turns"],
                answers=row["choices"][0]["turns"],
                verdicts=[f"rated {row['score']:g}" if row else "not rated" for row in of_turns],
                explanations=[row["judgment"] if row else "" for row in of_turns],
                judge=judges[0] if judges else "",
            )
        return {key: shown[key] for key in asked if key in shown}


BENCHMARK = MtBenchScores()


# --- command line ---------------------------------------------------------------------------------


def main(
    answers: Annotated[Path, typer.Option(help="Answers of the model, FastChat's JSONL, gzip or not.")],
    questions: Annotated[Path, typer.Option(help="Questions (question.jsonl).")],
    references: Annotated[Path, typer.Option(help="Reference answers.")],
    judge_prompts: Annotated[Path, typer.Option(help="Judge prompts (judge_prompts.jsonl).")],
    out: Annotated[Path, typer.Option(help="File for the figures (metrics.json).")],
    recipe: RecipeOption = None,
    judgments: Annotated[Path | None, typer.Option(help="Recorded judgments.")] = None,
    judgments_out: Annotated[Path | None, typer.Option(help="File for all judgments.")] = None,
    accept_missing: MissingOption = 0,
    judge_store: StoreOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Score a model's answers with MT-Bench."""
    settings = read_recipe(recipe, ScoreRecipe) if recipe else None
    score = functools.partial(
        score_mt_bench,
        answers,
        questions,
        references,
        judge_prompts,
        judgments=judgments,
        judgments_out=judgments_out,
        accept_missing=max(accept_missing, settings.accept_missing if settings else 0),
    )
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
