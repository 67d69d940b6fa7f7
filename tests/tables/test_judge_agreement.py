"""`sams judge-agreement` from its options to its files, and the note below a study's scores."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sams.cli import app
from sams.launch import preflight
from sams.runtime.errors import UserError
from sams.study.recipes import recipe_of
from sams.study.settings import Judge
from sams.tables import captions, judge_agreement
from sams.tables.agreement_note import agreement_notes
from sams.tables.judge_agreement import compare_judge
from sams.tables.recomputed import agreement_file
from sams.tables.results import Cell
from tests.judge.endpoint import KEY, Endpoint, endpoint
from tests.scoring.test_agreement import COUNT, recorded, written
from tests.tables import made

__all__ = ["endpoint"]
FIGURE = {"value": 84.12, "low": 82.0, "high": 86.04}


def content(**changes: Any) -> dict[str, Any]:
    """Return what the note reads of an agreement.json."""
    names = ("agreement", "agreement_longer", "longer_judge", "longer_record", "win_rate_shift")
    found: dict[str, Any] = {
        "judge": "other-2026",
        "requested": {"kind": "openai", "model": "other", "parameters": {"top_p": 1}, "log_probs": True},
        "record": {"judge": "gpt-4-1106-preview"},
        "n": {"decided": 2411, "models": 3},
        "figures": dict.fromkeys(names, FIGURE),
        "date": "2026-11-28T09:00:00+00:00",
    }
    return found | changes


@pytest.fixture
def annotations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr(judge_agreement, "RESAMPLES", 20)
    monkeypatch.setenv("COLUMNS", "80")
    return written(tmp_path / "annotations.json", recorded(0.3))


def test_the_command_prints_and_writes(
    endpoint: Endpoint, annotations: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = made.study(["sft"], [0])
    options: dict[str, Any] = {"base_url": endpoint.base_url, "model": "judge", "out": tmp_path / "out"}
    compare_judge([annotations], study, **options, dry_run=True)
    assert endpoint.billed == 0 and not (tmp_path / "out").exists() and capsys.readouterr().out == ""

    compare_judge([annotations], study, **options, limit=3)
    shown = capsys.readouterr().out
    assert all(len(line) <= 80 for line in shown.splitlines()[:-1])
    assert "Judge judge-2024-01-01 compared with recorded judgments of gpt-4-1106-preview" in shown
    assert any(line.split()[:4] == ["same", "output", "preferred,", "%"] for line in shown.splitlines())
    assert "9 pairs of 4 models and 3 instructions." in shown
    assert "Left out: 3 identical outputs" in shown and "intervals are too narrow" in shown
    assert endpoint.billed == 2 * 3 * 3
    out = tmp_path / "out"
    assert {file.name for file in out.iterdir()} == {
        "agreement.json", "agreement.png", "agreement.svg", "judge_calls.jsonl", "pairs.jsonl"
    }  # fmt: skip
    assert len((out / "pairs.jsonl").read_text().splitlines()) == 9

    # More pairs: only the new ones are paid; a judge that the settings name is the same judge.
    named = made.study(["sft"], [0], benchmarks={"judge": {"kind": "openai", "model": "judge",
                                                           "base_url": endpoint.base_url}})  # fmt: skip
    compare_judge([annotations], named, out=out, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert endpoint.billed == 2 * 3 * COUNT and found["judge_calls"]["n_cached"] == 2 * 3 * 3
    assert found == json.loads((out / "agreement.json").read_text())

    # A model without judgments has no win rate.
    nothing = {"value": None, "low": None, "high": None}
    found["win_rates"]["wrong"] = {"judge": nothing, "record": nothing}
    judge_agreement.show(found)
    assert re.search(r"wrong +– \(–\) +– \(–\)", capsys.readouterr().out)
    assert len(judge_agreement.agreement_figure(found).axes[0].get_yticks()) == 3

    # Its file is the one that `judge.agreement` takes.
    [note] = agreement_notes(
        named.benchmarks.judge.model_copy(update={"agreement": str(out / "agreement.json")}),
        {"judge-2024-01-01"},
    )
    assert note.startswith(
        "Judge judge-2024-01-01 prefers the same output as gpt-4-1106-preview in 100.0 % [63.1, 100.0] of 24"
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--limit", "2"], "the calls of the local judge are free"),
        (["--base-url", "http://127.0.0.1:9/v1", "--model", "x"], "48 calls, 0 of them in the store"),
        (
            ["--configfile", "config/judges/open.yaml", "--model", "x", "--one-order", "--limit", "2"],
            "judge http://localhost:8000/v1: 6 calls",
        ),
        (["--base-url", "http://127.0.0.1:9/v1"], "--model: kind openai needs `model`"),
        (["--base-url", "ftp://x", "--model", "x"], "--base-url: .*expected http"),
        (["--model", "a b"], "--model: String should match pattern"),
    ],
)
def test_options_of_the_command(
    annotations: Path, caplog: pytest.LogCaptureFixture, options: list[str], words: str
) -> None:
    caplog.set_level("INFO")
    done = CliRunner().invoke(app, ["judge-agreement", str(annotations), "--dry-run", *options])
    assert re.search(words, f"{caplog.text} {done.exception}")
    assert done.exception is None or isinstance(done.exception, UserError)


def test_the_note_below_the_scores(tmp_path: Path) -> None:
    file = written(tmp_path / "agreement.json", content())
    judge = {"kind": "openai", "model": "other", "parameters": {"top_p": 1}, "agreement": str(file)}
    study = made.study(["sft", "dpo"], [0], benchmarks={"alpaca_eval": {}, "judge": judge})
    cells = {Cell("dpo", 0, "alpaca_eval"): {"judge": "other-2026", "n_total": 805}}
    for notes in (captions.main_notes(study, cells), captions.first_notes(study, cells)):
        [note] = [note for note in notes if "SHA-256" in note]
        assert note.startswith(
            "Judge other-2026 prefers the same output as gpt-4-1106-preview in 84.1 % [82.0, 86.0] of 2,411 "
        )
    assert recipe_of(study, "score").model_dump()["judge"]["agreement"] is None  # scores stay as they are

    # The file is copied next to the table, whose note has its SHA-256.
    made.write(tmp_path / "world", {"sft/seed0/train_metrics.json": made.train(60.0, 1.0)})
    tables = tmp_path / "tables"
    outputs = {form: tables / f"main.{form}" for form in ("csv", "md", "tex", "html")}
    tables.mkdir()
    made.run_script(
        "main_table", study, tmp_path / "world", {**outputs, "agreement": tables / "agreement.json"}
    )
    [found] = agreement_file(tmp_path)
    assert found.holds
    written(tables / "agreement.json", content(judge="x"))
    assert [found.text for found in agreement_file(tmp_path)] == [
        "does not have the SHA-256 in tables/main.md"
    ]


@pytest.mark.parametrize(
    ("settings", "judges", "words"),
    [
        ({}, {"other-2027"}, "is of judge other-2026, the scores are of other-2027"),
        ({"parameters": {}}, {"other-2026"}, 'is of judge other-2026 asked with {"parameters": {"top_p": 1}'),
        ({"log_probs": False}, {"other-2026"}, '"log_probs": true}, the scores are of other-2026 asked'),
    ],
)
def test_a_file_of_another_judge_is_a_warning(
    tmp_path: Path, settings: dict[str, Any], judges: set[str], words: str
) -> None:
    file = written(tmp_path / "agreement.json", content())
    given = {
        "kind": "openai",
        "model": "other",
        "parameters": {"top_p": 1},
        "agreement": str(file),
    } | settings
    [note] = agreement_notes(Judge.model_validate(given), judges)
    assert note.startswith("Warning: the agreement file (agreement.json, SHA-256 ") and words in note


def test_preflight_reads_the_file(tmp_path: Path) -> None:
    for made_file, problem in ((None, "no such file"), ("[]", "not a file of"), ("{", "cannot be read")):
        file = tmp_path / "agreement.json"
        if made_file is not None:
            file.write_text(made_file)
        study = made.study(["sft"], [0], benchmarks={"judge": {"agreement": str(file)}})
        with pytest.raises(UserError, match=rf"benchmarks.judge.agreement: .*agreement.json: {problem}"):
            preflight.check_judge(study)
        # A table without it is better than none.
        assert [problem in note for note in agreement_notes(study.benchmarks.judge, set())] == [True]
