"""The choice of runs and lengths by noisy validation pairs alone, within equal data or equal compute."""

import json
from pathlib import Path
from typing import Any

import pytest

from sams.generation.assess import is_right
from sams.runtime.errors import UserError
from sams.study.files import load_study, read_settings
from sams.study.study import Study
from sams.tables.choose import Evaluation, choice, evaluations, point_name
from sams.tables.chosen_table import chosen_table, notes, readable
from sams.tables.results import read_log
from tests.conftest import ROOT
from tests.tables.made import run_script

RUNS = {"dpo": ["dpo-a", "dpo-b"], "half": ["half-a", "half-b"], "best": ["best-a", "best-b"]}
OWN: dict[str, dict[str, Any]] = {
    "dpo": {"selector": "all"},
    "half": {"selector": "random", "ratio": 0.5},
    "best": {"selector": "oracle", "ratio": 0.5},
}
# Validation accuracy of both seeds at the four evaluations of each run.
ACCURACIES = {
    "dpo-a": ((0.51, 0.52, 0.53, 0.50), (0.51, 0.54, 0.53, 0.50)),
    "dpo-b": ((0.51, 0.51, 0.56, 0.50), (0.51, 0.51, 0.51, 0.50)),
    "half-a": ((0.50, 0.50, 0.50, 0.52), (0.50, 0.50, 0.50, 0.52)),
    "half-b": ((0.50, 0.50, 0.50, 0.50), (0.50, 0.50, 0.50, 0.50)),
    "best-a": ((0.50, 0.53, 0.54, 0.55), (0.50, 0.53, 0.54, 0.55)),
    "best-b": ((0.59, 0.50, 0.50, 0.50), (0.50, 0.50, 0.50, 0.50)),
}


def study(**more: Any) -> Study:
    methods = [run for runs in RUNS.values() for run in runs]
    overlay = {
        "seeds": [0, 1],
        "methods": ["sft", *methods],
        "data": {"world": {"validation_pairs": 50, "train_pairs": 64, "per_seed": True}},
        "preference": {"validated": True, "batch_size": 16, "epochs": 1, "evaluations": 4},
        "method_settings": {run: OWN[method] for method, runs in RUNS.items() for run in runs},
        "chosen": {"base": "dpo", "runs": RUNS},
    }
    return load_study(read_settings([ROOT / "config" / "config.yaml"], overlay | more))


def write_logs(setting: Path) -> None:
    for run, seeds in ACCURACIES.items():
        for seed, accuracies in enumerate(seeds):
            lines = []
            for step, accuracy in enumerate(accuracies, start=1):
                line = {"step": step, "pairs_seen": 16 * step, "selected/share": 1.0, "loss": 0.6}
                line["eval/rewards/accuracies"] = accuracy
                if not run.startswith("dpo"):
                    flips = {"selected/flipped_share": 0.25 if step > 1 else 0.0, "all/flipped_share": 0.5}
                    line |= {"selected/share": 0.5, **flips}
                if run.startswith("best"):
                    line["all/loss"] = 0.6
                lines.append(json.dumps(line))
            folder = setting / run / f"seed{seed}"
            folder.mkdir(parents=True)
            (folder / "train.jsonl").write_text("\n".join(lines) + "\n")


@pytest.fixture
def made(tmp_path: Path) -> dict[str, Any]:
    """The choice that the script writes from a folder with metric logs only."""
    write_logs(tmp_path)
    run_script("choose", study(), tmp_path, {"choice": tmp_path / "choice.json"})
    found: dict[str, Any] = json.loads((tmp_path / "choice.json").read_text())
    return found


def test_compute_and_kept_flips_follow_from_the_log(tmp_path: Path) -> None:
    write_logs(tmp_path)
    dpo, half, best = (
        evaluations(read_log(tmp_path / f"{name}-a/seed0/train.jsonl")) for name in ("dpo", "half", "best")
    )
    assert [found.compute for found in dpo] == [48, 96, 144, 192], "forward 1, backward 2"
    assert [found.compute for found in half] == [24, 48, 72, 96]
    assert [found.compute for found in best] == [40, 80, 120, 160], "16 scored and 8 trained on"
    assert dpo[-1].flipped_kept == 1.0 and dpo[-1].flipped_share is None
    # Of 16 pairs 8 are flipped; kept are 0 in the first round and 8 x .25 = 2 in the second.
    assert [found.flipped_kept for found in half[:2]] == [0.0, 2 / 16]
    assert half[1].flipped_share == 2 / 16


