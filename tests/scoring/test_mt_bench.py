import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sams.runtime.errors import UserError
from sams.scoring import mt_bench
from sams.scoring.mt_bench import score_mt_bench
from sams.study.recipes import ScoreRecipe
from sams.study.settings import Judge, World
from sams.world.examples import mt_bench_questions, mt_bench_references

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
    with pytest.raises(UserError, match="1 of 4 judgments of ours are missing or failed: 'question"):
        score_mt_bench(**inputs, judgments=record)
    other = ScoreRecipe(judge=Judge(kind="openai", model="other"), world=None)
    with pytest.raises(UserError, match=r"judge: local judge, as for the others"):
        score_mt_bench(**inputs, judgments=record, recipe=other)
    assert score_mt_bench(**inputs, judgments=record, recipe=LOCAL)["average"] == 5.5
    partial = score_mt_bench(**inputs, judgments=record, accept_failed=True)
    assert (partial["n_judgments"], partial["n_failed"]) == (3, 1)


def repeat(rows: Rows) -> None:
    rows.append(dict(rows[0]))


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (repeat, "line 5: rates question"),
        (lambda rows: rows[0].update(score=7), "line 1, key 'score'"),
        (lambda rows: rows[0].update(user_prompt="?"), "line 1, key 'user_prompt'"),
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
        ("answers", repeat, "line 3: answers question"),
        ("answers", lambda rows: rows.append(answer(999, "a", "b")), "unknown questions: 999"),
        ("answers", lambda rows: rows[0].update(model_id="b"), "expected answers of one model"),
        ("answers", lambda rows: rows[0]["choices"][0]["turns"].pop(), "line 1, key 'turns': expected 2"),
        ("answers", lambda rows: rows[0].update(choices=[]), "line 1, key 'choices'"),
        ("references", lambda rows: rows[0].update(question_id=999), "no reference answer to questions"),
        ("questions", repeat, "questions occur more than once"),
        ("questions", lambda rows: rows[0].update(turns=["one", " "]), "line 1, key 'turns'"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(
    inputs: dict[str, Any], name: str, edit: Any, problem: str
) -> None:
    edited(inputs[name], edit)
    with pytest.raises(UserError, match=problem):
        score_mt_bench(**inputs, recipe=LOCAL)


def judge_that_says(monkeypatch: pytest.MonkeyPatch, *contents: str | None) -> list[dict[str, Any]]:
    """Replace the judge by one with a list of answers, of which the last repeats; return its requests."""
    asked: list[dict[str, Any]] = []

    def create(**request: Any) -> Any:
        asked.append(request)
        message = SimpleNamespace(content=contents[min(len(asked), len(contents)) - 1])
        return SimpleNamespace(choices=[SimpleNamespace(message=message)])

    judge = SimpleNamespace(chat=SimpleNamespace(completions=SimpleNamespace(create=create)))
    monkeypatch.setattr(mt_bench, "judge_client", lambda base_url, token: judge)
    return asked


def test_a_judgment_without_a_rating_is_asked_for_again(
    inputs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = judge_that_says(monkeypatch, "I would rather not say.", None, "[[4]]")
    assert score_mt_bench(**inputs, recipe=LOCAL)["average"] == 4.0
    assert len(asked) == 6  # four judgments, and the first two answers had no rating
    assert asked[0]["temperature"] == 0 and asked[0]["max_tokens"] == 2048
    assert [message["role"] for message in asked[0]["messages"]] == ["system", "user"]


def test_a_judge_that_never_rates_gives_no_score(
    inputs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = judge_that_says(monkeypatch, None)
    with pytest.raises(UserError, match="4 of 4 judgments of ours are missing or failed"):
        score_mt_bench(**inputs, recipe=LOCAL, accept_failed=True)
    assert len(asked) == 4 * mt_bench.ATTEMPTS
