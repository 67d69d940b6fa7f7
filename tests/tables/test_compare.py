"""Comparison of runs: how they are found, what differs, and which scores are not comparable."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

from sams.cli import app
from sams.runtime.errors import UserError
from sams.runtime.files import read_json, write_json
from sams.tables.compare import compare, sides, write_curves
from tests.tables.made import alpaca_eval, train, write

ID = "0123456789abcdef0123456789abcdef"


def run(folder: Path, accuracy: float, *, beta: float = 0.1, judge: str = "local", tokens: str = "t") -> None:
    """A run whose answers to three instructions are preferred with `accuracy` percent, give or take."""
    preferences = [
        {"instruction": name, "preference": 1 + (accuracy + extra) / 100}
        for name, extra in (("a", -5), ("b", 0), ("c", 5))
    ]
    write(
        folder,
        {
            "train_metrics.json": train(accuracy, 2.0),
            "alpaca_eval/metrics.json": alpaca_eval(accuracy, 1.0, judge=judge),
            "alpaca_eval/annotations.json": preferences,
            "train.jsonl": [
                {"step": step, "pairs_seen": 64 * step, "loss": accuracy / step} for step in (1, 2, 3)
            ],
            "environment.json": {"python": "3.11", "libraries": {"torch": "2.13"}, "commit": {}},
        },
    )
    seed = int(folder.name.removeprefix("seed"))
    recipe: dict[str, Any] = {"seed": seed, "training": {"beta": beta, "loss": "sigmoid"}}
    upstream = {"tokens": tokens, "model": f"m{seed}"}
    write_json(folder / "recipe.json", {"recipe": recipe, "code": "c0de", "upstream": upstream})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """dpo and kto with three seeds, their difference 4, 5 and 6 points."""
    for seed in range(3):
        run(tmp_path / f"R/s/x/dpo/seed{seed}", 50.0 + seed)
        run(tmp_path / f"R/s/x/kto/seed{seed}", 54.0 + 2 * seed, beta=0.3)
    return tmp_path / "R"


def found(root: Path, *runs: str) -> dict[tuple[str, str, str], Any]:
    table = compare(sides([str(root / name) for name in runs], root)).differences
    return {(row.benchmark, row.interval, row.method): row for row in table.itertuples()}


def test_two_runs(root: Path) -> None:
    compared = compare(sides([str(root / "s/x/dpo/seed0"), str(root / "s/x/kto/seed0")], root))
    assert compared.settings.columns == ["setting", "dpo/seed0", "kto/seed0"]
    assert compared.settings.rows == [[("training.beta",), ("0.1",), ("0.3",)]], "the rest is the same"
    accuracy = [("train/test_accuracy",), ("50",), ("54",)]
    assert accuracy in compared.figures.rows
    rows = found(root, "s/x/dpo/seed0", "s/x/kto/seed0")
    paired = rows["win_rate", "paired", "kto/seed0"]
    assert paired.n_items == 3 and paired.difference == pytest.approx(4.0)
    assert (paired.ci_low, paired.ci_high) == pytest.approx((4.0, 4.0)), "the spread between items is shared"
    unpaired = rows["test_accuracy", "unpaired", "kto/seed0"]
    assert unpaired.ci_high - unpaired.difference == pytest.approx(1.96 * 8**0.5)
    assert not [key for key in rows if key[1] == "over seeds"]


def test_seeds_of_methods_are_repeats(root: Path) -> None:
    rows = found(root, "s/x/dpo", "s/x/kto")
    row = rows["test_accuracy", "over seeds", "kto"]
    assert (row.difference, row.n_seeds, row.p_sign_flip) == (5.0, 3, 0.25)
    compared = compare(sides([str(root / "s/x/dpo"), str(root / "s/x/kto")], root))
    assert [row[0] for row in compared.settings.rows] == [("training.beta",)], (
        "seeds and their models are no setting"
    )
    assert any("cannot give less than 0.25" in note for note in compared.notes)


def test_one_seed_each_is_paired_whichever_it_is(root: Path) -> None:
    row = found(root, "s/x/dpo/seed0", "s/x/dpo/seed2")["win_rate", "paired", "dpo/seed2"]
    assert row.difference == pytest.approx(2.0)


def test_scores_of_other_judges_and_other_data_do_not_compare(root: Path) -> None:
    run(root / "s/x/ipo/seed0", 60.0, judge="gpt")
    run(root / "t/x/dpo/seed0", 60.0, tokens="other")
    compared = compare(
        sides([str(root / name) for name in ("s/x/dpo/seed0", "s/x/ipo/seed0", "t/x/dpo/seed0")], root)
    )
    kinds = {(row.method, row.benchmark) for row in compared.differences.itertuples()}
    assert ("s/x/ipo/seed0", "win_rate") not in kinds and ("s/x/ipo/seed0", "test_accuracy") in kinds
    assert ("t/x/dpo/seed0", "test_accuracy") not in kinds
    assert any("win_rate of s/x/ipo/seed0" in note and "different judges" in note for note in compared.notes)
    assert any("test_accuracy of t/x/dpo/seed0" in note and "other data" in note for note in compared.notes)


def test_layouts_that_jobs_chose_are_compared(root: Path) -> None:
    for seed, kernel in ((0, "sams_varlen"), (1, None)):
        file = root / f"s/x/dpo/seed{seed}/recipe.json"
        write_json(file, read_json(file) | {"tuning": {"packed": kernel, "micro_batch": 4}})
    rows = compare(sides([str(root / f"s/x/dpo/seed{seed}") for seed in (0, 1)], root)).settings.rows
    assert [("tuning.packed",), ("sams_varlen",), ("null",)] in rows
    assert "tuning.micro_batch" not in [row[0][0] for row in rows]


def test_an_mlflow_run_id_is_found_by_what_it_left(root: Path) -> None:
    (root / "s/x/dpo/seed1/mlflow_run_id").write_text(ID + "\n")
    (root / "s/x/kto/seed1/alpaca_eval/mlflow_run_id").write_text(ID[::-1] + "\n")
    assert [side.name for side in sides([ID, ID[::-1]], root)] == ["dpo/seed1", "kto/seed1"]
    with pytest.raises(UserError, match="no result belongs to this MLflow run"):
        sides([ID, "f" * 32], root)


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        (["s/x/dpo"], "at least two"),
        (["s/x/dpo", "s/x/dpo"], "given twice"),
        (["s/x/dpo", "s/x/nonsense"], "no such folder"),
        (["s/x/dpo", "s/x"], "not the folder of a method or seed"),
    ],
)
def test_runs_that_are_not_there(runs: list[str], message: str, root: Path) -> None:
    with pytest.raises(UserError, match=message):
        sides([str(root / name) for name in runs], root)


def test_command_prints_and_writes_curves(root: Path, tmp_path: Path) -> None:
    runs = [str(root / name) for name in ("s/x/dpo", "s/x/kto")]
    ran = CliRunner().invoke(app, ["compare", *runs, "--out", str(tmp_path / "c.csv")])
    assert ran.exit_code == 0, ran.output
    curves = pd.read_csv(tmp_path / "c.csv")
    assert list(curves) == ["run", "seed", "step", "pairs_seen", "metric", "value"]
    assert len(curves) == 18
    at = curves.query("run == 'kto' and seed == 2 and step == 2 and metric == 'loss'")
    assert at["value"].tolist() == [29.0] and at["pairs_seen"].tolist() == [128]
    write_curves(sides(runs, root), tmp_path / "c.png")
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG") and not (tmp_path / "c.svg").exists()
    with pytest.raises(UserError, match=r"\.csv, \.svg or \.png"):
        write_curves(sides(runs, root), tmp_path / "c.pdf")
