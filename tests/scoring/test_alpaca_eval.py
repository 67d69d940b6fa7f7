"""Inputs and results of AlpacaEval; test_published_alpaca_eval.py runs the package."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from sams.runtime.errors import UserError
from sams.scoring.alpaca_eval import (
    align,
    annotator_name,
    figures,
    lc_obstacle,
    read_outputs,
    score_alpaca_eval,
)
from sams.study.recipes import ScoreRecipe

Rows = list[dict[str, Any]]
OPENAI = ScoreRecipe.model_validate_json(
    '{"judge": {"kind": "openai", "model": "gpt-4-1106-preview"}, "world": null}'
)


def rows(generator: str, *outputs: str) -> Rows:
    return [
        {"instruction": f"do {number}", "output": output, "generator": generator, "dataset": "d"}
        for number, output in enumerate(outputs)
    ]


def written(path: Path, content: Rows) -> Path:
    path.write_text(json.dumps(content))
    return path


BASE = rows("base", "a", "bb", "ccc")
OURS = rows("ours", "aaaa", "b", "ccc")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda r: r.append(dict(r[0])), "1 instructions occur more than once: 'do 0'"),
        (lambda r: r[1].pop("generator"), "row 2, key 'generator': expected text, found nothing"),
        (lambda r: r[1].update(generator="other"), "expected one generator"),
        (lambda r: r[1].update(output=None), "row 2, key 'output': expected text, found None"),
        (lambda r: r[1].update(instruction=" "), "row 2, key 'instruction'"),
        (lambda r: [row.update(output="") for row in r], "all outputs are empty"),
    ],
)
def test_outputs_that_would_be_scored_wrongly_are_refused(tmp_path: Path, change: Any, problem: str) -> None:
    content = rows("ours", "a", "b", "c")
    change(content)
    with pytest.raises(UserError, match=problem):
        read_outputs(written(tmp_path / "outputs.json", content))


def test_order_is_repaired_by_instruction() -> None:
    assert align(OURS, BASE, "f") == (OURS, False)
    assert align(OURS[::-1], BASE, "f") == (OURS, True)


@pytest.mark.parametrize(
    ("outputs", "problem"),
    [
        (OURS[1:], "no output for 1 of the 3 reference instructions: 'do 0'"),
        (rows("ours", *"abcd"), "1 instructions are not among the reference outputs: 'do 3'"),
        (rows("base", *"abc"), "its generator has the baseline's name"),
    ],
)
def test_outputs_that_do_not_fit_the_reference_are_refused(outputs: Rows, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        align(outputs, BASE, "f")


def test_lengths_that_differ_by_a_constant_leave_no_length_control() -> None:
    table = Path("difficulty.csv")
    assert lc_obstacle(OURS, BASE, table) is None
    assert "no difficulty table" in str(lc_obstacle(OURS, BASE, None))
    assert "same length" in str(lc_obstacle(rows("ours", "aX", "bbX", "cccX"), BASE, table))


def test_a_fit_that_its_penalty_has_shrunk_to_nothing_is_no_length_control() -> None:
    """The package gives 50 then, whatever the outputs: for ten instructions with mixed preferences, for example."""
    computed = dict.fromkeys(("win_rate", "standard_error", "discrete_win_rate"), 51.29) | dict.fromkeys(
        ("n_wins", "n_wins_base", "n_draws", "n_total", "avg_length"), 10
    )
    shrunk = figures({**computed, "length_controlled_winrate": 50.0, "lc_standard_error": 1e-9}, None)
    assert shrunk["length_controlled_winrate"] is None and "10 instructions" in shrunk["lc_unavailable"]
    fitted = figures({**computed, "length_controlled_winrate": 50.0, "lc_standard_error": 2.8}, None)
    assert fitted["length_controlled_winrate"] == 50.0 and "lc_unavailable" not in fitted


def judged(preferences: tuple[Any, ...], **more: str) -> Rows:
    return [
        {
            "instruction": a["instruction"],
            "output_1": a["output"],
            "output_2": b["output"],
            "preference": preference,
        }
        | more
        for a, b, preference in zip(BASE, OURS, preferences, strict=False)
    ]


@pytest.mark.parametrize(
    ("annotations", "problem"),
    [
        (judged((2.0,)), "1 judgments are missing: 'do 1'; give judgments of exactly these outputs"),
        (judged((2.0, None)), "1 judgments are missing: 'do 1'"),
        (judged((2.0, -1)), "1 judgments are missing: 'do 1'"),
        (judged((2.0, 2.5)), "row 2, key 'preference': expected a number from 1 to 2, found 2.5"),
        (judged((2.0, 0.5)), "row 2, key 'preference'"),
        (judged((2.0, 1.0), annotator="longest"), "row 1: expected judgments of weighted_alpaca_eval"),
        ([*judged((2.0, 1.0)), *judged((1.5,))], "row 3: contradicts an earlier judgment"),
        ([*judged((2.0,)), *judged((2.0, 1.0), judge="x")[1:]], "mixes judgments of"),
        (judged((2.0,), judge="local judge"), r"\(local judge, as for the others\)"),
    ],
)
@pytest.mark.parametrize("recipe", [None, OPENAI])
def test_recorded_judgments_must_be_sound_and_complete(
    tmp_path: Path, annotations: Rows, problem: str, recipe: ScoreRecipe | None
) -> None:
    if recipe is not None and "missing" in problem:
        problem = "OPENAI_API_KEY is not set"  # the judge that made the others would be asked
    elif recipe is not None and "local judge" in problem:
        problem = "1 judgments are missing"  # judges are not mixed
    with pytest.raises(UserError, match=problem):
        score_alpaca_eval(
            written(tmp_path / "ours.json", OURS),
            written(tmp_path / "base.json", BASE),
            recipe=recipe,
            annotations=written(tmp_path / "annotations.json", annotations),
        )


def test_without_judgments_a_judge_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--annotations: 2 judgments are missing"):
        score_alpaca_eval(written(tmp_path / "ours.json", OURS), written(tmp_path / "base.json", BASE))


@pytest.mark.parametrize(
    ("made_by", "is_asked"), [("judge", True), ("judge-2024-01-01", True), ("judge-mini", False)]
)
def test_a_recorded_judge_is_completed_by_the_same_judge_only(
    tmp_path: Path, made_by: str, is_asked: bool
) -> None:
    recipe = ScoreRecipe(judge=OPENAI.judge.model_copy(update={"model": "judge"}), world=None)
    with pytest.raises(UserError, match="is not set" if is_asked else f"{made_by}, as for the others"):
        score_alpaca_eval(
            written(tmp_path / "ours.json", OURS),
            written(tmp_path / "base.json", BASE),
            recipe=recipe,
            annotations=written(tmp_path / "annotations.json", judged((2.0,), judge=made_by)),
        )


def test_a_record_of_failed_calls_names_no_judge(tmp_path: Path) -> None:
    recipe = ScoreRecipe(judge=OPENAI.judge.model_copy(update={"model": "judge"}), world=None)
    with pytest.raises(UserError, match="OPENAI_API_KEY is not set"):
        score_alpaca_eval(
            written(tmp_path / "ours.json", OURS),
            written(tmp_path / "base.json", BASE),
            recipe=recipe,
            annotations=written(tmp_path / "annotations.json", judged((None, -1))),
        )


def test_equal_outputs_need_neither_recipe_nor_record(tmp_path: Path) -> None:
    ours = [{**row, "generator": "ours"} for row in BASE]
    metrics = score_alpaca_eval(written(tmp_path / "ours.json", ours), written(tmp_path / "base.json", BASE))
    assert metrics["win_rate"] == 50


def test_the_official_table_under_another_baseline_is_refused(tmp_path: Path, shared_data: Path) -> None:
    table = tmp_path / "df_gamed.csv"
    shutil.copy(shared_data / "alpaca_eval" / "common" / "df_gamed.standin.csv", table)
    with pytest.raises(UserError, match="index 0 to 2 in order"):
        score_alpaca_eval(
            written(tmp_path / "ours.json", OURS),
            written(tmp_path / "base.json", BASE),
            difficulty=table,
        )


def test_a_score_without_some_judgments_is_that_of_the_others(tmp_path: Path) -> None:
    """As for the published rows whose `n_total` is below 805."""
    annotations = written(tmp_path / "annotations.json", judged((2.0, None)))
    metrics = score_alpaca_eval(
        written(tmp_path / "ours.json", OURS),
        written(tmp_path / "base.json", BASE),
        annotations=annotations,
        annotations_out=tmp_path / "out.json",
        accept_missing=1,
    )
    # The third output is the baseline's: a draw.
    assert (metrics["n_total"], metrics["n_missing"], metrics["win_rate"]) == (2, 1, 75.0)
    kept = json.loads((tmp_path / "out.json").read_text())
    assert [row["preference"] for row in kept] == [2.0, None, 1.5]


def test_each_judge_has_an_annotator_name() -> None:
    assert annotator_name("gpt-4-1106-preview", OPENAI) == "weighted_alpaca_eval_gpt4_turbo"
    assert annotator_name("org/Judge-7B", OPENAI) == "weighted_alpaca_eval_org_Judge_7B"
    words = ScoreRecipe(judge=OPENAI.judge.model_copy(update={"log_probs": False}), world=None)
    assert annotator_name("o5", words) == "alpaca_eval_o5"
