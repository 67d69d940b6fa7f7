"""Several processes against steps by hand on the rows that they trained on."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import ROOT, patience
from tests.trl import small
from tests.trl.distributed import COUNT, RUN, RUNS
from tests.trl.runs import by_hand

NAMES = [name for name in RUNS if name != "fsdp"]
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def processes(folder: Path, world: int, names: list[str]) -> dict[str, list[dict[str, Any]]]:
    """Return what each process of each run wrote."""
    command = [sys.executable, "-m", "tests.trl.distributed", str(folder), str(world), *names]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=patience(120))
    assert done.returncode == 0, done.stderr[-3000:]
    return {name: [torch.load(folder / name / f"rank{rank}.pt") for rank in range(world)] for name in names}


def assert_by_hand(folder: Path, found: list[dict[str, Any]]) -> None:
    first = found[0]
    for other in found[1:]:
        assert other["rows"] == first["rows"]
        assert other["candidates"] == first["candidates"]
        assert torch.equal(other["weights"], first["weights"])
    settings = {key: RUN[key] for key in ("optim", "learning_rate")}
    expected = by_hand(folder, small.pairs(COUNT), first["rows"], **settings)
    assert (first["weights"] - expected).abs().max() < 1e-6


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """All runs on two processes."""
    return processes(tmp_path_factory.mktemp("two"), 2, NAMES)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("random", [8, 8, 4, 8]),
        ("odd", [6, 6, 4, 6]),  # 0.4 of 16 is 6.4, and 6 the nearest even number
        ("five", [5, 5, 4, 5]),  # the second process gets two pairs and one of weight 0
        ("cached", [8, 8, 4, 8]),  # data in memory, with TRL's cached reference
        ("sams", [8, 8, 4, 8]),
        ("packed", [8, 8, 4, 8]),
    ],
)
def test_two_processes_train_on_the_chosen_rows(
    tmp_path: Path, two: dict[str, list[dict[str, Any]]], name: str, sizes: list[int]
) -> None:
    assert [len(rows) for rows in two[name][0]["rows"]] == sizes
    assert_by_hand(tmp_path, two[name])


def test_the_choice_of_the_first_process_counts(tmp_path: Path, two: dict[str, list[dict[str, Any]]]) -> None:
    for rows, candidates in zip(two["differs"][1]["rows"], two["differs"][0]["candidates"], strict=True):
        assert rows == candidates[: len(rows)]
    assert_by_hand(tmp_path, two["differs"])


def test_candidates_are_those_of_one_process(tmp_path: Path, two: dict[str, list[dict[str, Any]]]) -> None:
    """In the order of the sampler: a run on another number of processes is shown the same view."""
    from tests.trl.runs import run

    alone = run(
        tmp_path, small.pairs(COUNT), **RUN | {"selector": "random", "gradient_accumulation_steps": 8}
    )
    assert alone.candidates == two["random"][0]["candidates"]
    assert alone.rows == two["random"][0]["rows"]


def test_two_processes_resume(two: dict[str, list[dict[str, Any]]]) -> None:
    for complete, resumed in zip(two["sams"], two["resumed"], strict=True):
        assert resumed["rows"] == complete["rows"][2:3]


@pytest.mark.slow
def test_four_processes_train_on_the_chosen_rows(tmp_path: Path) -> None:
    for found in processes(tmp_path, 4, ["random", "five", "sams"]).values():
        assert_by_hand(tmp_path, found)


@pytest.mark.slow
def test_fsdp2_trains_on_the_chosen_rows(tmp_path: Path) -> None:
    found = processes(tmp_path, 2, ["fsdp"])["fsdp"]
    assert all(part["sharded"] for part in found)
    assert_by_hand(tmp_path, found)
