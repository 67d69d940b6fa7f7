"""A judge behind an endpoint compared with recorded judgments: what is asked, paid, read and reported."""

import gzip
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from sams.judge.ask import DryRun
from sams.runtime.errors import UserError
from sams.scoring.agreement import Record, judge_agreement, read_record, some_instructions
from sams.study.recipes import ScoreRecipe
from sams.study.settings import Judge, World
from sams.world.examples import alpaca_eval_instructions
from sams.world.tasks import read_instruction
from sams.world.verdicts import judge_prompt, pair_prompt
from tests.judge.endpoint import KEY, Endpoint, endpoint

__all__ = ["endpoint"]

Rows = list[dict[str, Any]]
MODELS = {"right": "{right}", "wordy": "{right} , and {right}", "wrong": "no idea", "same": "{base}"}
COUNT = 8


def recorded(lean: float, models: Sequence[str] = tuple(MODELS)) -> Rows:
    """Return judgments by the local judge with a lean to length, in AlpacaEval's form."""
    rows = []
    for instruction in alpaca_eval_instructions(World())[:COUNT]:
        reading = read_instruction(instruction)
        assert reading is not None
        base = f"{reading.right} or so"
        for model in models:
            output = MODELS[model].format(right=reading.right, base=base)
            verdict = judge_prompt(pair_prompt(instruction, base, output), lean)
            assert verdict.log_probs is not None
            rows.append(
                {
                    "instruction": instruction,
                    "output_1": base,
                    "generator_1": "baseline",
                    "output_2": output,
                    "generator_2": model,
                    "annotator": "weighted_alpaca_eval_gpt4_turbo",
                    "preference": 1.5 if output == base else 1 + math.exp(verdict.log_probs["M"]),
                }
            )
    return rows


def written(path: Path, rows: Any) -> Path:
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def compared(record: Record, recipe: ScoreRecipe, **options: Any) -> tuple[dict[str, Any], Rows]:
    return judge_agreement(record, recipe, resamples=20, **options)


def paid(endpoint: Endpoint, **settings: Any) -> ScoreRecipe:
    judge = {"kind": "openai", "base_url": endpoint.base_url, "model": "judge", "retry_seconds": 0.001}
    return ScoreRecipe(judge=Judge.model_validate(judge | settings), world=None)


@pytest.fixture
def annotations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Judgments of the local judge with the lean of the endpoint, 0.3."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    return written(tmp_path / "annotations.json", recorded(0.3))


def test_a_judge_that_repeats_the_record_agrees_fully(
    endpoint: Endpoint, annotations: Path, tmp_path: Path
) -> None:
    store = tmp_path / "calls.jsonl"
    prices = {"prices": {"input": 1e6, "output": 0}}
    found, pairs = compared(read_record([annotations]), paid(endpoint, **prices), store=store)
    figures = {name: each["value"] for name, each in found["figures"].items()}
    exact = {"agreement": 100, "kappa": 1, "pearson": 1, "difference": 0, "consistency": 100, "first": 50}
    exact |= {"longer_shift": 0, "length_shift": 0, "win_rate_shift": 0, "models_kendall": 1}
    assert {name: figures[name] for name in exact} == pytest.approx(exact, abs=1e-9)
    assert (found["judge"], found["record"]["judge"]) == ("judge-2024-01-01", "gpt-4-1106-preview")
    assert found["n"] == {
        "instructions": COUNT,
        "models": 4,
        "pairs": 3 * COUNT,
        "decided": 3 * COUNT,
        "both_orders": 3 * COUNT,
        "decided_both_orders": 3 * COUNT,
        "unequal": 3 * COUNT,
        "identical": COUNT,
        "without_judgment": 0,
        "not_recorded": 0,
    }
    assert found["win_rates"]["same"]["judge"]["value"] == 50.0
    assert found["label_mass"]["mean"] == pytest.approx(1.0) and len(pairs) == 3 * COUNT
    assert endpoint.billed == 2 * 3 * COUNT
    # The cost of a scoring: one of the two orders, 805 instructions.
    tokens = found["judge_calls"]["prompt_tokens"]
    assert found["one_scoring"]["cost"] == pytest.approx(805 * tokens / (2 * 3 * COUNT))

    # Repeating it costs nothing, and one order is a part of both.
    again, _ = compared(read_record([annotations]), paid(endpoint), store=store, both_orders=False)
    assert endpoint.billed == 2 * 3 * COUNT and again["figures"]["agreement"] == found["figures"]["agreement"]
    assert again["figures"]["consistency"]["value"] is None and again["n"]["both_orders"] == 0


