"""Progress lines in a log, and the recorded environment of a result."""

import json
import logging
from pathlib import Path

import pytest

from sams.runtime import progress
from sams.runtime.files import manifest_digest, whole_folder
from sams.runtime.provenance import ENVIRONMENT, made_on


class Clock:
    """A clock that the test advances."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_a_log_gets_a_line_in_half_a_minute_with_rate_time_left_and_cost(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with progress.Progress("judge", 1000, "calls", done=100, cost=lambda: "$1.50") as course:
        for _ in range(360):
            clock.now += 0.25
            course.add()
    told = [record.getMessage() for record in caplog.records]
    assert told[0] == "judge: 220 of 1000 calls (22 %), 4.0 calls/s, 3 min 15 s left, $1.50 so far"
    assert len(told) == 3


def test_what_an_earlier_start_has_done_counts_for_no_speed(clock: Clock) -> None:
    course = progress.Progress("answers", 100, "answers")
    course.add(50, kept=True)
    clock.now += 100
    course.add(10)
    assert str(course) == "answers: 60 of 100 answers (60 %), 10.0 s each, 6 min 40 s left"


def test_a_stage_of_unknown_length_tells_no_time_left(clock: Clock) -> None:
    course = progress.Progress("train", None, "records")
    clock.now += 2
    course.add(5000)
    assert str(course) == "train: 5000 records, 2500.0 records/s"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "0 s"), (59, "59 s"), (3600, "1 h"), (7500, "2 h 5 min"), (273600, "3 d 4 h")],
)
def test_durations_have_two_units(seconds: float, words: str) -> None:
    assert progress.duration(seconds) == words


def test_every_sealed_folder_says_what_it_was_made_on_and_is_the_same_on_another_machine(
    tmp_path: Path,
) -> None:
    with whole_folder(tmp_path / "a") as part:
        (part / "x").write_text("1")
    found = json.loads((tmp_path / "a" / ENVIRONMENT).read_text())
    assert found == made_on()
    assert (
        found["cpu"]
        and found["cores"]
        and found["memory_gib"]
        and {"gpus", "driver", "system"} <= found.keys()
    )
    assert {"torch", "transformers", "alpaca-eval"} <= found["libraries"].keys()
    digest = manifest_digest(tmp_path / "a")
    (tmp_path / "a" / ENVIRONMENT).write_text("{}")
    assert manifest_digest(tmp_path / "a") == digest
