"""Files and hub data sets are read row by row, whatever their names; damaged files are named."""

import gzip
import io
import json
import os
import random
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from sams.data import sources, tokenise
from sams.data.sources import numbered_rows
from sams.runtime.errors import UserError

ROWS = [{"prompt": f"Größe {number}?", "response": "x" * number} for number in range(1, 40)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


def as_parquet() -> bytes:
    stream = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(ROWS), stream)
    return stream.getvalue()


def rows(file: Path) -> list[dict]:
    return [row for _, row in numbered_rows(str(file), "train")]


CONTENTS: dict[str, Callable[[], bytes]] = {
    "JSON lines": lambda: LINES,
    "without a last line end": lambda: LINES.rstrip(b"\n"),
    "with blank lines": lambda: b"\n" + LINES.replace(b"\n", b"\n\n"),
    "CRLF": lambda: LINES.replace(b"\n", b"\r\n"),
    "byte order mark": lambda: b"\xef\xbb\xbf" + LINES,
    "JSON list": lambda: json.dumps(ROWS, indent=1).encode(),
    "JSON list after blanks and a mark": lambda: b"\xef\xbb\xbf \n" + json.dumps(ROWS).encode(),
    "Parquet": as_parquet,
}


def test_fields_of_a_csv_file_hold_separators_and_line_ends(tmp_path: Path) -> None:
    file = tmp_path / "data"
    file.write_bytes(
        b'\xef\xbb\xbfprompt, "chosen"\n"Two\nlines, \xc2\xbb""x""?",Oui.\n"' + b"y" * 200_000 + b'",z\n'
    )
    assert rows(file) == [
        {"prompt": 'Two\nlines, \u00bb"x"?', "chosen": "Oui."},
        {"prompt": "y" * 200_000, "chosen": "z"},
    ]
    assert [where for where, _ in numbered_rows(str(file), "train")] == [f"{file}, row 1", f"{file}, row 2"]


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS.keys())
def test_a_file_is_known_by_its_content(content: Callable[[], bytes], packed: bool, tmp_path: Path) -> None:
    for name in ("data.jsonl", "data.parquet", "data"):
        file = tmp_path / name
        file.write_bytes(gzip.compress(content()) if packed else content())
        assert rows(file) == ROWS


def test_rows_are_numbered_by_line(tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text('\n{"a": 1}\n\n{"a": 2}\n')
    assert [place for place, _ in numbered_rows(str(file), "train")] == [f"{file}, row 2", f"{file}, row 4"]


PACKED = gzip.compress(LINES)

BROKEN: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "data.jsonl: the data has no row; give at least one"),
    "blank lines": (b"\n\n \n", "the data has no row"),
    "empty list": (b"[]", "the data has no row"),
    "empty gzip": (gzip.compress(b""), "the data has no row"),
    "no JSON": (
        b'{"a": 1}\n{"a": \n',
        r"data.jsonl, row 2: not JSON \(.* at column \d+\); give one JSON object",
    ),
    "a list cut off": (
        json.dumps(ROWS).encode()[:-9],
        r"data.jsonl: not JSON .*; give a list, or JSON lines",
    ),
    "objects over several lines": (json.dumps(ROWS[0], indent=1).encode(), "row 1: not JSON"),
    "text": (b"once upon a time\n", "row 1: not JSON"),
    "numbers": (b'{"a": 1}\n7\n', "row 2: expected an object with keys, found int"),
    "a list of lists": (b"[[1], [2]]", "row 1: expected an object with keys, found list"),
    "not UTF-8": (b'{"a": 1}\n{"a": "\xe9"}\n', "row 2: not UTF-8 .*; convert it to UTF-8"),
    "UTF-16": ('{"a": 1}\n'.encode("utf-16"), "row 1: not UTF-8"),
    "a list without its end": (b'[{"a": 1}', r"data.jsonl: not JSON .*row 2\)"),
    "a list without commas": (b'[{"a": 1} {"a": 2}]', r"data.jsonl: not JSON .*expected, at row 2\)"),
    "a list with a comma too many": (b'[{"a": 1},]', r"data.jsonl: not JSON .*row 2\)"),
    "a list that begins with a comma": (b'[,{"a": 1}]', r"data.jsonl: not JSON .*row 1\)"),
    "a list and more": (b'[{"a": 1}]\n[]', "data.jsonl: not JSON .*more text after the list"),
    "an open list": (b"[", "data.jsonl: not JSON"),
    "a list that is not UTF-8": (b'[{"a": "\xe9"}]', "data.jsonl: not UTF-8"),
    "gzip cut off": (
        PACKED[: len(PACKED) // 2],
        r"data.jsonl: the gzip file is cut off or damaged .*; fetch it",
    ),
    "gzip without its end": (PACKED[:-4], "cut off or damaged"),
    "gzip damaged": (PACKED[:30] + b"\x00\x00\x00" + PACKED[33:], "cut off or damaged"),
    "gzip and more": (PACKED + b"junk", "cut off or damaged"),
    "Parquet cut off": (as_parquet()[:-20], "data.jsonl: the Parquet file is cut off or damaged"),
    "NUL": (b"\x00\x00\n", "row 1: not JSON"),
}


