"""A results folder made by hand passes all checks; each fault is found and named."""

import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from sams.cli import app
from sams.runtime.errors import UserError
from sams.runtime.files import manifest_digest, read_json, sha256_of, write_json, write_manifest
from sams.study.recipes import recipe_of
from sams.study.study import Study
from sams.tables.bundle import bundled_files, pack
from sams.tables.main_table import main_table
from sams.tables.results import read_cells
from sams.tables.verify import verify
from tests.tables.made import alpaca_eval, mt_bench, study, train, write

ENVIRONMENT = {
    "python": "3.11.7",
    "machine": "x86_64",
    "libraries": {"torch": "2.13.0"},
    "commit": {"git_commit": "a" * 40, "git_dirty": "false"},
}
SETTINGS = study(["sft", "dpo"], [0, 1])


def seal(folder: Path, upstream: dict[str, str] | None = None, **files: str) -> str:
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    write_manifest(folder, **({"upstream": upstream} if upstream else {}))
    return manifest_digest(folder)


def trained(folder: Path, stage: str, upstream: dict[str, str], settings: Study, seed: int) -> None:
    """What a training job leaves, with a log whose last line the figures follow from."""
    method = "" if stage == "train_sft" else "dpo"
    recipe = recipe_of(settings, stage, method=method, seed=seed).model_dump(mode="json")
    last = {"eval/rewards/accuracies": 0.6125, "eval/rewards/chosen": 0.5, "eval/logps/chosen": -20.0}
    figures = {"train_seconds": 1.0} if stage == "train_sft" else train(61.25, 1.5)
    lines = [{"step": 1, "pairs_seen": 64, "loss": 1.0}, {"step": 2, "pairs_seen": 128, **last}]
    write_json(folder / "recipe.json", {"recipe": recipe, "code": {"sams.loop": stage}, "upstream": upstream})
    write(folder, {"train.jsonl": lines, "costs.jsonl": lines})
    write_json(folder / "environment.json", ENVIRONMENT)
    write_json(folder / "train_metrics.json", {**figures, "steps": 2})


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Results of `sft` and `dpo` with two seeds, scored on both benchmarks."""
    root = tmp_path / "results" / "tiny"
    setting = root / "world"
    data = seal(setting / "data", train="pairs", **{"report.json": "{}"})
    tokens = seal(setting / "tokens", {"data": data}, train="ids")
    for seed in (0, 1):
        sft = setting / f"sft/seed{seed}"
        weights = seal(sft / "trained", weights=f"sft {seed}")
        files = {"weights": f"model {seed}", "README.md": "the model card"}
        model = seal(sft / "model", {"trained": weights, "tokens": tokens}, **files)
        reference = seal(
            setting / f"reference/seed{seed}", {"tokens": tokens, "model": model}, logps=f"{seed}"
        )
        trained(sft, "train_sft", {"tokens": tokens}, SETTINGS, seed)
        dpo = setting / f"dpo/seed{seed}"
        seal(dpo / "trained", weights=f"dpo {seed}")
        upstream = {"tokens": tokens, "model": model, "reference": reference}
        trained(dpo, "train_preference", upstream, SETTINGS, seed)
        answers = [{"instruction": f"{number}", "output": "yes"} for number in range(4)]
        judged = [{**row, "preference": 1.0 + number / 4} for number, row in enumerate(answers)]
        write(dpo, {"alpaca_eval/answers.json": answers, "alpaca_eval/annotations.json": judged})
        ratings = [
            {"question_id": 1, "turn": turn, "score": 4 + turn, "model": "dpo", "judge": ["j", "t"]}
            for turn in (1, 2)
        ]
        write(dpo, {"mt_bench/answers.jsonl": ratings, "mt_bench/judgments.jsonl": ratings})
        for name, figures, key, file in (
            ("alpaca_eval", alpaca_eval(37.5, 1.0), "model_outputs", "answers.json"),
            ("mt_bench", mt_bench(5.5, 0.5), "answers", "answers.jsonl"),
        ):
            inputs = {key: sha256_of(dpo / name / file)}
            write_json(dpo / name / "metrics.json", {**figures, "inputs": inputs})
    write(root, {"tables/main.json": {}, "checkpoints/world/dpo/state.json": {}})
    table = main_table(read_cells(setting), SETTINGS.methods, SETTINGS.seeds)
    (root / "tables" / "main.csv").write_text(table.to_csv(index=False))
    return root


def broken(root: Path, settings: Study | None = None) -> list[tuple[str, str, str]]:
    return [(f.check, f.where, f.text) for f in verify(root, settings) if not f.holds]


def test_complete_results_pass(results: Path) -> None:
    findings = verify(results, SETTINGS)
    assert all(finding.holds for finding in findings), [f for f in findings if not f.holds]
    counts: dict[str, int] = {}
    for finding in findings:
        counts[finding.check] = counts.get(finding.check, 0) + 1
    # 2 shared folders, 4 for each seed; upstream of tokens, and of model, reference, sft, dpo for each seed.
    assert counts == {
        "files": 10, "made from": 9, "recipe": 4, "figures": 8, "code": 2, "environment": 1, "commit": 1, "tables": 1,
    }  # fmt: skip


def edit(file: str, **changes: object) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        content = read_json(root / file)
        write_json(root / file, {**content, **changes})

    return change


def pairs(folder: str, *, right: int, of: int) -> Callable[[Path], None]:
    """Write a record of test pairs, of which so many are ranked as labelled."""

    def fault(root: Path) -> None:
        margins = [1.0] * right + [-1.0] * (of - right)
        rows = [
            {"id": f"{n}", "split": "test", "step": 2, "margin": margin} for n, margin in enumerate(margins)
        ]
        pd.DataFrame(rows).to_parquet(root / folder / "pairs.parquet")

    return fault


def rewrite(file: str, text: str) -> Callable[[Path], None]:
    return lambda root: (root / file).write_text(text) and None


def resealed_tokens(root: Path) -> None:
    """Other token ids, with a manifest of their own: nothing in the folder itself is wrong."""
    tokens = root / "world/tokens"
    upstream = read_json(tokens / "manifest.json")["upstream"]
    (tokens / "train").write_text("other ids")
    write_manifest(tokens, upstream=upstream)


def other_recipe(root: Path) -> None:
    file = root / "world/dpo/seed1/recipe.json"
    content = json.loads(file.read_text())
    content["recipe"]["training"]["beta"] = 0.3
    write_json(file, content)


COMMIT = {"git_commit": "b" * 40, "git_dirty": "true"}


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (
            rewrite("world/dpo/seed0/trained/weights", "x"),
            [("files", "dpo/seed0/trained", "weights has changed")],
        ),
        (lambda r: (r / "world/data/train").unlink(), [("files", "world/data", "train is missing")]),
        (rewrite("world/data/more", "x"), [("files", "world/data", "more was added")]),
        (resealed_tokens, [("made from", "sft/seed0/model", "tokens has changed (world/tokens)")]),
        (rewrite("tables/main.csv", "method,better"), [("tables", "tables/main.csv", "does not match")]),
        (
            lambda r: shutil.rmtree(r / "world/reference/seed0"),
            [("made from", "world/dpo/seed0", "reference is missing (world/reference/seed0)")],
        ),
        (lambda r: (r / "world/sft/seed0/recipe.json").unlink(), [("recipe", "sft/seed0", "is missing")]),
        (
            lambda r: shutil.copy(r / "world/dpo/seed0/recipe.json", r / "world/dpo/seed1/recipe.json"),
            [("recipe", "world/dpo/seed1", "belongs to dpo, seed 0")],
        ),
        (other_recipe, [("recipe", "dpo", "2 different recipes over its seeds")]),
        (other_recipe, [("recipe", "dpo/seed1", "differs from the study in training.beta")]),
        (
            edit("world/dpo/seed1/recipe.json", code={"sams.loop": "other"}),
            [("code", "train_preference", "sams.loop differs between runs")],
        ),
        (
            edit("world/dpo/seed1/environment.json", python="3.12"),
            [("environment", "all runs", "world/dpo/seed1")],
        ),
        (
            edit("world/dpo/seed1/environment.json", commit=COMMIT),
            [("commit", "all runs", "2 different"), ("commit", "all runs", "seed1 was made from a modified")],
        ),
        (
            edit("world/dpo/seed1/environment.json", commit={}),
            [("commit", "all runs", "not recorded by 1 of 4")],
        ),
        (
            edit("world/dpo/seed0/train_metrics.json", test_accuracy=70.0),
            [("figures", "dpo/seed0", "test_accuracy is 70")],
        ),
        (
            pairs("world/dpo/seed0", right=3, of=4),
            [("figures", "dpo/seed0", "test_accuracy is 61.2500, of the recorded pairs 75.0000")],
        ),
        (
            edit("world/dpo/seed0/train_metrics.json", steps=3),
            [("figures", "dpo/seed0", "the log ends at step 2")],
        ),
        (
            edit("world/dpo/seed0/alpaca_eval/metrics.json", win_rate=50.0),
            [("figures", "alpaca", "of the judgments 37.5")],
        ),
        (
            edit("world/dpo/seed0/mt_bench/metrics.json", average=9.0),
            [("figures", "mt_bench", "of the judgments 5.5")],
        ),
        (
            rewrite("world/dpo/seed0/alpaca_eval/answers.json", "[]"),
            [("figures", "alpaca", "differs from the judged answers")],
        ),
    ],
)
def test_faults_are_named(
    fault: Callable[[Path], None], expected: list[tuple[str, str, str]], results: Path
) -> None:
    fault(results)
    found = broken(results, SETTINGS)
    for check, where, words in expected:
        assert any(f[0] == check and where in f[1] and words in f[2] for f in found), found


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(UserError, match="give results/<study>"):
            verify(folder)


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_a_bundle_is_the_same_bytes_and_passes_without_weights(
    results: Path, tmp_path: Path, kind: str
) -> None:
    first, second = (tmp_path / f"{name}.{kind}" for name in ("first", "second"))
    ran = CliRunner().invoke(app, ["verify", str(results), "--bundle", str(first)])
    assert ran.exit_code == 0, ran.output
    for path in results.rglob("*"):
        os.utime(path, (1e9, 1e9))
        path.chmod(0o755)
    pack(results, second)
    assert first.read_bytes() == second.read_bytes()
    names = {path.relative_to(results).as_posix() for path in bundled_files(results)}
    assert {"world/dpo/seed0/recipe.json", "world/tokens/manifest.json", "tables/main.csv"} <= names
    assert {"world/data/report.json", "world/dpo/seed0/train.jsonl"} <= names
    assert not [
        name for name in names if "weights" in name or "checkpoints" in name or name.endswith("/train")
    ]
    again = CliRunner().invoke(app, ["verify", str(first)])
    assert again.exit_code == 0, again.output
    assert "all passed" in again.output and "not in the bundle" in " ".join(again.output.split())


def test_a_changed_bundle_fails(results: Path, tmp_path: Path) -> None:
    pack(results, tmp_path / "b.zip")
    changed = tmp_path / "changed.zip"
    with zipfile.ZipFile(tmp_path / "b.zip") as old, zipfile.ZipFile(changed, "w") as new:
        for name in old.namelist():
            new.writestr(name, b"method,better\n" if name.endswith("main.csv") else old.read(name))
    ran = CliRunner().invoke(app, ["verify", str(changed)])
    assert ran.exit_code == 1 and "1 failed" in ran.output


def test_results_that_fail_are_not_packed(results: Path, tmp_path: Path) -> None:
    (results / "world/data/train").write_text("x")
    ran = CliRunner().invoke(app, ["verify", str(results), "--bundle", str(tmp_path / "b.zip")])
    assert ran.exit_code == 1 and not (tmp_path / "b.zip").exists()
    assert "train has changed" in " ".join(ran.output.split())


def test_other_files_are_no_bundles(results: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ends in \.zip or \.tar\.gz"):
        pack(results, tmp_path / "b.rar")
    (tmp_path / "b.zip").write_text("no zip")
    ran = CliRunner().invoke(app, ["verify", str(tmp_path / "b.zip")])
    assert isinstance(ran.exception, UserError) and "cannot be unpacked" in str(ran.exception)


def test_sources_that_have_changed_are_named(results: Path) -> None:
    workplace = results.parent.parent
    (workplace / "train.jsonl").write_text("rows")
    recorded = {"train.jsonl": sha256_of(workplace / "train.jsonl"), "gone.jsonl": "0" * 64}
    manifest = results / "world/data/manifest.json"
    write_json(manifest, {**read_json(manifest), "sources": recorded})
    [found] = [finding for finding in verify(results) if finding.check == "sources"]
    assert found.holds and found.text == "train.jsonl", "a source that is gone cannot be compared"
    (workplace / "train.jsonl").write_text("other rows")
    [found] = [finding for finding in verify(results) if finding.check == "sources"]
    assert not found.holds and found.where == "world/data" and found.text == "train.jsonl has changed"
