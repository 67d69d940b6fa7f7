import gzip
import json
from pathlib import Path

import pytest

from sams.runtime.errors import UserError
from sams.scoring.inputs import read_rows, some_of

ROWS = [{"a": 1}, {"a": "ü"}]


def test_gzip_and_plain_read_alike_whatever_the_name(tmp_path: Path) -> None:
    text = json.dumps(ROWS)
    (tmp_path / "plain.json").write_text(text)
    (tmp_path / "packed.json").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "lines.jsonl.gz").write_bytes(gzip.compress(b'{"a": 1}\n\n{"a": "\\u00fc"}\n'))
    assert read_rows(tmp_path / "plain.json") == ROWS
    assert read_rows(tmp_path / "packed.json") == ROWS
    assert read_rows(tmp_path / "lines.jsonl.gz") == ROWS


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b'[{"a": 1},\n {"a": }]', "at row 2"),
        (b'{"a": {}\n}', "row 1: not JSON"),
        (b'[{"a": 1}, 2]', "row 2: expected an object"),
        (b"[]", "the data has no row"),
        (gzip.compress(b"[]", mtime=0)[:-6], "cut off or damaged"),
        (b"\xff\xfe", "not UTF-8"),
    ],
)
def test_unreadable_json_is_told_in_one_line(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "rows.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=problem) as error:
        read_rows(path)
    assert str(path) in str(error.value)


def test_every_form_of_a_file_gives_its_rows(tmp_path: Path) -> None:
    whole = json.dumps(ROWS).encode()
    lines = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    for number, content in enumerate((whole, lines, b"\xef\xbb\xbf" + whole, gzip.compress(lines))):
        for suffix in ("json", "jsonl", "gz"):
            path = tmp_path / f"{number}.{suffix}"
            path.write_bytes(content)
            assert read_rows(path) == ROWS


def test_a_flipped_bit_is_found_wherever_it_is(tmp_path: Path) -> None:
    packed = gzip.compress(json.dumps(ROWS * 9).encode(), mtime=0)
    path = tmp_path / "rows.json.gz"
    for place in range(10, len(packed)):
        path.write_bytes(packed[:place] + bytes([packed[place] ^ 4]) + packed[place + 1 :])
        with pytest.raises(UserError, match="the gzip file is cut off or damaged") as error:
            read_rows(path)
        assert "\n" not in str(error.value)


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n{"a": \n')
    with pytest.raises(UserError, match="row 2: not JSON"):
        read_rows(path)
    with pytest.raises(UserError, match="no such file"):
        read_rows(tmp_path / "absent.jsonl")


def test_long_lists_are_cut_short() -> None:
    assert some_of([1, 2, 3, 4, 5]) == "1, 2, 3 and 2 more"


def test_a_line_ends_where_json_lines_say_and_nowhere_else(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"a": "one\u2028two\x85three\x1cfour"}, {"a": "next"}]
    path.write_text(
        "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8", newline=""
    )
    assert read_rows(path) == rows
