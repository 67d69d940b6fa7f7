"""A full disk: one clear error, an intact older checkpoint, and the same command continues once there is room."""

import logging
import time
from pathlib import Path

import pytest
import torch

from sams.generation.shards import Shards
from sams.judge.store import Store
from sams.runtime.errors import UserError
from sams.runtime.faults import explained
from sams.runtime.files import read_json
from sams.scheduling.pool import Arms, ReplayPool
from sams.study.recipes import DataRecipe, ExportRecipe, recipe_json
from sams.study.settings import Data, World
from sams.training import export
from tests import tiny
from tests.faults.conftest import Disk, assert_same, before_save, train
from tests.training.test_runs import here


def told(error: BaseException) -> str:
    """What a stage prints of it."""
    line = explained(error)
    assert isinstance(line, UserError), repr(error)
    return str(line)


def test_a_full_disk_keeps_the_old_checkpoint_and_the_run_goes_on(
    prepared: dict[str, Path],
    trained_undisturbed: Path,
    disk: Disk,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checkpoints = disk.folder / "ck"
    with monkeypatch.context() as patch:
        before_save(patch, 3, disk.fill)
        with pytest.raises(OSError) as failure:  # noqa: PT011
            train(prepared, tmp_path / "out", checkpoints)
    assert "step-00000003: cannot be written: the disk is full" in told(failure.value)
    assert "free space and start the same command again" in told(failure.value)
    [folder] = checkpoints.iterdir()
    assert sorted(path.name for path in folder.glob("*step-*")) == ["step-00000001", "step-00000002"]
    disk.empty()
    train(prepared, tmp_path / "out", checkpoints)
    assert_same(tmp_path / "out", trained_undisturbed)


def test_no_room_for_the_trained_weights_leaves_no_result_and_the_run_goes_on(
    prepared: dict[str, Path],
    trained_undisturbed: Path,
    disk: Disk,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = disk.folder / "out"
    with monkeypatch.context() as patch:
        before_save(patch, 3, disk.fill)
        with pytest.raises(BaseException) as failure:  # noqa: PT011
            train(prepared, out, tmp_path / "ck")
    assert "the disk is full" in told(failure.value)
    assert not (out / "trained").exists()
    disk.empty()
    train(prepared, out, tmp_path / "ck")
    assert_same(out, trained_undisturbed)


def test_no_room_for_an_export_leaves_nothing(
    prepared: dict[str, Path], trained_undisturbed: Path, disk: Disk
) -> None:
    out = disk.folder / "model"
    paths = {"tokens": prepared["tokens"], "trained": trained_undisturbed / "trained", "out": out}
    disk.fill()
    with pytest.raises(Exception) as failure:  # noqa: PT011
        here(export, ExportRecipe(model=tiny.settings()), **paths)
    assert "the disk is full" in told(failure.value)
    assert [path.name for path in disk.folder.iterdir()] == ["filler"]
    disk.empty()
    here(export, ExportRecipe(model=tiny.settings()), **paths)
    assert (out / "manifest.json").is_file()


def test_no_room_for_data_leaves_nothing(disk: Disk) -> None:
    from sams.data import prepare

    out = disk.folder / "data"
    recipe = recipe_json(DataRecipe(data=Data(world=World(train_pairs=300, test_pairs=50, sft_examples=50))))
    disk.fill()
    with pytest.raises(OSError) as failure:  # noqa: PT011
        prepare.main(recipe, out)
    assert "the disk is full" in told(failure.value)
    assert [path.name for path in disk.folder.iterdir()] == ["filler"]
    disk.empty()
    prepare.main(recipe, out)
    assert read_json(out / "report.json")["train"]["written"] > 0


def test_no_room_for_an_answer_of_the_judge_tears_no_line(disk: Disk) -> None:
    place = disk.folder / "calls.jsonl"
    store = Store(place)
    store.put("a", {"said": "1"})
    disk.fill()
    with pytest.raises(OSError, match="No space left"):
        for number in range(100):  # what was written leaves room in its last page
            store.put(f"b{number}", {"said": "2" * 500})
    store.close()
    disk.empty()
    again = Store(place)
    assert again.get("a") == {"said": "1"}
    again.put("c", {"said": "3"})
    again.close()
    assert Store(place).get("c") == {"said": "3"}


def test_no_room_for_a_batch_of_answers_keeps_those_before_it(disk: Disk) -> None:
    place = disk.folder / ".answers.parts"
    shards = Shards(place, {"a": 1})
    shards.put("one", ["1"])
    disk.fill()
    with pytest.raises(OSError, match="No space left"):
        for number in range(100):
            shards.put(f"two {number}", ["2" * 500])
    disk.empty()
    again = Shards(place, {"a": 1})
    assert again.get("one") == ["1"]
    again.put("three", ["3"])
    assert Shards(place, {"a": 1}).get("three") == ["3"]


@pytest.mark.faults
def test_no_room_for_the_database_of_runs_stops_no_training(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from mlflow.tracking import MlflowClient

    from sams.tracking import log as tracking

    uri = f"sqlite:///{disk.folder}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    tracking.prepare_database()

    def start(offset: int | None) -> tracking.Run:
        return tracking.start(
            tmp_path / "train.jsonl",
            tmp_path / "run",
            study="full",
            setting="s",
            name="s/dpo/seed0",
            stage="train_preference",
            recipe={},
            tags={},
            resume_at=offset,
        )

    first = start(None)
    first.log({"loss": 1.0}, step=1, pairs_seen=1)
    while not (tmp_path / "run").is_file():
        time.sleep(0.1)
    disk.fill()
    with caplog.at_level(logging.WARNING):
        for step in range(2, 500):
            first.log({"loss": 1.0 / step}, step=step, pairs_seen=step)
        offset = first.offset
        first.finish("FAILED")
    assert "disk is full" in caplog.text or "disk I/O error" in caplog.text
    assert len((tmp_path / "train.jsonl").read_text().splitlines()) == 499

    disk.empty()
    second = start(offset)
    second.log({"loss": 0.0}, step=500, pairs_seen=500)
    second.finish()
    history = MlflowClient(uri).get_metric_history((tmp_path / "run").read_text().strip(), "loss")
    assert sorted({point.step for point in history}) == list(range(1, 501))
    assert len(history) == 500


def test_a_disk_too_small_for_the_replay_pool_is_told_before_the_first_step(disk: Disk) -> None:
    arms = Arms(torch.zeros(2, 2, 8), torch.zeros(2, 4), torch.zeros(2), torch.zeros(2))

    def add() -> None:
        generator = torch.Generator().manual_seed(0)
        ReplayPool(disk.folder / "replay", max_arms=1000, max_bytes=10**9, generator=generator).add(arms)

    disk.fill()
    with pytest.raises(
        UserError, match=r"up to 0\.0 GiB more, of 0\.0 GiB free; make room, or lower scheduler"
    ):
        add()
    assert [path.name for path in disk.folder.iterdir()] == ["filler"]
    disk.empty()
    add()
