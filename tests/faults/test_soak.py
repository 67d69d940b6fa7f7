"""Ten thousand steps: memory, open files and disk do not grow, and the records stay consistent across a kill.

`make soak` takes a hundred thousand (SAMS_SOAK_STEPS).
"""

import contextlib
import json
import math
import os
import sqlite3
import statistics
from pathlib import Path
from typing import Any

import pytest

from sams.tracking import log as tracking
from tests.faults import soak

pytestmark = pytest.mark.faults

STEPS = int(os.environ.get("SAMS_SOAK_STEPS", "10000"))
MB = 2**20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("soak")
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
    try:
        tracking.prepare_database()
    finally:
        del os.environ["MLFLOW_TRACKING_URI"]
    soak.run(folder, STEPS)
    return folder


def samples(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


def test_memory_open_files_and_disk_do_not_grow(folder: Path) -> None:
    found = samples(folder)
    half = next(place for place, sample in enumerate(found) if sample["step"] >= STEPS // 2) + 1
    for start in (found[:half], found[half:]):
        # What a process takes at first (pools of the allocator, MLflow's connection) is there after a fifth.
        steady = start[len(start) // 5 :]
        quarter = len(steady) // 4
        first, last = steady[:quarter], steady[-quarter:]
        grown = median(last, "memory") - median(first, "memory")
        told = f"memory {median(first, 'memory') / MB:.1f} MB, {grown / MB:+.2f} MB"
        print(f"steps {steady[0]['step']} to {steady[-1]['step']}: {told}")
        # 8 bytes for each of a handful of figures a step are kept; a megabyte is the allocator's.
        assert grown < 3 * MB + 100 * (steady[-1]["step"] - steady[0]["step"])
        assert median(last, "open_files") <= median(first, "open_files") + 1
        assert median(last, "threads") <= median(first, "threads") + 1
        assert max(sample["disk"] for sample in last) <= 1.05 * max(sample["disk"] for sample in first)
    assert max(sample["checkpoints"] for sample in found) == 2


def median(found: list[dict[str, Any]], key: str) -> float:
    return statistics.median(sample[key] for sample in found)


def test_checkpoints_are_gone_at_the_end(folder: Path) -> None:
    assert not any((folder / "checkpoints").iterdir())


def test_the_metric_log_has_every_line_once_and_the_database_the_same(folder: Path) -> None:
    from mlflow.tracking import MlflowClient

    out = folder / "s/soak/seed0"
    lines = [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]
    evaluated = {math.ceil(STEPS * part / 4) for part in range(1, 5)}
    expected = sorted({*range(soak.LOG_EVERY, STEPS + 1, soak.LOG_EVERY), *evaluated})
    assert [line["step"] for line in lines] == expected
    run = (out / "mlflow_run_id").read_text().strip()
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    history = client.get_metric_history(run, "loss")
    assert [(point.step, point.value) for point in sorted(history, key=lambda point: point.step)] == [
        (line["pairs_seen"], line["loss"]) for line in lines
    ]
    assert client.get_run(run).info.status == "FINISHED"
    with contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as database:
        assert database.execute("pragma integrity_check").fetchall() == [("ok",)]