def test_the_best_mean_over_seeds_is_chosen_within_each_limit(made: dict[str, Any]) -> None:
    picked = {
        (method, limit): (point["run"], point["step"])
        for method, limits in made["methods"].items()
        for limit, point in limits.items()
    }
    assert made["compute"]["equal_compute"] == 96, "the complete run of the random half"
    assert picked["dpo", "equal_data"] == ("dpo-b", 3), ".535 over seeds, against .53 of dpo-a"
    assert picked["dpo", "equal_compute"] == ("dpo-a", 2), "step 3 takes 144"
    assert picked["half", "equal_data"] == picked["half", "equal_compute"] == ("half-a", 4)
    assert picked["best", "equal_data"] == ("best-a", 4), "one lucky seed of best-b counts half"
    assert picked["best", "equal_compute"] == ("best-b", 1), (
        ".545 in the mean, and step 4 of best-a takes 160"
    )
    assert made["methods"]["dpo"]["equal_data"]["points"] == 8
    assert made["methods"]["dpo"]["equal_compute"]["points"] == 4


def test_no_test_pair_reaches_the_choice() -> None:
    """The runs evaluate on the validation split, and the choice has no other input."""
    settings = study()
    for run in settings.chosen_runs:
        assert settings.preference_of(run).evaluated_split == "validation"
    rule = (
        (ROOT / "rules" / "chosen.smk")
        .read_text()
        .partition(" as choose with:")[2]
        .partition("rule assess:")[0]
    )
    inputs = rule.partition("input:")[2].partition("output:")[0].split()
    assert inputs == ['curves=per_run("{method}/seed{seed}/train.jsonl",', "STUDY.chosen_runs),"]


def test_equal_points_give_the_earliest() -> None:
    at = [Evaluation(step, 16 * step, 48.0 * step, 0.5, 1.0, None) for step in (1, 2)]
    chosen = choice({"dpo": {"a": [at], "b": [at]}})
    point = chosen["methods"]["dpo"]["equal_data"]
    assert (point["run"], point["step"], point["points"]) == ("a", 1, 4)
    assert chosen["points"] == {"a/step1": {"run": "a", "step": 1}}


def test_the_table_pairs_seeds(made: dict[str, Any], tmp_path: Path) -> None:
    settings = study()
    figures = []
    for seed in (0, 1):
        found = {
            name: {"sampled": 30.0 + seed, "greedy": 60.0, "test_accuracy": 70.0 + 5 * seed}
            for name in made["points"]
        }
        found["best-a/step4"] = {
            "sampled": 40.0 + 1.1 * seed,
            "greedy": 61.0,
            "test_accuracy": 80.0 + 5 * seed,
        }
        figures.append(found | {"sft": {"sampled": 20.0, "greedy": 60.0}})
    table = chosen_table(settings, made, figures)
    row = table[(table["method"] == "best") & (table["limit"] == "equal_data")].iloc[0]
    assert row["sampled"] == pytest.approx(40.55)
    assert row["sampled_difference"] == pytest.approx(10.05)
    assert row["sampled_ci_low"] > 9 and row["sampled_ci_high"] < 11, "paired: the seeds' own spread is 1"
    assert row["epochs"] == 1.0 and row["learning_rate"] == 1e-4
    shown = readable(table)
    assert [row[0] for row in shown.rows] == [("sft",), ("dpo",), ("half",), ("best",)]
    best = shown.rows[3]
    assert best[2][2] == "+10.1 [9.4, 10.7] *"
    assert any("50 validation pairs" in note for note in notes(settings, made))
    files = [tmp_path / f"figures{seed}.json" for seed in (0, 1)]
    for file, content in zip(files, figures, strict=True):
        file.write_text(json.dumps(content))
    outputs = {kind: tmp_path / f"chosen.{kind}" for kind in ("csv", "md", "tex", "html")}
    inputs = {"choice": str(tmp_path / "choice.json"), "figures": [str(file) for file in files]}
    run_script("chosen_table", settings, tmp_path, outputs, inputs)
    assert outputs["csv"].read_text() == table.to_csv(index=False)
    assert "+10.1 [9.4, 10.7] *" in outputs["md"].read_text()
    assert all(path.stat().st_size for path in outputs.values())


def test_points_are_those_that_were_chosen(made: dict[str, Any]) -> None:
    chosen = [point for limits in made["methods"].values() for point in limits.values()]
    assert set(made["points"]) == {point_name(point) for point in chosen} and len(made["points"]) == 5
    assert made["points"]["dpo-b/step3"] == {"run": "dpo-b", "step": 3}


def test_answers_are_graded_by_the_world() -> None:
    assert is_right([{"role": "user", "content": "in order : 2 3 1"}], "1 2 3")
    assert not is_right([{"role": "user", "content": "in order : 2 3 1"}], "1 3 2")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"data": {"world": {"validation_pairs": 0}}}, "set `data.world.validation_pairs`"),
        ({"preference": {"validated": False}}, "is not a `validated` method"),
        ({"chosen": {"base": "dpo", "runs": RUNS | {"half": ["half-a"]}}}, "the same number of runs"),
        ({"chosen": {"base": "cdpo", "runs": RUNS}}, "not among `runs`"),
    ],
)
def test_unfair_or_impossible_choices_are_refused(more: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        study(**more)
