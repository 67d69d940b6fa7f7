"""Another clock, time zone, locale, umask; a path with spaces and foreign letters; a read-only source tree."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT
from tests.faults.conftest import assert_same, before_save, train
from tests.faults.test_torn import interrupted

ODD = "mit Leerzeichen über 数"
FUTURE = time.time() + 3 * 86400


@pytest.fixture
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.mark.parametrize("umask", [0o077, 0o000], indirect=True, ids=oct)
def test_training_in_an_odd_folder_under_another_umask_and_time_zone(
    umask: int,
    prepared: dict[str, Path],
    trained_undisturbed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TZ", "Pacific/Auckland")
    time.tzset()
    try:
        train(prepared, tmp_path / ODD / "out", tmp_path / ODD / "ck")
    finally:
        monkeypatch.undo()
        time.tzset()
    assert_same(tmp_path / ODD / "out", trained_undisturbed)
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / ODD / "out").rglob("*.json*")}
    assert modes == {0o666 & ~umask}


def test_a_clock_that_jumps_back_changes_no_result(
    prepared: dict[str, Path], trained_undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = time.time
    before_save(monkeypatch, 2, lambda: monkeypatch.setattr(time, "time", lambda: real() - 3600))
    train(prepared, tmp_path / "out", tmp_path / "ck")
    assert_same(tmp_path / "out", trained_undisturbed)


def test_checkpoints_from_the_future_are_resumed_in_order_of_their_steps(
    prepared: dict[str, Path], trained_undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(prepared, tmp_path, monkeypatch)
    for path in tmp_path.glob("ck/*/step-00000002/**/*"):
        os.utime(path, (FUTURE, FUTURE))
    train(prepared, tmp_path / "out", tmp_path / "ck")
    assert len((tmp_path / "out/costs.jsonl").read_text().splitlines()) == 4
    assert_same(tmp_path / "out", trained_undisturbed)


@pytest.fixture
def read_only_source(tmp_path: Path) -> Iterator[Path]:
    """The source tree, mounted so that nothing can be written to it."""
    place = tmp_path / f"source {ODD}"
    place.mkdir()
    bind = ["mount", "--bind", str(ROOT), str(place)]
    if os.geteuid() or subprocess.run(bind, capture_output=True, check=False).returncode:
        pytest.skip("a read-only source tree is a mount, which needs root")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", place], check=True)
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.faults
def test_the_workflow_runs_from_a_read_only_source_tree_abroad(
    read_only_source: Path, tmp_path: Path
) -> None:
    """Data and tokens; then, with times from the future on what was made, nothing runs again."""
    folder = tmp_path / ODD
    folder.mkdir()
    world = {"sft_examples": 640, "train_pairs": 192, "test_pairs": 64}
    settings = {"study": "abroad", "data": {"world": world}, "tracking": {"enabled": False}}
    (folder / "abroad.yaml").write_text(yaml.safe_dump(settings))

    def workflow(*options: str) -> str:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "snakemake", "--snakefile", read_only_source / "Snakefile"),
                *("--directory", folder, "--configfile", folder / "abroad.yaml", "--cores", "1"),
                *("--profile", read_only_source / "profiles/default", *options, "--until", "tokenise"),
            ],
            cwd=folder,
            env={**os.environ, "TZ": "Pacific/Auckland", "LC_ALL": "C", "PYTHONWARNINGS": "ignore"},
            umask=0o077,
            capture_output=True,
            encoding="utf-8",
            check=False,
        )
        printed = done.stdout + done.stderr
        assert done.returncode == 0, printed[-5000:]
        return printed

    workflow()
    [data] = folder.glob("results/abroad/*/data/manifest.json")
    [tokens] = folder.glob("results/abroad/*/tokens/manifest.json")
    assert tokens.stat().st_mode & 0o777 == 0o600
    os.utime(data, (FUTURE, FUTURE))
    # With --until, Snakemake does not say that nothing is to be done.
    assert "rule tokenise" not in workflow("--dry-run")
