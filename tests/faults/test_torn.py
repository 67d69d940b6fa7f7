"""Torn files and flipped bits are noticed before use, and the intact checkpoint before them is used."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from sams.data import tokenise
from sams.generation.shards import Shards
from sams.judge.store import Store
from sams.runtime.errors import UserError
from sams.runtime.files import write_manifest
from sams.scoring.inputs import meta_path, read_rows
from sams.study.recipes import DataRecipe, ExportRecipe, TokeniseRecipe, recipe_json
from sams.study.settings import Data, World
from sams.training import export
from sams.training.checkpoints import Checkpoints
from sams.training.distribution import Workers
from tests import tiny
from tests.faults.conftest import Stopped, assert_same, flip, stop, train
from tests.training.test_runs import here


@pytest.mark.parametrize(
    ("upstream", "file"),
    [
        ("tokens", "train/data-00000-of-00001.arrow"),
        ("tokens", "train/state.json"),
        ("tokens", "tokenizer/tokenizer.json"),
        ("model", "model.safetensors"),
        ("model", "config.json"),
        ("reference", "train.parquet"),
        ("scheduler", "scheduler.pt"),
        ("model", "manifest.json"),
    ],
)
@pytest.mark.parametrize(
    "damage", [flip, lambda file: os.truncate(file, file.stat().st_size - 3)], ids=["flipped", "torn"]
)
def test_no_step_is_taken_on_a_damaged_input(
    upstream: str, file: str, damage: Callable[[Path], None], prepared: dict[str, Path], tmp_path: Path
) -> None:
    copies = prepared | {upstream: tmp_path / upstream}
    shutil.copytree(prepared[upstream], copies[upstream])
    damage(copies[upstream] / file)
    with pytest.raises(
        UserError, match=rf"{Path(file).name}.* (has changed since|damaged).*snakemake then makes"
    ):
        train(copies, tmp_path / "out", tmp_path / "ck")
    assert not list(tmp_path.glob("ck/*/step-*")) and not (tmp_path / "out").exists()


# What is damaged of the newest checkpoint; a checkpoint as a whole cannot be read without its marker.
NEWEST = {
    "shard": "step-00000003/__0_0.distcp",
    "index": "step-00000003/.metadata",
    "state": "step-00000003/loop.pt",
    "marker": "step-00000003/COMPLETE",
    "replay pool": "replay/shard-0000.*",
}


@pytest.mark.parametrize("what", NEWEST)
def test_the_checkpoint_before_a_damaged_one_is_used(
    what: str,
    prepared: dict[str, Path],
    trained_undisturbed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    interrupted(prepared, tmp_path, monkeypatch)
    flip(max(tmp_path.glob(f"ck/*/{NEWEST[what]}")))
    train(prepared, tmp_path / "out", tmp_path / "ck")
    assert "step-00000003 is damaged, trying the checkpoint before it" in caplog.text
    assert steps_taken(tmp_path)[3:] == [3, 4]
    assert_same(tmp_path / "out", trained_undisturbed)


def test_where_no_checkpoint_is_whole_nothing_is_trained_and_nothing_deleted(
    prepared: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(prepared, tmp_path, monkeypatch)
    for file in tmp_path.glob("ck/*/step-*/loop.pt"):
        flip(file)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(
        UserError,
        match=r"every checkpoint is damaged .*step-00000002.*delete that folder to start from step 0",
    ):
        train(prepared, tmp_path / "out", tmp_path / "ck")
    assert sorted(tmp_path.rglob("*")) == before


def interrupted(prepared: dict[str, Path], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that ended after its third checkpoint, of which the last two are there."""
    save = Checkpoints.save

    def saving(self: Checkpoints, policy: object, optimiser: object, loop: dict[str, object]) -> None:
        save(self, policy, optimiser, loop)  # type: ignore[arg-type]
        if loop["step"] == 3:
            stop()

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(Checkpoints, "save", saving)
        train(prepared, folder / "out", folder / "ck")


def steps_taken(folder: Path) -> list[int]:
    """Steps of all starts, in order."""
    return [json.loads(line)["step"] for line in (folder / "out/costs.jsonl").read_text().splitlines()]


