import itertools
import json
import random
import re
import shutil
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sams.judge.calls import Unusable
from sams.runtime.errors import UserError
from sams.scoring.own_prompts import (
    BENCHMARK,
    QUESTIONS,
    figures,
    interval,
    reading_of,
    request_text,
    score_own_prompts,
)
from sams.study.recipes import ScoreRecipe
from sams.study.settings import Judge, OwnPrompts, World
from sams.tables.side_by_side import section
from sams.world.examples import mt_bench_questions, mt_bench_references
from tests.judge.endpoint import KEY, Endpoint, serving

Rows = list[dict[str, Any]]
LOCAL = ScoreRecipe(judge=Judge(), world=World())


def written(path: Path, rows: Rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def prompts_of(path: Path, **settings: Any) -> Rows:
    """Return the prepared rows of a file of prompts."""
    return [*QUESTIONS.prepare(OwnPrompts(prompts=str(path), **settings), None)[QUESTIONS.file].rows]


@pytest.fixture
def right() -> list[tuple[str, str]]:
    """Questions of the world with right answers."""
    references = {row["question_id"]: row["choices"][0]["turns"][0] for row in mt_bench_references(World())}
    return [
        (row["turns"][0], references[row["question_id"]])
        for row in mt_bench_questions(World())
        if row["question_id"] in references
    ][:6]


@pytest.fixture
def files(tmp_path: Path, right: list[tuple[str, str]]) -> dict[str, Path]:
    """Six prompts: the model wins three, loses one, ties one, and answers one as the start model does."""
    ours = [right[0][1], right[1][1], right[2][1], "no idea", "no idea", right[5][1]]
    theirs = ["no", "no", "no", right[3][1], "I cannot say", right[5][1]]
    given = [{"prompt": text, "category": "xy"[index % 2]} for index, (text, _) in enumerate(right)]
    rows = prompts_of(written(tmp_path / "prompts.jsonl", given))
    answers = {
        name: [{"id": row["id"], "answer": text} for row, text in zip(rows, texts, strict=True)]
        for name, texts in (("answers", ours), ("start", theirs))
    }
    return {
        "questions": written(tmp_path / "own_prompts.jsonl", rows),
        **{name: written(tmp_path / f"{name}.jsonl", of) for name, of in answers.items()},
    }


def test_answers_are_compared_with_the_start_models_in_both_orders(
    files: dict[str, Path], tmp_path: Path
) -> None:
    judged = tmp_path / "judgments.jsonl"
    metrics = score_own_prompts(**files, recipe=LOCAL, judgments_out=judged)
    assert metrics["win_rate"] == pytest.approx(100 * (3 + 0.5 + 0.5) / 6)
    counts = {key: metrics[key] for key in metrics if key.startswith("n_")}
    assert counts == {
        "n_total": 6,
        "n_missing": 0,
        "n_identical": 1,
        "n_wins": 3,
        "n_losses": 1,
        "n_ties": 2,
        "n_inconsistent": 0,
    }
    assert metrics["tie_share"] == pytest.approx(100 * 2 / 10) and metrics["first_wins"] == 50
    assert metrics["judge"] == "local judge"
    assert metrics["categories"] == {"x": pytest.approx(100 * 2.5 / 3), "y": pytest.approx(100 * 1.5 / 3)}
    items = BENCHMARK.items(judged)["own_prompts"]
    assert list(items.values()) == [100, 100, 100, 0, 50, 50]
    assert statistics.fmean(items.values()) == pytest.approx(metrics["win_rate"])
    assert metrics["win_rate_se"] == pytest.approx(statistics.stdev(items.values()) / 6**0.5)


def test_the_start_model_needs_no_judge_and_has_half_of_the_wins(
    files: dict[str, Path], tmp_path: Path
) -> None:
    metrics = score_own_prompts(files["start"], files["questions"], judgments_out=tmp_path / "j.jsonl")
    assert (metrics["win_rate"], metrics["win_rate_se"], metrics["judge"]) == (50, None, None)
    assert set(BENCHMARK.items(tmp_path / "j.jsonl")["own_prompts"].values()) == {50.0}


@pytest.mark.parametrize("equal", [False, True])
def test_the_page_shows_both_answers_with_the_verdicts(
    files: dict[str, Path], tmp_path: Path, equal: bool
) -> None:
    folders = {name: tmp_path / name for name in ("dpo", "sft")}
    figures = []
    for name, folder in folders.items():
        given = files["start"] if equal or name == "sft" else files["answers"]
        (folder / "own_prompts").mkdir(parents=True)
        shutil.copy(given, folder / BENCHMARK.answers)
        start = None if name == "sft" else files["start"]
        scored = score_own_prompts(
            given, files["questions"], start=start, recipe=LOCAL, judgments_out=folder / BENCHMARK.judged
        )
        figures.append(scored)
    shown = section(BENCHMARK, folders, figures, files["questions"].parent)
    assert shown.judge == "local judge" and figures[0]["judge"] == "local judge"
    assert [item.base.verdicts for item in shown.items] == [["the baseline"]] * 6
    if equal:
        assert {*shown.counts} == {"equal"} and figures[0]["win_rate"] == 50
    else:
        assert shown.counts == {"method": 3, "base": 1, "equal": 2}
        assert shown.items[0].method.verdicts == ["beats the start model's in both orders"]
        assert "With this answer shown second:\nAnswer A earns 0.00" in shown.items[0].method.explanations[0]


# --- a judge's endpoint ---------------------------------------------------------------------------


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Endpoint, ScoreRecipe]]:
    """An endpoint, whose texts a test sets, and its recipe."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serving(Endpoint()) as endpoint:
        settings = {
            "kind": "openai",
            "base_url": endpoint.base_url,
            "model": "judge",
            "concurrency": 1,
            "retry_seconds": 0.001,
        }
        yield endpoint, ScoreRecipe(judge=Judge.model_validate(settings), world=None)


def test_a_judge_that_prefers_a_position_finds_no_winner(
    files: dict[str, Path], judge: tuple[Endpoint, ScoreRecipe]
) -> None:
    endpoint, recipe = judge
    endpoint.faults = lambda request, time: "text:Both are fine.\n\n[[A]]"
    metrics = score_own_prompts(**files, recipe=recipe)
    assert (metrics["win_rate"], metrics["n_inconsistent"], metrics["n_ties"]) == (50, 5, 1)
    assert (metrics["first_wins"], metrics["tie_share"]) == (100, 0)
    assert endpoint.billed == 10  # both orders of five prompts; equal answers need no call


def test_a_prompt_without_a_verdict_is_missing(
    files: dict[str, Path], judge: tuple[Endpoint, ScoreRecipe], tmp_path: Path
) -> None:
    endpoint, recipe = judge
    refused: list[str] = []

    def fault(request: str, time: int) -> str:
        refused.append(request)
        return "text:I like both." if request == refused[0] else "text:[[B]]"

    endpoint.faults = fault
    with pytest.raises(UserError, match=r"1 of 6 judgments are missing \(prompt 1: no verdict\)"):
        score_own_prompts(**files, recipe=recipe)
    metrics = score_own_prompts(**files, recipe=recipe, accept_missing=1, judgments_out=tmp_path / "j.jsonl")
    assert (metrics["n_total"], metrics["n_missing"], metrics["missing"]) == (
        5,
        1,
        {"prompt 1": "no verdict"},
    )
    assert "1" not in BENCHMARK.items(tmp_path / "j.jsonl")["own_prompts"]


@pytest.mark.parametrize(
    ("text", "value", "doubt"),
    [
        ("A is right.\n[[A]]", 1.0, False),
        ("[[B]]", 0.0, False),
        ("[[C]]", 0.5, False),
        ("At first [[B]], but then:\n[[A]]", 1.0, True),
        ("[[A]] ... [[A]]", 1.0, False),
    ],
)
def test_the_last_verdict_counts(text: str, value: float, doubt: bool) -> None:
    assert reading_of("A", text).value == value
    assert reading_of("B", text).value == 1 - value
    assert bool(reading_of("A", text).doubt) == doubt
    with pytest.raises(Unusable, match="no verdict"):
        reading_of("A", "A is better: [A]")


# --- figures --------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [10, 40])
@pytest.mark.parametrize("shares", [(0.5, 0.0, 0.5), (0.9, 0.05, 0.05), (0.3, 0.5, 0.2)])
def test_the_interval_holds_the_true_win_rate(count: int, shares: tuple[float, float, float]) -> None:
    rng = random.Random(count)
    truth, held = shares[0] + shares[1] / 2, 0
    for _ in range(2000):
        low, high = interval(rng.choices([1.0, 0.5, 0.0], shares, k=count))
        held += low <= truth <= high
    assert held / 2000 >= 0.93


def test_the_interval_of_wins_alone_is_no_point() -> None:
    low, high = interval([1.0] * 10)
    assert 0.6 < low < 0.9 and high == 1


def test_lean_to_length_counts_decided_prompts_only() -> None:
    rows = [
        {"value": value, "longer": longer, "category": "", "verdicts": [[value], [value]]}
        for value, longer in ((1.0, 1), (0.0, -1), (1.0, -1), (0.5, 1), (1.0, 0))
    ]
    assert figures(rows)["longer_wins"] == pytest.approx(100 * 2 / 3)


def test_repeated_verdicts_count_each_prompt_once() -> None:
    verdicts = {"for ours": [[1, 1, 1], [1, 1, 0.5]], "by position": [[1, 1, 1], [1, 0, 0]], "equal": []}
    rows = [
        {
            "value": statistics.fmean(value for order in of for value in order) if of else 0.5,
            "verdicts": of,
            "longer": 0,
            "category": "",
        }
        for of in verdicts.values()
    ]
    metrics = figures(rows)
    counts = [metrics[f"n_{name}"] for name in ("wins", "losses", "ties", "inconsistent", "total")]
    assert counts == [1, 0, 1, 1, 3]


# --- prompts --------------------------------------------------------------------------------------


def test_prompts_are_read_in_the_projects_forms(tmp_path: Path) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello {name}"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": "Why?"},
    ]
    path = written(
        tmp_path / "prompts.jsonl",
        [{"id": "a", "prompt": "One"}, {"prompt": messages, "category": "chat"}, {"id": 7, "prompt": "One"}],
    )
    rows = prompts_of(path)
    assert [(row["id"], row["category"]) for row in rows] == [
        ("a", ""),
        ("2", "chat"),
    ]  # equal ones are asked once
    assert rows[1]["prompt"] == messages
    assert (
        request_text(rows[1]["prompt"])
        == "System: Be brief.\n\nUser: Hello {name}\n\nAssistant: Hi\n\nUser: Why?"
    )


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ([{"id": 1, "prompt": "a"}, {"id": "1", "prompt": "b"}], r"row 2: the same `id` as in .*row 1"),
        ([{"prompt": "a"}, {"prompt": " "}], "row 2, key 'prompt'"),
        ([{"text": "a"}], "row 1"),
        ([{"prompt": [{"role": "assistant", "content": "a"}]}], "row 1"),
    ],
)
def test_prompts_that_cannot_be_asked_are_refused(tmp_path: Path, rows: Rows, problem: str) -> None:
    with pytest.raises(UserError, match=f"benchmarks.own_prompts.prompts.*{problem}"):
        prompts_of(written(tmp_path / "prompts.jsonl", rows))


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("answers", lambda rows: rows[:-1]),
        ("start", lambda rows: [*rows, {"id": "99", "answer": "?"}]),
        ("answers", lambda rows: [*rows, rows[0]]),
    ],
)
def test_answers_to_other_prompts_are_refused(files: dict[str, Path], name: str, rows: Any) -> None:
    given = [json.loads(line) for line in files[name].read_text().splitlines()]
    written(files[name], rows(given))
    with pytest.raises(UserError, match=r"other prompts|again"):
        score_own_prompts(**files, recipe=LOCAL)


def test_the_notes_say_what_is_compared_and_how_the_judge_leans(
    files: dict[str, Path], judge: tuple[Endpoint, ScoreRecipe]
) -> None:
    endpoint, recipe = judge
    recipe = recipe.model_copy(update={"judge": recipe.judge.model_copy(update={"repeats": 2})})
    drawn = itertools.cycle(["[[A]]", "[[B]]", "Rather [[B]], no: [[A]]"])
    endpoint.faults = lambda request, time: f"text:{next(drawn)}"
    metrics = score_own_prompts(**files, recipe=recipe)
    notes = " ".join(BENCHMARK.notes(OwnPrompts(prompts="mine.jsonl"), {"sft": [], "dpo": [metrics]}))
    assert "6 prompts of mine.jsonl" in notes and "none missing" in notes
    assert re.search(r"\d+ doubtful \(dpo, prompt \d, shown (first|second): several verdicts", notes)
    assert f"95 % interval {metrics['win_rate_low']:.1f} to {metrics['win_rate_high']:.1f}" in notes
    assert "2 judgments of each item" in notes