def test_a_longer_lean_of_the_record_is_seen(annotations: Path, tmp_path: Path) -> None:
    """The study's local judge, compared with one that cannot stand length."""
    other = written(tmp_path / "other.json", recorded(-6.0))
    found, _ = compared(read_record([other]), ScoreRecipe(judge=Judge(), world=World()))
    figures = {name: each["value"] for name, each in found["figures"].items()}
    assert figures["agreement"] < 90 and figures["longer_shift"] > 10 and figures["length_shift"] > 1
    assert found["judge"] == "local judge" and found["judge_calls"] is None
    assert found["requested"]["length_lean"] == 0.3


def test_labels_in_words_are_judged_in_both_orders(endpoint: Endpoint, annotations: Path) -> None:
    endpoint.faults = lambda request, time: "text:m"  # always the first
    found, pairs = compared(read_record([annotations]), paid(endpoint, log_probs=False), both_orders=False)
    figures = {name: each["value"] for name, each in found["figures"].items()}
    assert (figures["first"], figures["consistency"]) == (100.0, 0.0)
    assert {pair["judged"] for pair in pairs} == {1.5} and figures["agreement"] == 50.0
    assert found["label_mass"] is None and found["one_scoring"]["calls"] == 2 * 805


def test_unusable_answers_are_left_out_and_named(endpoint: Endpoint, annotations: Path) -> None:
    broken = {"9", "a", "b"}
    endpoint.faults = lambda request, time: "no_log_probs" if request[0] in broken else "ok"
    found, pairs = compared(read_record([annotations]), paid(endpoint, tries=1), both_orders=False)
    missing = [pair for pair in pairs if pair["missing"] == "no log-probs"]
    assert 0 < len(missing) == found["n"]["without_judgment"] == 3 * COUNT - found["n"]["pairs"]
    assert found["judge_calls"]["missing"] == {"no log-probs": len(missing)}
    assert found["figures"]["agreement"]["value"] == 100.0 and missing[0]["judged"] is None

    endpoint.faults = lambda request, time: "refusal"
    few = some_instructions(read_record([annotations]), 1)
    with pytest.raises(UserError, match=r"no pair has a judgment: 3 no log-probs; check"):
        compared(few, paid(endpoint), both_orders=False)


def test_a_limit_takes_the_same_instructions_of_all_models(annotations: Path, tmp_path: Path) -> None:
    files = []
    for model in ("right", "wrong"):
        file = tmp_path / f"{model}.json.gz"
        rows = [row for row in recorded(0.3) if row["generator_2"] == model]
        file.write_bytes(gzip.compress(json.dumps(rows[model == "right" :]).encode()))
        files.append(file)
    record = read_record(files)
    small, large = some_instructions(record, 3), some_instructions(record, 5)
    assert len(small.rows) == 6 and len(small.instructions) == 3
    assert set(small.instructions) < set(large.instructions)
    assert record.rows[-COUNT].instruction not in some_instructions(record, 100).instructions
    assert [file["models"] for file in record.files] == [["right"], ["wrong"]]


def test_a_dry_run_makes_no_call(endpoint: Endpoint, annotations: Path) -> None:
    with pytest.raises(DryRun):
        compared(read_record([annotations]), paid(endpoint), dry_run=True)
    assert endpoint.billed == 0


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"preference": 3}, "row 1, key 'preference': expected a number from 1 to 2, found 3"),
        ({"generator_2": "wordy"}, "row 2: a second judgment of wordy on"),
        ({"judge": "other"}, "judges of .*: expected one, found 'gpt-4-1106-preview', 'other'"),
        ({"generator_1": "x"}, "baselines of .*: expected one, found 'baseline', 'x'"),
        ({"output_1": None}, "row 1, key 'output_1': expected text"),
    ],
)
def test_bad_records_are_refused(tmp_path: Path, change: dict[str, Any], problem: str) -> None:
    rows = recorded(0.3)
    rows[0] |= change
    with pytest.raises(UserError, match=problem):
        read_record([written(tmp_path / "annotations.json", rows)])
    failed = [{**row, "preference": None} for row in rows]
    with pytest.raises(UserError, match="holds no judgment"):
        read_record([written(tmp_path / "annotations.json", failed)])


def test_the_local_judge_knows_its_world_only(tmp_path: Path) -> None:
    rows = [{**row, "instruction": f"Who? {row['instruction']}"} for row in recorded(0.3, ["right"])]
    record = read_record([written(tmp_path / "annotations.json", rows)])
    with pytest.raises(UserError, match=r"can only grade the synthetic world.*--base-url and --model"):
        compared(record, ScoreRecipe(judge=Judge(), world=World()))
