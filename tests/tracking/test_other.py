"""Runs in another tracker: the real trackio, whose database is read with sqlite."""

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from sams.runtime.errors import UserError
from sams.tracking.other import mirror

RECIPE = {"seed": 3, "training": {"learning_rate": 5e-05, "micro_batch_size": 8}}


def lines(count: int) -> str:
    return "".join(
        json.dumps({"step": n, "pairs_seen": 64 * n, "loss": 1 / n, "non_finite": {"x": "nan"}}) + "\n"
        for n in range(1, count + 1)
    )


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that reads the points and settings of a trackio project."""
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio", reason="trackio is not installed")

    def read(project: str) -> tuple[list[tuple[int, dict[str, float]]], list[dict[str, Any]]]:
        with sqlite3.connect(tmp_path / "trackio" / f"{project}.db") as connection:
            points = connection.execute("select step, metrics from metrics order by step").fetchall()
            configs = connection.execute("select config from configs").fetchall()
        return [(step, json.loads(text)) for step, text in points], [json.loads(text) for (text,) in configs]

    return read


def test_a_run_is_followed_while_it_trains_and_to_its_end(tmp_path: Path, database: Any) -> None:
    results = tmp_path / "results"
    job = results / "own" / "checkpoints" / "mine" / "dpo" / "seed3" / "0123"
    job.mkdir(parents=True)
    (job / "run.json").write_text(json.dumps({"inputs": {"recipe": RECIPE}}))
    (job / "train.jsonl").write_text(lines(4) + '{"step": 5, "pairs')
    assert mirror("trackio", results) == 1
    assert mirror("trackio", results) == 0, "nothing is sent twice"

    # A killed job starts again at its checkpoint, and writes the same lines; then it ends.
    (job / "train.jsonl").write_text(lines(2))
    assert mirror("trackio", results) == 0
    out = results / "own" / "mine" / "dpo" / "seed3"
    out.mkdir(parents=True)
    tuned = RECIPE | {"training": {"learning_rate": 5e-05, "micro_batch_size": 2}}
    (out / "recipe.json").write_text(json.dumps({"recipe": tuned}))
    (out / "train.jsonl").write_text(lines(6))
    (out / "train_metrics.json").write_text(json.dumps({"test_accuracy": 61.5, "note": "text"}))
    (job / "run.json").unlink()
    assert mirror("trackio", results) == 1

    points, configs = database("sams-own")
    assert [step for step, _ in points] == [64, 128, 192, 256, 320, 384, 385]
    assert points[4][1]["loss"] == 0.2 and points[4][1]["global_step"] == 5
    assert points[6][1] == {"final/test_accuracy": 61.5}
    assert configs[0]["training.learning_rate"] == "5e-05"


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="wandb is not installed; pip install wandb"):
        mirror("wandb", tmp_path)
