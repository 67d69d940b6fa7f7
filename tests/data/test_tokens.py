"""Tokenised splits on disk: `datasets` opens them, and training reads them without loading them."""

from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest

from sams.data.tokens import TokenLists, lengths_of, read_columns, token_writer
from sams.runtime.errors import UserError
from sams.training.tasks.base import read_tokens
from sams.training.tasks.pairs import MismatchedTask, PairTask
from sams.training.tasks.sft import SftTask
from tests import tiny

NAMES = ["id", "prompt_ids", "chosen_ids", "rejected_ids", "flipped"]


def write(folder: Path, columns: dict[str, list[Any]], size: int) -> dict[str, Any]:
    with token_writer(folder, list(columns), unknown=3) as writer:
        for start in range(0, len(columns["id"]), size):
            writer.write({name: values[start : start + size] for name, values in columns.items()})
            writer.write({name: [] for name in columns})
    return writer.report()


def test_what_is_written_is_read_by_us_and_by_datasets(tmp_path: Path) -> None:
    columns = tiny.pairs(50, seed=1)
    columns["flipped"][7] = None
    columns["chosen_ids"][20] = []
    report = write(tmp_path / "train", columns, size=7)
    assert datasets.load_from_disk(str(tmp_path / "train")).to_dict() == columns
    read = read_columns(tmp_path / "train")
    assert list(read) == NAMES
    assert {name: list(values) for name, values in read.items()} == columns
    tokens = [row for name in NAMES if name.endswith("_ids") for row in columns[name]]
    assert report["tokens"] == sum(map(len, tokens))
    assert report["unknown"] == sum(row.count(3) for row in tokens)
    lengths = [len(row) for row in columns["prompt_ids"]]
    assert report["prompt_ids"] == {"mean": round(sum(lengths) / 50, 2), "max": max(lengths)}
    assert lengths_of(read["prompt_ids"]).tolist() == lengths == lengths_of(columns["prompt_ids"]).tolist()


def test_a_column_is_a_sequence(tmp_path: Path) -> None:
    columns = tiny.pairs(10, seed=1)
    write(tmp_path / "train", columns, size=3)
    column = read_columns(tmp_path / "train")["prompt_ids"]
    assert len(column) == 10
    assert [column[-1], column[-10]] == [columns["prompt_ids"][-1], columns["prompt_ids"][0]]
    for row in (10, -11):
        with pytest.raises(IndexError):
            column[row]
    assert all(type(token) is int for token in column[0])


def test_parts_that_datasets_saved_are_read_too(tmp_path: Path) -> None:
    columns = tiny.pairs(50, seed=1)
    datasets.Dataset.from_dict(columns).save_to_disk(tmp_path / "train", num_shards=3)
    assert {name: list(values) for name, values in read_columns(tmp_path / "train").items()} == columns


def test_tokens_stay_on_disk(tmp_path: Path) -> None:
    size = 100_000
    rows = {"id": [str(number) for number in range(20)], "prompt_ids": [list(range(size))] * 20}
    write(tmp_path / "sft", rows, size=5)
    before = pa.total_allocated_bytes()
    columns = read_columns(tmp_path / "sft")
    assert columns["prompt_ids"][19][-1] == size - 1
    assert lengths_of(columns["prompt_ids"]).tolist() == [size] * 20
    assert pa.total_allocated_bytes() - before < size, "20 times four times that are on disk"


def test_tasks_are_the_same_from_disk_and_from_lists(tmp_path: Path) -> None:
    columns = tiny.pairs(40, seed=1)
    columns["mismatched_ids"] = columns["chosen_ids"][1:] + columns["chosen_ids"][:1]
    write(tmp_path / "train", columns, size=16)
    read = read_tokens(tmp_path, "train")
    assert isinstance(read["chosen_ids"], TokenLists)
    items = [39, 0, 17, 16, 15]
    for make in (PairTask, MismatchedTask, lambda data: SftTask(data, response="chosen_ids")):
        ours, plain = make(read), make(columns)
        assert (ours.ids, ours.lengths) == (plain.ids, plain.lengths)
        assert all(type(length) is int for length in ours.lengths)
        assert getattr(ours, "weights", None) == getattr(plain, "weights", None)
        assert ours.packed_lengths == plain.packed_lengths
        assert ours.sequences(items) == plain.sequences(items)


def test_a_split_that_is_not_there_or_not_whole_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train: no such tokenised split; run the rule `tokenise` first"):
        read_tokens(tmp_path, "train")
    write(tmp_path / "train", tiny.pairs(50, seed=1), size=50)
    file = tmp_path / "train" / "data-00000-of-00001.arrow"
    file.write_bytes(file.read_bytes()[:-5000])
    with pytest.raises(UserError, match=r"train: no tokenised split \(.*run the rule `tokenise` again"):
        read_tokens(tmp_path, "train")
    file.unlink()
    with pytest.raises(UserError, match="no tokenised split"):
        read_tokens(tmp_path, "train")
