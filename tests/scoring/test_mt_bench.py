import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sams.runtime.errors import UserError
from sams.scoring.mt_bench import score_mt_bench
from sams.study.recipes import ScoreRecipe
from sams.study.settings import Judge, World
from sams.world.examples import mt_bench_questions, mt_bench_references
from tests.judge.endpoint import KEY, Endpoint, serving

Rows = list[dict[str, Any]]
LOCAL = ScoreRecipe(judge=Judge(), world=World())
CATEGORIES = ("writing", "math")


def written(path: Path, rows: Rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def answer(question: int, *turns: str, model: str = "ours") -> dict[str, Any]:
    return {
        "question_id": question,
        "answer_id": "a",
        "model_id": model,
        "choices": [{"index": 0, "turns": list(turns)}],
    }


@pytest.fixture
def inputs(tmp_path: Path, judge_prompts: Path) -> dict[str, Any]:
    """Two questions, one of which is graded with a reference; both answers to that one are right."""
    wanted = {row["category"]: row for row in mt_bench_questions(World())}
    questions = [wanted[category] for category in CATEGORIES]
    math = questions[1]["question_id"]
    references = [row for row in mt_bench_references(World()) if row["question_id"] == math]
    answers = [
        answer(questions[0]["question_id"], "no idea", "none"),
        answer(math, *references[0]["choices"][0]["turns"]),
    ]
    return {
        "answers": written(tmp_path / "answers.jsonl", answers),
        "questions": written(tmp_path / "questions.jsonl", questions),
        "references": written(tmp_path / "references.jsonl", references),
        "judge_prompts": judge_prompts,
    }


def edited(path: Path, edit: Any) -> None:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    edit(rows)
    written(path, rows)


def test_answers_are_rated_and_rated_again_from_the_record(inputs: dict[str, Any], tmp_path: Path) -> None:
    record = tmp_path / "judgments.jsonl"
    first = score_mt_bench(**inputs, recipe=LOCAL, judgments_out=record)
    assert first["categories"] == {"writing": 1.0, "math": 10.0}
    assert first["turn_1"] == first["turn_2"] == first["average"] == 5.5
    assert first["average_standard_error"] == pytest.approx(4.5)
    assert (first["n_judgments"], first["n_failed"], first["judge"]) == (4, 0, "local judge")
    again = score_mt_bench(**inputs, judgments=record)
    assert {**again, "recipe": 0, "inputs": 0} == {**first, "recipe": 0, "inputs": 0}

    # A record with a gap is filled by the judge that made it, and by no other.
    edited(record, lambda rows: rows[1].update(score=-1, judgment="$ERROR$"))
    with pytest.raises(UserError, match=r"1 of 4 judgments are missing \(question"):
        score_mt_bench(**inputs, judgments=record)
    other = ScoreRecipe(judge=Judge(kind="openai", model="other"), world=None)
    with pytest.raises(UserError, match=r"1 of 4 judgments are missing"):
        score_mt_bench(**inputs, judgments=record, recipe=other)
    assert score_mt_bench(**inputs, judgments=record, recipe=LOCAL)["average"] == 5.5
    partial = score_mt_bench(**inputs, judgments=record, accept_missing=1)
    assert (partial["n_judgments"], partial["n_failed"]) == (3, 1)


def repeat(rows: Rows) -> None:
    rows.append(dict(rows[0]))


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (repeat, "row 5: rates question"),
        (lambda rows: rows[0].update(score=7), "row 1, key 'score'"),
        (lambda rows: rows[0].update(user_prompt="?"), "row 1, key 'user_prompt'"),
        (lambda rows: rows[0].update(turn=3), "turn 3 is not among the questions"),
        (
            lambda rows: rows[0].update(judge=["gpt-4", "single-v1"]),
            "mixes ratings of 'gpt-4', 'local judge'",
        ),
        (lambda rows: rows.pop(), "1 of 4 judgments"),
    ],
)
def test_a_record_that_does_not_fit_is_refused(
    inputs: dict[str, Any], tmp_path: Path, edit: Any, problem: str
) -> None:
    record = tmp_path / "judgments.jsonl"
    score_mt_bench(**inputs, recipe=LOCAL, judgments_out=record)
    edited(record, edit)
    with pytest.raises(UserError, match=problem):
        score_mt_bench(**inputs, judgments=record)


