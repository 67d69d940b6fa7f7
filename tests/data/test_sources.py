"""Files and hub data sets are read whatever they are called, row by row; broken ones are refused by name."""

import gzip
import io
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from sams.data.sources import numbered_rows
from sams.errors import UserError

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


@pytest.mark.parametrize("part", [":nothing", ":nothing/train"])
def test_an_unknown_split_or_config_is_refused(hub_folder: Path, part: str) -> None:
    with pytest.raises(UserError, match="neither a file nor a data set that can be loaded") as error:
        list(numbered_rows(f"{hub_folder}{part}", "train"))
    assert "\n" not in str(error.value)


def test_a_hub_that_cannot_be_reached_is_named() -> None:
    with pytest.raises(UserError, match=r"some/data@v1:test: neither a file nor a data set .*network"):
        list(numbered_rows("some/data@v1:test", "train"))


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    peaks = []
    for count in (2_000, 40_000):
        file = tmp_path / f"{count}.jsonl.gz"
        with gzip.open(file, "wt", compresslevel=1) as stream:
            stream.writelines(
                json.dumps({"prompt": "p" * 100, "response": str(n)}) + "\n" for n in range(count)
            )
        tracemalloc.start()
        assert sum(1 for _ in numbered_rows(str(file), "train")) == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0] + 2**20