def test_what_a_killed_save_has_left_gives_its_room_back(tmp_path: Path) -> None:
    workers = Workers(device="cpu", strategy="ddp", precision="float32", threads=1, timeout_minutes=1)
    left = Checkpoints(tmp_path, workers, inputs={}, code={}).folder / ".step-00000099.part"
    left.mkdir()
    Checkpoints(tmp_path, workers, inputs={}, code={})
    assert not left.exists()


def test_damaged_weights_are_not_exported(
    prepared: dict[str, Path], trained_undisturbed: Path, tmp_path: Path
) -> None:
    shutil.copytree(trained_undisturbed / "trained", tmp_path / "trained")
    flip(tmp_path / "trained/__0_0.distcp")
    paths = {"tokens": prepared["tokens"], "trained": tmp_path / "trained", "out": tmp_path / "model"}
    with pytest.raises(UserError, match=r"__0_0\.distcp has changed since it was written"):
        here(export, ExportRecipe(model=tiny.settings()), **paths)
    assert not (tmp_path / "model").exists()


def test_damaged_data_is_not_tokenised(tmp_path: Path) -> None:
    from sams.data import prepare

    world = World(train_pairs=60, test_pairs=20, sft_examples=20)
    prepare.main(recipe_json(DataRecipe(data=Data(world=world))), tmp_path / "data")
    flip(tmp_path / "data/train.parquet", 200)
    recipe = recipe_json(TokeniseRecipe(model=tiny.settings(), max_length=64, max_prompt_length=32))
    with pytest.raises(UserError, match=r"train\.parquet has changed since it was written"):
        tokenise.main(recipe, tmp_path / "data", tmp_path / "tokens")
    assert not (tmp_path / "tokens").exists()


def test_a_damaged_batch_of_answers_is_decoded_again(tmp_path: Path) -> None:
    place = tmp_path / ".answers.parts"
    shards = Shards(place, {"a": 1})
    for number in range(3):
        shards.put(f"batch {number}", [f"text {number}"])
    place.write_text(place.read_text().replace("text 1", "text 7"))
    again = Shards(place, {"a": 1})
    assert [again.get(f"batch {number}") for number in range(3)] == [["text 0"], None, None]
    again.put("batch 1", ["text 1"])
    assert Shards(place, {"a": 1}).get("batch 1") == ["text 1"]


def test_a_damaged_answer_of_the_judge_is_named(tmp_path: Path) -> None:
    store = Store(tmp_path / "calls.jsonl")
    for name in "abc":
        store.put(name, {"said": f"{name} 1"})
    store.close()
    file = tmp_path / "calls.jsonl"
    file.write_text(file.read_text().replace("b 1", "b 2"))
    with pytest.raises(UserError, match=r"line 2: .*as it was written; delete that line"):
        Store(file)


def test_damaged_answers_and_questions_are_not_scored(tmp_path: Path) -> None:
    for name in ("answers.json", "questions.json"):
        (tmp_path / name).write_text('[{"instruction": "1", "output": "2"}]')
    from sams.runtime.files import sha256_of, write_json

    write_json(meta_path(tmp_path / "answers.json"), {"sha256": sha256_of(tmp_path / "answers.json")})
    write_manifest(tmp_path)
    for name in ("answers.json", "questions.json"):
        file = tmp_path / name
        assert len(read_rows(file)) == 1
        file.write_text(file.read_text().replace("2", "3"))
        with pytest.raises(UserError, match=f"{name}: has changed since it was written"):
            read_rows(file)


@pytest.mark.faults
def test_two_processes_go_back_together_from_a_shard_that_one_of_them_reads(
    prepared: dict[str, Path], tmp_path: Path
) -> None:
    from tests.faults.conftest import recipe
    from tests.training.test_runs import finish, start

    paths = prepared | {"checkpoints": tmp_path / "ck"}
    whole = recipe(max_steps=4)
    finish(start("preference", whole, processes=2, **paths, out=tmp_path / "whole"))
    job = start("preference", whole, processes=2, **paths, out=tmp_path / "out")
    while not list(tmp_path.glob("ck/*/step-00000003")):
        assert job.poll() is None
    os.killpg(job.pid, 9)
    job.wait()
    flip(max(tmp_path.glob("ck/*/step-00000003/__1_0.distcp")))
    printed = finish(start("preference", whole, processes=2, **paths, out=tmp_path / "out"))
    assert "step-00000003 is damaged" in printed and "resuming after step 2" in printed
    assert_same(tmp_path / "out", tmp_path / "whole")
