"""What the rules give to their jobs, and how their changes are named."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from snakemake.io import contains_wildcard
from snakemake.iocontainers import InputFiles, OutputFiles, Wildcards

from sams.launch.changes import changes, code_text, sources_text
from sams.launch.jobs import Jobs, options
from sams.runtime.files import canonical_json
from tests.study.test_config import tiny_study

RECIPE = {"seed": 0, "method": "dpo", "training": {"beta": 0.1, "lora": None}, "scheduler": None}
CODE = {"sams.losses.dpo": "1", "sams.training.loop": "2"}


def shown(**values: Any) -> str:
    """A rule's parameter as Snakemake keeps it."""
    return repr(canonical_json(values))


@pytest.mark.parametrize(
    ("before", "now", "text"),
    [
        (RECIPE, {**RECIPE, "training": {"beta": 0.3, "lora": None}}, "preference.beta: 0.1 -> 0.3"),
        (RECIPE, {**RECIPE, "training": {"beta": 0.1, "lora": {"rank": 8}}},
         "preference.lora: null -> not set, preference.lora.rank: not set -> 8"),
        ({"training": {"epochs": 1}, "watching": None}, {"training": {"epochs": 2}, "watching": None},
         "sft.epochs: 1 -> 2"),
        ({"model": {"path": "ä"}}, {"model": {"path": "{b}"}}, 'model.path: "ä" -> "{b}"'),
        ({"code": CODE}, {"code": {**CODE, "sams.losses.dpo": "3"}}, "code of sams.losses.dpo"),
        ({"code": CODE}, {"code": {"sams.new": "1", **CODE}}, "code of sams.new"),
        ({"sources": {"train.jsonl": "1"}}, {"sources": {"train.jsonl": "2"}}, "train.jsonl (source changed)"),
        ({f"k{n}": 0 for n in range(8)}, {f"k{n}": 1 for n in range(8)},
         "k0: 0 -> 1, k1: 0 -> 1, k2: 0 -> 1, k3: 0 -> 1, k4: 0 -> 1 and 3 more"),
    ],
)  # fmt: skip
def test_a_change_is_named(before: dict[str, Any], now: dict[str, Any], text: str) -> None:
    assert changes({shown(**before)}, {shown(**now)}) == text


def test_another_loss_is_one_change_and_not_also_its_module() -> None:
    old = {shown(training={"loss": "sigmoid"}), repr(code_text(CODE))}
    new = {
        shown(training={"loss": "ipo"}),
        repr(code_text({"sams.losses.ipo": "1", "sams.training.loop": "2"})),
    }
    assert changes(old, new) == 'training.loss: "sigmoid" -> "ipo"'


@pytest.mark.parametrize("parameter", ["'results/x'", "0.1", "<object>", "'[1]'", repr(json.dumps(None))])
def test_a_parameter_of_another_kind_has_no_name(parameter: str) -> None:
    assert changes({parameter}, {repr(sources_text({}))}) == ""


def filled(**given: Any) -> str:
    inputs = InputFiles(toclone=["t/manifest.json", "a b.csv"])
    inputs._set_name("tokens", 0)
    inputs._set_name("table", 1)
    outputs = OutputFiles(toclone=["o/manifest.json"])
    outputs._set_name("made", 0)
    wildcards = Wildcards(fromdict={"seed": "3"})
    return options("tokens", "table", "absent", **given)(wildcards, inputs, outputs, 8)


def test_options_name_folders_for_manifests_and_leave_out_what_is_absent() -> None:
    assert filled() == "--tokens t --table 'a b.csv'"
    assert filled(out="{output.made}", checkpoints="c/seed{seed}", processes="{threads}") == (
        "--tokens t --table 'a b.csv' --out o --checkpoints c/seed3 --processes 8"
    )


@pytest.mark.parametrize("name", ["pairs.jsonl", "a{}b{seed}.jsonl"])
def test_data_counts_by_content_whatever_its_date_and_name(name: str, tmp_path: Path) -> None:
    file, folder = tmp_path / name, tmp_path / "set"
    folder.mkdir()
    (folder / "train.parquet").write_text("1")
    file.write_text("1")
    data = {"world": None, "train": str(file), "test": str(folder)}
    jobs = Jobs(tiny_study(data=data, benchmarks={"alpaca_eval": None, "mt_bench": None}))
    none: Any = Wildcards()
    assert not any(contains_wildcard(path) for path in jobs.sources("prepare_data")(none))

    def parameter() -> str:
        return str(Jobs(jobs.study).parameters("prepare_data")["sources"](none))

    seen = [parameter()]
    file.write_text("2")
    os.utime(file, (0, 0))
    seen.append(parameter())
    (folder / "train.parquet").write_text("2")
    os.utime(folder / "train.parquet", (0, 0))
    seen.append(parameter())
    (folder / "more.parquet").write_text("")
    seen.append(parameter())
    assert len(set(seen)) == 4 and str(file) in json.loads(seen[0])["sources"]
    os.utime(file, (9, 9))
    assert parameter() == seen[-1]


@pytest.mark.parametrize(("method", "weights"), [("dpo", False), ("sft", False), ("bare", True)])
def test_an_export_reads_of_the_start_model_what_it_copies(
    method: str, weights: bool, tmp_path: Path
) -> None:
    """Of a trained model's start everything but the weights; of a start without SFT the weights too."""
    files = {
        "config.json",
        "generation_config.json",
        "LICENSE",
        "README.md",
        "model.safetensors",
        "notes.txt",
    }
    for name in files:
        (tmp_path / name).write_text("{}")
    study = tiny_study(model={"path": str(tmp_path), "architecture": None, "tokenizer": None})
    if method == "bare":
        method, study = "sft", study.model_copy(update={"sft": None})
    found = Jobs(study).sources("export_model")(Wildcards(fromdict={"method": method, "seed": "0"}))
    expected = files - {"notes.txt"} - (set() if weights else {"model.safetensors"})
    assert {Path(path).name for path in found} == expected
