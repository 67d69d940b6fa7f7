"""Mistakes in preference data: each is reported in one line with file, row and key, before training."""

import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from sams.data import prepare
from sams.data.forms import read_pairs
from tests.bad_input.refused import Case, Refused, cases, lines, refused

__all__ = ["refused"]

PAIR = {"prompt": "why so", "chosen": "a b", "rejected": "c d"}
USER, ASSISTANT = {"role": "user", "content": "why"}, {"role": "assistant", "content": "so"}
OTHER = {"role": "assistant", "content": "no"}


def second(**changes: Any) -> bytes:
    """Two rows, the second of them changed."""
    return lines(PAIR, {**PAIR, **changes})


def as_parquet(*rows: dict[str, Any]) -> bytes:
    stream = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(list(rows)), stream)
    return stream.getvalue()


PACKED = gzip.compress(lines(*[PAIR] * 50), mtime=0)
AT = "train.jsonl, row 2"

CONTENTS = [
    ("an empty file", b"", "train.jsonl: the data has no row; give at least one"),
    ("blank lines", b"\n\n", "train.jsonl: the data has no row"),
    ("gzip cut off", PACKED[:40], "train.jsonl: the gzip file is cut off or damaged.*; fetch it again"),
    ("gzip without its end", PACKED[:-4], "train.jsonl: the gzip file is cut off"),
    (
        "wrong JSON",
        lines(PAIR) + b'{"prompt": \n',
        f"{AT}: not JSON .*column.*; give one JSON object per line",
    ),
    (
        "a list cut off",
        json.dumps([PAIR, PAIR]).encode()[:-9],
        "train.jsonl: not JSON .*row 2.*; give a list",
    ),
    ("numbers", lines(PAIR, 7), f"{AT}: expected an object with keys, found int; give"),
    ("CSV of other columns", b"a,b\n1,2\n", "row 1: unknown form with keys .*; rename"),
    ("CSV with a field too many", b"prompt,chosen,rejected\na,b,c\na,b,c,d\n", f"{AT}: 4 fields, .*; quote"),
    ("CSV with a field that does not end", b'prompt,chosen,rejected\na,b,"c\n', "row 1: not CSV .*; quote"),
    (
        "CSV with a name twice",
        b"prompt,prompt,chosen\na,b,c\n",
        "train.jsonl: the header has 'prompt' twice; rename",
    ),
    ("an unknown column", second(context="x"), f"{AT}, key 'context': unknown column.*; name it in"),
    ("UTF-16", '{"a": 1}\n'.encode("utf-16"), "row 1: not UTF-8.*; convert it"),
    ("invalid UTF-8", lines(PAIR) + b'{"prompt": "\xe9"}\n', f"{AT}: not UTF-8 .*; convert it to UTF-8"),
    ("NUL bytes", lines(PAIR) + b"\0\0\n", f"{AT}: not JSON"),
    ("a NUL character", second(chosen="a\0b"), f"{AT}, key 'chosen': holds a NUL character; drop"),
    ("a lone surrogate", second(rejected="a\ud800"), f"{AT}: not JSON .*half a surrogate pair"),
    (
        "a key twice",
        lines(PAIR) + b'{"prompt": "a", "prompt": "b"}\n',
        f"{AT}: not JSON .key 'prompt' is given twice",
    ),
    ("a number without end", lines(PAIR) + b'{"a": ' + b"1" * 9999 + b"}\n", f"{AT}: not JSON .*4300 digits"),
    ("nested too deep", lines(PAIR) + b"[" * 99_999 + b"\n", f"{AT}: not JSON .*recursion"),
    ("a list nested too deep", b"[" * 99_999, "train.jsonl: not JSON .*recursion.*row 1"),
    (
        "mixed forms",
        lines(PAIR, {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"}),
        f"{AT}, key 'prompt': missing.*; all rows must have the form of the first",
    ),
    (
        "an unknown form",
        lines({"question": "a", "good": "b"}),
        "row 1: unknown form with keys .*; rename the keys",
    ),
    ("Parquet cut off", as_parquet(PAIR)[:-20], "train.jsonl: the Parquet file is cut off"),
    (
        "Parquet of numbers",
        as_parquet({**PAIR, "chosen": 1}),
        "row 1, key 'chosen': expected text, found int",
    ),
    (
        "a response that is null",
        second(chosen=None),
        f"{AT}, key 'chosen': expected text, found NoneType; drop",
    ),
    ("an empty response", second(chosen=""), f"{AT}, key 'chosen': empty; drop the row or fill it"),
    ("a blank response", second(rejected=" \n"), f"{AT}, key 'rejected': empty"),
    ("an empty prompt", second(prompt=""), f"{AT}, key 'prompt': empty"),
    ("identical responses", second(rejected="a b "), f"{AT}: chosen and rejected are equal; drop"),
    (
        "the assistant begins",
        second(prompt=[ASSISTANT, USER]),
        f"{AT}, prompt: roles out of order: assistant, user",
    ),
    (
        "two users in turn",
        second(prompt=[USER, USER]),
        f"{AT}, prompt: roles out of order.*; a prompt begins",
    ),
    (
        "a system message late",
        second(prompt=[USER, {**USER, "role": "system"}]),
        f"{AT}, prompt: roles out of order",
    ),
    (
        "an unknown role",
        second(prompt=[{**USER, "role": "bot"}]),
        f"{AT}, key 'prompt', message 1: expected a `role`.*'bot'",
    ),
    (
        "no messages",
        second(prompt=[]),
        f"{AT}, key 'prompt': expected a list of messages, found an empty list",
    ),
    ("a message without text", second(prompt=[{"role": "user"}]), "message 1: expected text, found NoneType"),
    (
        "an answer that the user gives",
        lines({"chosen": [USER], "rejected": [USER]}),
        "row 1, key 'chosen': ends with a message of the user.*; drop",
    ),
    (
        "two prompts",
        lines({"chosen": [USER, ASSISTANT], "rejected": [{**USER, "content": "who"}, OTHER]}),
        "row 1: chosen and rejected differ before the last answer; both must",
    ),
    (
        "a prompt of another conversation",
        lines({"prompt": "who", "chosen": [USER, ASSISTANT], "rejected": [USER, OTHER]}),
        "row 1, key 'prompt': is not in the conversation.*; drop the key",
    ),
    (
        "no turns",
        lines({"chosen": "hello", "rejected": "bye"}),
        "row 1, key 'chosen': expected a dialogue.*; or give",
    ),
    (
        "text before the first turn",
        lines({"chosen": "hi\n\nHuman: a\n\nAssistant: b", "rejected": "hi\n\nHuman: a\n\nAssistant: c"}),
        "row 1: expected '.*Human:' at the start.*; drop",
    ),
]


@cases(*CONTENTS)
def test_data(case: Case, refused: Refused, tmp_path: Path) -> None:
    train, test = tmp_path / "train.jsonl", tmp_path / "test.jsonl"
    train.write_bytes(case.made)
    test.write_bytes(lines(PAIR))
    recipe = json.dumps({"data": {"train": str(train), "test": str(test)}})
    said = refused(prepare.main, recipe=recipe, out=tmp_path / "out", says=case.says)
    assert str(train) in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["test.jsonl", "train.jsonl"], (
        "nothing is left"
    )


SOURCES: list[Any] = [
    (
        "a file that is not there",
        {"train": "DIR/tain.jsonl"},
        r"tain.jsonl: no such file; did you mean train.jsonl\?",
    ),
    (
        "a data set that is not there",
        {"train": "Anthropic/hh-rlfh"},
        r"Anthropic/hh-rlfh: neither a file nor .*; did you mean Anthropic/hh-rlhf\?; correct the path, or check",
    ),
    ("an empty folder", {"train": "DIR/empty"}, "empty: neither a file nor a data set.*; correct"),
    (
        "examples without an answer",
        {"sft": "DIR/asked.jsonl"},
        "asked.jsonl, row 1, key 'messages': ends with .*user",
    ),
    (
        "other rows than published",
        {"published_rows": {"train": 9}, "other_row_counts": "refuse"},
        "data.train: 2 rows, .*9",
    ),
    ("all prompts in test too", {"shared_prompts": "drop"}, "(train|sft): no row of the split remains"),
    (
        "no row that can be read",
        {"train": "DIR/broken.jsonl", "broken_rows": "drop"},
        "none of 2 rows can be read",
    ),
]


@cases(*SOURCES)
def test_sources(case: Case, refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "asked.jsonl").write_bytes(lines({"messages": [USER]}))
    (tmp_path / "broken.jsonl").write_bytes(lines({**PAIR, "chosen": ""}, {**PAIR, "chosen": 1}))
    (tmp_path / "train.jsonl").write_bytes(second(chosen="x"))
    base = {"train": f"{tmp_path}/train.jsonl", "test": f"{tmp_path}/train.jsonl"}
    recipe = json.dumps({"data": base | case.made}).replace("DIR", str(tmp_path))
    refused(prepare.main, recipe=recipe, out=tmp_path / "out", says=case.says)


HANDLED = {
    "a byte order mark": b"\xef\xbb\xbf" + second(prompt="wer"),
    "CRLF": second(prompt="wer").replace(b"\n", b"\r\n"),
    "no last line end": second(prompt="wer").rstrip(b"\n"),
    "blank lines": second(prompt="wer").replace(b"\n", b"\n\n"),
    "gzip by another name": gzip.compress(second(prompt="wer")),
    "a JSON list": json.dumps([PAIR, {**PAIR, "prompt": "wer"}]).encode(),
    "keys in another order": lines(dict(reversed(PAIR.items())), {**PAIR, "prompt": "wer"}),
    "CSV": b"prompt,chosen,rejected\nwhy so,a b,c d\nwer,a b,c d\n",
    "CSV with semicolons and an index": b';"prompt";chosen;rejected\r\n0;why so;"a b";c d\r\n\r\n1;wer;a b;c d',
    "TSV": b"prompt\tchosen\trejected\nwhy so\ta b\tc d\nwer\ta b\tc d\n",
    "keys that nobody asked for": second(prompt="wer", id="7", score=0.5),
}


@pytest.mark.parametrize("content", HANDLED.values(), ids=HANDLED.keys())
def test_what_is_no_mistake_gives_the_same_records(content: bytes, tmp_path: Path) -> None:
    for name, written in (("clean", second(prompt="wer")), ("other", content)):
        (tmp_path / name).write_bytes(written)
    clean, other = (list(read_pairs(str(tmp_path / name), "train")) for name in ("clean", "other"))
    assert clean == other and len(clean) == 2


def test_ids_are_made_of_the_content_and_repeats_are_counted(tmp_path: Path) -> None:
    file = tmp_path / "train.jsonl"
    rows = [PAIR | {"id": "1"}, PAIR | {"id": "2"}, {**PAIR, "prompt": "wer", "id": "1"}]
    file.write_bytes(lines(*rows))
    prepare.main(json.dumps({"data": {"train": str(file), "test": str(file)}}), tmp_path / "out")
    found = parquet.read_table(tmp_path / "out" / "train.parquet").to_pylist()
    assert len({row["id"] for row in found}) == len(found) == 2, "one `id` for two rows is no matter"
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["train"]["dropped_repeats"] == 1