@pytest.mark.parametrize(
    ("name", "edit", "problem"),
    [
        ("answers", lambda rows: rows.pop(), "1 of 2 questions have no answer"),
        ("answers", repeat, "row 3: answers question"),
        ("answers", lambda rows: rows.append(answer(999, "a", "b")), "unknown questions: 999"),
        ("answers", lambda rows: rows[0].update(model_id="b"), "expected answers of one model"),
        ("answers", lambda rows: rows[0]["choices"][0]["turns"].pop(), "row 1, key 'turns': expected 2"),
        ("answers", lambda rows: rows[0].update(choices=[]), "row 1, key 'choices'"),
        ("references", lambda rows: rows[0].update(question_id=999), "no reference answer to questions"),
        ("questions", repeat, "questions occur more than once"),
        ("questions", lambda rows: rows[0].update(turns=["one", " "]), "row 1, key 'turns'"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(
    inputs: dict[str, Any], name: str, edit: Any, problem: str
) -> None:
    edited(inputs[name], edit)
    with pytest.raises(UserError, match=problem):
        score_mt_bench(**inputs, recipe=LOCAL)


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Endpoint, ScoreRecipe]]:
    """An endpoint, whose texts a test sets, and its recipe."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serving(Endpoint()) as endpoint:
        settings = {"kind": "openai", "base_url": endpoint.base_url, "model": "judge", "concurrency": 1}
        yield endpoint, ScoreRecipe(judge=Judge.model_validate(settings), world=None)


def texts(*contents: str) -> Callable[[str, int], str]:
    """Answer with texts in turn, of which the last repeats."""
    left = list(contents)
    return lambda request, time: f"text:{left.pop(0) if len(left) > 1 else left[0]}"


def first_item(*contents: str, others: str) -> Callable[[str, int], str]:
    """Answer the request that comes first with texts in turn, and all others with one text."""
    first: list[str] = []

    def fault(request: str, time: int) -> str:
        first.append(request)
        return f"text:{[*contents, *[others] * time][time - 1] if request == first[0] else others}"

    return fault


def test_a_judgment_without_a_rating_is_requested_again(
    inputs: dict[str, Any], judge: tuple[Endpoint, ScoreRecipe]
) -> None:
    endpoint, recipe = judge
    endpoint.faults = texts("I would rather not say.", "", "[[4]]")
    assert score_mt_bench(**inputs, recipe=recipe)["average"] == 4.0
    assert endpoint.billed == 6  # four judgments, and the first two answers had no rating
    request = endpoint.requests[0][1]
    assert request["temperature"] == 0 and request["max_tokens"] == 2048
    assert [message["role"] for message in request["messages"]] == ["system", "user"]


def test_a_judge_that_never_rates_gives_no_score(
    inputs: dict[str, Any], judge: tuple[Endpoint, ScoreRecipe]
) -> None:
    endpoint, recipe = judge
    endpoint.faults = texts("[[85]]")
    with pytest.raises(UserError, match=r"4 of 4 judgments are missing .*a rating of 85, not from 1 to 10"):
        score_mt_bench(**inputs, recipe=recipe, accept_missing=9)
    assert endpoint.billed == 4 * 3


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Rating: [[85]]", "a rating of 85, not from 1 to 10"),
        ("Rating: [[0]]", "a rating of 0, not from 1 to 10"),
        ("Rating: [[08]]", "a rating that is no number"),
        ("Rating: [[nan]]", "no rating"),
        ("<think>First I would say [[3]]", "no text"),
    ],
)
def test_what_is_not_a_rating_is_requested_again_and_then_missing(
    inputs: dict[str, Any], judge: tuple[Endpoint, ScoreRecipe], tmp_path: Path, text: str, reason: str
) -> None:
    endpoint, recipe = judge
    endpoint.faults = first_item(text, text, text, others="[[6]]")
    store = tmp_path / "store.jsonl"
    metrics = score_mt_bench(**inputs, recipe=recipe, accept_missing=1, judge_store=store)
    assert (metrics["n_judgments"], metrics["n_failed"], metrics["average"]) == (3, 1, 6.0)
    [(name, said)] = metrics["missing"].items()
    assert re.fullmatch(r"question \d+ turn 1", name) and said == reason
    # Nothing of it was stored: the next scoring requests that judgment alone.
    assert score_mt_bench(**inputs, recipe=recipe, judge_store=store)["n_failed"] == 0
    assert endpoint.billed == 3 + 3 + 1


@pytest.mark.parametrize(
    ("text", "rating", "doubt"),
    [
        ("Not [[3]]. On reflection: [[7]]", 3.0, "several ratings, of which the first counts"),
        ("[[7]] and again [[7.0]]", 7.0, ""),
        ("The answer is [7] of ten", 7.0, "a rating in single brackets"),
        ("<think>At first [[3]]</think>Rating: [[7]]", 7.0, ""),
        ("At first [[3]], as in [1]\n</think>\n\nRating: [[7]]", 7.0, ""),
        ("As [1] says, good. Rating: [[7.5]]", 7.5, ""),
    ],
)
def test_a_doubtful_rating_counts_and_is_named(
    inputs: dict[str, Any],
    judge: tuple[Endpoint, ScoreRecipe],
    tmp_path: Path,
    text: str,
    rating: float,
    doubt: str,
) -> None:
    endpoint, recipe = judge
    endpoint.faults = texts(text)
    record = tmp_path / "judgments.jsonl"
    metrics = score_mt_bench(**inputs, recipe=recipe, judgments_out=record)
    assert metrics["average"] == rating
    assert list(metrics["doubtful"].values()) == [doubt] * (4 if doubt else 0)
    again = score_mt_bench(**inputs, judgments=record)
    assert (again["average"], again["doubtful"]) == (rating, metrics["doubtful"])


def test_a_recorded_rating_out_of_range_counts_as_missing_until_a_later_row_rates_the_turn(
    inputs: dict[str, Any], tmp_path: Path
) -> None:
    record = tmp_path / "judgments.jsonl"
    score_mt_bench(**inputs, recipe=LOCAL, judgments_out=record)
    good = json.loads(record.read_text().splitlines()[0])
    edited(record, lambda rows: rows[0].update(score=85, judgment="Rating: [[85]]"))
    with pytest.raises(UserError, match=r"1 of 4 .* turn 1: a rating of 85, not from 1 to 10"):
        score_mt_bench(**inputs, judgments=record)
    assert score_mt_bench(**inputs, judgments=record, accept_missing=1)["n_judgments"] == 3
    edited(record, lambda rows: rows.append(good))
    assert score_mt_bench(**inputs, judgments=record)["n_judgments"] == 4


def test_repeated_judgments_are_averaged_and_give_the_judges_error(
    inputs: dict[str, Any], judge: tuple[Endpoint, ScoreRecipe], tmp_path: Path
) -> None:
    endpoint, recipe = judge
    recipe = recipe.model_copy(update={"judge": recipe.judge.model_copy(update={"repeats": 3})})
    endpoint.faults = first_item("[[4]]", "[[6]]", "[[8]]", others="[[5]]")
    record = tmp_path / "judgments.jsonl"
    metrics = score_mt_bench(**inputs, recipe=recipe, judgments_out=record)
    assert endpoint.billed == 12 and metrics["average"] == pytest.approx((6 + 3 * 5) / 4)
    assert metrics["judge_standard_error"] == pytest.approx((4 / 3) ** 0.5 / 4)
    again = score_mt_bench(**inputs, judgments=record)
    assert again["judge_standard_error"] == metrics["judge_standard_error"]
