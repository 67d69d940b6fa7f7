"""From a model to its scores: generation, difficulty table, both real packages, the local judge."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from sams.generation.generate import generate_answers
from sams.scoring import alpaca_eval
from sams.scoring.alpaca_eval import _recorded, read_outputs
from sams.scoring.difficulty import make_difficulty
from sams.scoring.difficulty_table import check_table, read_table
from sams.scoring.mt_bench import score_mt_bench
from sams.study.recipes import GenerateRecipe, ScoreRecipe, recipe_json
from sams.study.settings import MT_BENCH_TEMPERATURES, Decoding, Judge, World
from sams.world import examples as world
from tests.judge.prompts import judge_prompts

__all__ = ["judge_prompts"]

INSTRUCTIONS = 60
JUDGE = ScoreRecipe(judge=Judge(), world=World())


@pytest.fixture(autouse=True)
def small_world(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer instructions, and four models to measure their difficulty with."""
    monkeypatch.setattr(world, "ALPACA_EVAL_INSTRUCTIONS", INSTRUCTIONS)
    monkeypatch.setattr(world, "ANSWERERS", world.ANSWERERS[::2])


def installed_files() -> dict[Path, tuple[int, int]]:
    """Size and time of every file of both packages' installations."""
    found = {}
    for name in ("alpaca_eval", "fastchat"):
        package = importlib.util.find_spec(name)
        assert package is not None and package.origin is not None
        for path in Path(package.origin).parent.rglob("*"):
            if "__pycache__" not in path.parts:
                found[path] = (path.stat().st_size, path.stat().st_mtime_ns)
    return found


def decoding(benchmark: Any, **settings: Any) -> GenerateRecipe:
    settings = {"max_new_tokens": 8} | settings
    return GenerateRecipe(
        seed=0,
        method="sft",
        benchmark=benchmark,
        precision="float32",
        decoding=Decoding.model_validate(settings),
    )


@pytest.mark.slow  # the chain in miniature does the same by its rules
def test_a_model_gets_its_scores(
    model: Path,
    tmp_path: Path,
    judge_prompts: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    before = installed_files()
    questions = tmp_path / "questions"
    questions.mkdir()
    (questions / "alpaca_eval.json").write_text(json.dumps(world.baseline_outputs(World())))
    for name, rows in (
        ("mt_bench_questions", world.mt_bench_questions(World())),
        ("mt_bench_references", world.mt_bench_references(World())),
    ):
        (questions / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    answers = tmp_path / "alpaca_eval" / "answers.json"
    generate_answers(decoding("alpaca_eval"), model, questions, answers)
    table = tmp_path / "difficulty.csv"
    report = make_difficulty(JUDGE, questions, table)
    check_difficulty(report, table, questions)
    metrics = score_as_the_rule_does(answers, questions, table, monkeypatch, capfd)
    check_alpaca_eval(metrics, answers)

    talk = tmp_path / "mt_bench" / "answers.jsonl"
    generate_answers(
        decoding("mt_bench", category_temperatures=MT_BENCH_TEMPERATURES), model, questions, talk
    )
    scores = score_mt_bench(
        talk,
        questions / "mt_bench_questions.jsonl",
        questions / "mt_bench_references.jsonl",
        judge_prompts,
        recipe=JUDGE,
    )
    assert (scores["n_judgments"], scores["n_failed"], scores["judge"]) == (160, 0, "local judge")
    assert len(scores["categories"]) == 8
    assert 1.0 <= scores["average"] < 3.0  # the model babbles
    assert scores["references"] == ["world-reference"]

    assert installed_files() == before
    assert not (tmp_path / "hf").exists()


def check_difficulty(report: dict[str, Any], table: Path, questions: Path) -> None:
    """Check the table, and that length control removes most of the length bias in the control."""
    rows = read_table(table)
    check_table(rows, [row["instruction"] for row in read_outputs(questions / "alpaca_eval.json")], "table")
    assert rows[0].model == "world-baseline-verbose" and len(rows) == 2 * INSTRUCTIONS
    verbose = report["control"]["verbose"]
    assert verbose["win_rate"] > 55.0
    assert abs(verbose["length_controlled_winrate"] - 50.0) < 0.5 * (verbose["win_rate"] - 50.0)
    assert verbose["avg_length"] > report["baseline_avg_length"] > report["control"]["concise"]["avg_length"]
    assert len(report["models"]) == 4
    assert sum(row["length_weight"] for row in report["models"].values()) < 0  # longer is preferred


def score_as_the_rule_does(
    answers: Path,
    questions: Path,
    table: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> dict[str, Any]:
    """Score by the function of the command line; the package runs in a child process."""
    # A proxy and a key of the user's are no concern of the local judge.
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-not-for-it")
    out = answers.with_name("metrics.json")
    capfd.readouterr()
    alpaca_eval.main(
        model_outputs=answers,
        reference_outputs=questions / "alpaca_eval.json",
        out=out,
        recipe=recipe_json(JUDGE),
        difficulty=table,
        annotations_out=answers.with_name("annotations.json"),
    )
    told = capfd.readouterr().err
    assert len(told.splitlines()) < 10, told
    metrics: dict[str, Any] = json.loads(out.read_text())
    return metrics


def check_alpaca_eval(metrics: dict[str, Any], answers: Path) -> None:
    assert (
        metrics["n_total"] == INSTRUCTIONS == metrics["n_wins"] + metrics["n_wins_base"] + metrics["n_draws"]
    )
    assert 0.0 < metrics["win_rate"] < 40.0  # the model babbles, and the baseline is wrong now and then
    assert 0.0 <= metrics["length_controlled_winrate"] < 40.0
    assert metrics["lc_standard_error"] > 0.0 < metrics["standard_error"]
    assert (metrics["judge"], metrics["generator"]) == ("local judge", "sft-seed0")
    assert "lc_unavailable" not in metrics and not metrics["order_repaired"]

    annotations = answers.with_name("annotations.json")
    recorded, judge = _recorded(annotations)
    assert judge == "local judge" and len(recorded) == INSTRUCTIONS
    mean = sum(value - 1 for value in recorded.values()) / INSTRUCTIONS
    assert metrics["win_rate"] == pytest.approx(100 * mean)
    assert "sk-not-for-it" not in annotations.read_text()