@pytest.mark.parametrize(("content", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_broken_files_are_refused(content: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    file.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        rows(file)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name", ["nowhere.jsonl", "./nowhere", "some/folder/nowhere", "/nowhere", "nowhere.gz:test"]
)
def test_a_missing_file_is_no_hub_id(name: str) -> None:
    with pytest.raises(UserError, match="no such file; correct the path, or give a hub id"):
        list(numbered_rows(name, "train"))


@pytest.fixture
def hub_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A local folder in the hub's form: two configs, two splits, the rows in two shards."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "set"
    table = pa.Table.from_pylist(ROWS)
    for name, part in (
        ("main/train-00000-of-00002", table[:20]),
        ("main/train-00001-of-00002", table[20:]),
        ("main/test_prefs-00000-of-00001", table[:3]),
        ("extra/train-00000-of-00001", table[:1]),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(part, folder / f"{name}.parquet")
    (folder / "README.md").write_text(
        "---\nconfigs:\n"
        "- config_name: default\n  data_files:\n"
        "  - {split: train, path: main/train-*}\n  - {split: test_prefs, path: main/test_prefs-*}\n"
        "- config_name: extra\n  data_files:\n  - {split: train, path: extra/train-*}\n---\n"
    )
    return folder


def test_a_data_set_of_the_hubs_form(hub_folder: Path) -> None:
    assert [row for _, row in numbered_rows(str(hub_folder), "train")] == ROWS
    assert [row for _, row in numbered_rows(f"{hub_folder}:test_prefs", "train")] == ROWS[:3]
    assert [row for _, row in numbered_rows(f"{hub_folder}:extra/train", "test")] == ROWS[:1]
    assert [row for _, row in numbered_rows(f"{hub_folder}:train[:8]", "test")] == ROWS[:8]
    [*_, (place, _)] = numbered_rows(f"{hub_folder}:test_prefs", "train")
    assert place == f"{hub_folder}:test_prefs, row 3"


def test_a_changed_folder_is_read_again_whatever_its_dates(hub_folder: Path) -> None:
    assert len(list(numbered_rows(f"{hub_folder}:test_prefs", "train"))) == 3
    file = hub_folder / "main/test_prefs-00000-of-00001.parquet"
    dates = file.stat().st_atime_ns, file.stat().st_mtime_ns
    parquet.write_table(pa.Table.from_pylist(ROWS[3:5]), file)
    os.utime(file, ns=dates)
    assert [row for _, row in numbered_rows(f"{hub_folder}:test_prefs", "train")] == ROWS[3:5]


@pytest.mark.parametrize("part", [":nothing", ":nothing/train"])
def test_an_unknown_split_or_config_is_refused(hub_folder: Path, part: str) -> None:
    with pytest.raises(UserError, match="neither a file nor a data set that can be loaded") as error:
        list(numbered_rows(f"{hub_folder}{part}", "train"))
    assert "\n" not in str(error.value)


def test_a_hub_that_cannot_be_reached_is_named() -> None:
    with pytest.raises(UserError, match=r"some/data@v1:test: neither a file nor a data set .*network"):
        list(numbered_rows("some/data@v1:test", "train"))
    with pytest.raises(UserError, match=r"hh-rlhf: neither a file nor a data set .*network") as error:
        list(numbered_rows("Anthropic/hh-rlhf", "train"))
    assert "did you mean" not in str(error.value)


@pytest.mark.parametrize("part", [1, 2, 3, 5, 64])
def test_a_list_is_read_in_parts(part: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "JSON_PART", part)
    file = tmp_path / "data"
    for content in (json.dumps(ROWS, indent=1), json.dumps(ROWS, ensure_ascii=False) + " \n"):
        file.write_bytes(content.encode())
        assert rows(file) == ROWS
    file.write_text("[12, 345]")
    with pytest.raises(UserError, match="row 1: expected an object with keys, found int"):
        rows(file)


def test_a_row_without_an_end_is_not_read_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "LONGEST_ROW", 1 << 18)
    file = tmp_path / "data"
    file.write_text('[{"a": "' + "x" * (1 << 24))
    tracemalloc.start()
    with pytest.raises(UserError, match=r"data: not JSON \(Unterminated string.*row 1\)"):
        rows(file)
    assert tracemalloc.get_traced_memory()[1] < 1 << 22
    tracemalloc.stop()


@pytest.mark.parametrize("opening", ["", "["], ids=["lines", "list"])
def test_memory_does_not_grow_with_the_file(opening: str, tmp_path: Path) -> None:
    peaks = []
    for count in (2_000, 40_000):
        file = tmp_path / f"{count}.jsonl.gz"
        rows_of = (json.dumps({"prompt": "p" * 100, "response": str(n)}) for n in range(count))
        with gzip.open(file, "wt", compresslevel=1) as stream:
            for number, row in enumerate(rows_of):
                stream.write((opening if number == 0 else "," if opening else "") + row + "\n")
            stream.write("]" if opening else "")
        tracemalloc.start()
        assert sum(1 for _ in numbered_rows(str(file), "train")) == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0] + 2**20


@pytest.mark.parametrize(
    "reading",
    [lambda file: tokenise.read_batches(file, "train"), lambda file: numbered_rows(str(file), "train")],
)
def test_a_parquet_file_is_not_held_to_its_end(
    reading: Callable[[Path], Iterator[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "BATCH_ROWS", 1)
    monkeypatch.setattr(tokenise, "READ_ROWS", 1)
    file = tmp_path / "pairs.parquet"
    size, draw = 1 << 18, random.Random(0)
    with parquet.ParquetWriter(file, pa.schema([("text", pa.string())])) as writer:
        for _ in range(20):
            writer.write_table(pa.table({"text": [draw.randbytes(size // 2).hex()]}))
    before = pa.total_allocated_bytes()
    held = [pa.total_allocated_bytes() - before for _ in reading(file)]
    assert len(held) == 20
    assert held[-1] < 6 * size, "not 20 times, as if it were read ahead"
