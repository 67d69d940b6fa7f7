"""Readers of rows: JSONL, JSON, CSV, TSV and Parquet files, also gzipped, and data sets of the Hugging Face hub.

The content of a file decides its format, not its name. A hub data set (or a local folder of that form) is named
``id``, ``id@revision``, ``id:split`` or ``id@revision:config/split``.
"""

import codecs
import csv
import gzip
import io
import json
import re
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO

from sams.runtime.digests import digest_of_source
from sams.runtime.errors import UserError, first_line, nearest

Row = dict[str, Any]

GZIP, PARQUET, BOM = b"\x1f\x8b", b"PAR1", b"\xef\xbb\xbf"
# Data sets of the shipped studies, suggested for misspelt names.
KNOWN = (
    "Anthropic/hh-rlhf",
    "princeton-nlp/gemma2-ultrafeedback-armorm",
    "princeton-nlp/llama3-ultrafeedback",
    "princeton-nlp/llama3-ultrafeedback-armorm",
    "princeton-nlp/mistral-instruct-ultrafeedback",
    "stanfordnlp/SHP",
)
DATA_SUFFIXES = (".json", ".jsonl", ".parquet", ".gz", ".csv", ".tsv", ".txt")
BATCH_ROWS = 1000

# Bytes of a JSON list that are read at once, and the most characters of a row.
JSON_PART, LONGEST_ROW = 1 << 16, 1 << 26

# Separators of CSV files, and the bytes of a file in which its header ends.
SEPARATORS, HEADER_BYTES = ",\t;", 1 << 14


def _object(pairs: list[tuple[str, Any]]) -> Row:
    """Build a row, or raise if a key is given twice (`json` would keep the last value)."""
    row = dict(pairs)
    if len(row) < len(pairs):
        doubled = next(key for index, (key, _) in enumerate(pairs) if key in dict(pairs[:index]))
        raise ValueError(f"key {doubled!r:.40} is given twice")
    return row


_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_JSON, _BLANK = json.JSONDecoder(object_pairs_hook=_object), re.compile(r"[ \t\n\r]*")
# Errors of `json`: for invalid text or a number of thousands of digits, and for deep nesting.
FAULTS = (ValueError, RecursionError)


def numbered_rows(source: str, split: str) -> Iterator[tuple[str, Row]]:
    """Yield the rows of a source, each with its location for messages (`train.jsonl, row 7`).

    Rows are counted from 1; the row number of a JSONL file is its line number.

    Args:
        source: file, hub id or folder.
        split: split of a hub data set, unless `source` names one.

    Raises:
        UserError: a row cannot be read, or there is none; the message names source and row.
    """
    path = Path(source)
    empty = True
    for number, row in _read_file(path) if path.is_file() else enumerate(_read_hub(source, split), start=1):
        where = f"{source}, row {number}"
        if not isinstance(row, dict):
            raise UserError(
                f"expected an object with keys, found {type(row).__name__}",
                where=where,
                remedy="give one JSON object per row",
            )
        empty = False
        yield where, row
    if empty:
        raise UserError("the data has no row", where=source, remedy="give at least one")


def looks_like_file(source: str) -> bool:
    """Return whether a source is written as a path: hub ids have at most one slash and no suffix of a data file."""
    return source.startswith((".", "/", "~")) or source.count("/") > 1 or source.endswith(DATA_SUFFIXES)


def data_set_name(source: str) -> tuple[str, str | None]:
    """Return the hub id or folder that a source names, and its revision."""
    name, _, revision = source.partition(":")[0].partition("@")
    return name, revision or None


def is_missing_path(source: str) -> bool:
    """Return whether a source is written as a path (also `folder:split`) that does not exist."""
    name, _ = data_set_name(source)
    return looks_like_file(name) and not Path(source).exists() and not Path(name).is_dir()


def is_hub_id(source: str) -> bool:
    """Return whether a source names a data set of the hub."""
    name, _ = data_set_name(source)
    return not looks_like_file(name) and not Path(name).exists() and not Path(source).exists()


def similar_file(path: str) -> str:
    """Return ``; did you mean X?`` for an existing file with a similar name, or an empty text."""
    folder = Path(path).parent
    return nearest(Path(path).name, [file.name for file in folder.iterdir()] if folder.is_dir() else [])


def similar_data_set(name: str) -> str:
    """Return ``; did you mean X?`` for a data set of the shipped studies with a similar name, or an empty text."""
    return "" if name in KNOWN else nearest(name, list(KNOWN))


# --- files ----------------------------------------------------------------------------------------


def _read_file(file: Path) -> Iterator[tuple[int, Any]]:
    with unpacked(file) as stream, named_faults(file):
        start = stream.read(4)
        stream.seek(0)
        if start == PARQUET:
            yield from _parquet_rows(stream)
            return
        if start.startswith(BOM):
            stream.seek(len(BOM))
        while (first := stream.read(1)).isspace():
            pass
        stream.seek(-len(first), 1)
        if first == b"[":
            yield from _json_list(stream, file)
            return
        stream.seek(len(BOM) if start.startswith(BOM) else 0)
        begin = stream.read(HEADER_BYTES)
        stream.seek(-len(begin), 1)
        if first != b"{" and (separator := _separator(begin)):
            yield from _csv_rows(stream, separator, file)
        else:
            yield from _json_lines(stream, file)


@contextmanager
def unpacked(file: Path) -> Iterator[IO[bytes]]:
    """Open a file. A gzip file is unpacked to a temporary one first, so that damage is noticed before use."""
    try:
        with file.open("rb") as packed:
            if packed.read(2) != GZIP:
                packed.seek(0)
                yield packed
                return
            packed.seek(0)
            with tempfile.TemporaryFile() as plain:
                _unpack(packed, plain, file)
                plain.seek(0)
                yield plain
    except PermissionError:
        raise UserError("cannot be read", where=str(file), remedy="check its permissions") from None
    except OSError as error:
        raise UserError(
            f"cannot be read or unpacked ({error.strerror})", where=str(file), remedy="check the disk"
        ) from None


def _unpack(packed: BinaryIO, plain: IO[bytes], file: Path) -> None:
    try:
        with gzip.GzipFile(fileobj=packed) as stream:
            while part := stream.read(1 << 20):
                plain.write(part)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(
            f"the gzip file is cut off or damaged ({error})", where=str(file), remedy="fetch it again"
        ) from None


@contextmanager
def named_faults(file: Path) -> Iterator[None]:
    """Raise `UserError` for text inside that is not UTF-8."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8 ({error})", where=str(file), remedy="convert it to UTF-8") from None


def _parquet_rows(stream: IO[bytes]) -> Iterator[tuple[int, Any]]:
    import pyarrow as pa
    from pyarrow import parquet

    number = 0
    try:
        # pre_buffer would keep the complete file in memory.
        for batch in parquet.ParquetFile(stream, pre_buffer=False).iter_batches(BATCH_ROWS):
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"the Parquet file is cut off or damaged ({error})",
            where=getattr(stream, "name", ""),
            remedy="fetch it again",
        ) from None


def _json_list(stream: IO[bytes], file: Path) -> Iterator[tuple[int, Any]]:
    """Yield the rows of a JSON list, with no more than a part of the text or one row in memory."""
    text = _Text(stream)
    number = 0

    def fault(problem: str) -> UserError:
        return UserError(
            f"not JSON ({problem}, at row {number + 1})", where=str(file), remedy="give a list, or JSON lines"
        )

    text.take("[")
    while not text.take("]"):
        if number and not text.take(","):
            raise fault("',' or ']' expected")
        try:
            row = text.value()
            _check_surrogates(text.taken, row)
        except UnicodeDecodeError:
            raise
        except FAULTS as error:
            raise fault(_message(error)) from None
        number += 1
        yield number, row
    if text.symbol():
        raise fault("more text after the list")


class _Text:
    """Incremental reader of JSON in UTF-8; `taken` is the text of the last value."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.taken = ""
        self._stream = stream
        self._utf8 = codecs.getincrementaldecoder("utf-8")()
        self._buffer = ""
        self._index = 0
        self._ended = False

    def symbol(self) -> str:
        """Return the next character that is not white space, or an empty text at the end."""
        while True:
            self._index = _BLANK.match(self._buffer, self._index).end()  # type: ignore[union-attr]
            if self._index < len(self._buffer) or self._ended:
                return self._buffer[self._index : self._index + 1]
            self._read_on()

    def take(self, symbol: str) -> bool:
        """Consume the next symbol if it is the given one, and return whether it is."""
        same = self.symbol() == symbol
        self._index += same
        return same

    def value(self) -> Any:
        """Consume and return the next value.

        Raises:
            ValueError, RecursionError: the text is not a value.
        """
        self.symbol()
        while True:
            try:
                value, end = _JSON.raw_decode(self._buffer, self._index)
            except FAULTS:
                if self._ended or len(self._buffer) - self._index > LONGEST_ROW:
                    raise
            else:
                if end < len(self._buffer) or self._ended:  # a number at the end of the buffer may continue
                    self.taken = self._buffer[self._index : end]
                    self._index = end
                    return value
            self._read_on()

    def _read_on(self) -> None:
        """Double the unread text, so that a long value is decoded few times."""
        rest = self._buffer[self._index :]
        part = self._stream.read(max(JSON_PART, len(rest)))
        self._buffer, self._index = rest + self._utf8.decode(part, final=not part), 0
        self._ended = not part


def _separator(begin: bytes) -> str:
    """Return the separator of a CSV file's header, or an empty text if the file does not begin with one."""
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(begin)
        for separator in SEPARATORS:
            names = next(
                csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True), []
            )
            if len(names) > 1 and all(names[1:]) and not any("\0" in name or "{" in name for name in names):
                return separator
    except (UnicodeDecodeError, csv.Error):
        pass
    return ""


def _csv_rows(stream: IO[bytes], separator: str, file: Path) -> Iterator[tuple[int, Any]]:
    """Yield the rows of a file with a header; row 1 is the first after the header."""
    csv.field_size_limit(LONGEST_ROW)
    number = 0
    text = io.TextIOWrapper(stream, "utf-8", newline="")
    try:
        reader = csv.reader(text, delimiter=separator, strict=True, skipinitialspace=separator != "\t")
        names = [name.strip() for name in next(reader)]
        if doubled := next((name for index, name in enumerate(names) if name in names[:index]), None):
            raise UserError(
                f"the header has {doubled!r:.40} twice", where=str(file), remedy="rename one of them"
            )
        for fields in reader:
            if not fields:
                continue
            number += 1
            if len(fields) != len(names):
                raise UserError(
                    f"{len(fields)} fields, the header has {len(names)}",
                    where=f"{file}, row {number}",
                    remedy="quote fields that hold separators or line ends",
                )
            yield number, dict(zip(names, fields, strict=True))
    except csv.Error as error:
        raise UserError(
            f"not CSV ({error})",
            where=f"{file}, row {number + 1}",
            remedy="quote fields, and double quotes in them",
        ) from None
    finally:
        text.detach()


def _json_lines(stream: IO[bytes], file: Path) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(stream, start=1):
        if not line.strip():
            continue
        where = f"{file}, row {number}"
        try:
            text = line.decode("utf-8")
            row = _JSON.decode(text)
            _check_surrogates(text, row)
        except UnicodeDecodeError as error:
            raise UserError(f"not UTF-8 ({error})", where=where, remedy="convert it to UTF-8") from None
        except FAULTS as error:
            column = f" at column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
            raise UserError(
                f"not JSON ({_message(error)}{column})", where=where, remedy="give one JSON object per line"
            ) from None
        yield number, row


def _check_surrogates(text: str, row: Any) -> None:
    """Raise `ValueError` if an escape in the text of a row is half a character, which no file can hold as UTF-8."""
    if _SURROGATE.search(text):
        try:
            json.dumps(row, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = ord(error.object[error.start])
            raise ValueError(f"\\u{half:x} is half a surrogate pair") from None


def _message(error: Exception) -> str:
    return error.msg if isinstance(error, json.JSONDecodeError) else first_line(error)


# --- hub ------------------------------------------------------------------------------------------


def _read_hub(source: str, split: str) -> Iterator[Any]:
    name, revision = data_set_name(source)
    if is_missing_path(source):
        raise UserError(
            f"no such file{similar_file(name)}", where=source, remedy="correct the path, or give a hub id"
        )
    import datasets

    config, _, named = source.partition(":")[2].rpartition("/")
    cache = None
    if Path(name).is_dir():
        # `datasets` takes a folder for unchanged whose files have the same dates.
        cache = Path(datasets.config.HF_DATASETS_CACHE) / digest_of_source(Path(name))[:16]
    try:
        rows = datasets.load_dataset(
            name, config or None, revision=revision, split=named or split, cache_dir=cache and str(cache)
        )
    except Exception as error:  # `datasets` and its dependencies raise errors of any class
        raise UserError(
            f"neither a file nor a data set that can be loaded ({first_line(error)}){similar_data_set(name)}",
            where=source,
            remedy="correct the path, or check id, revision, split, network, and HF_TOKEN for a gated one",
        ) from error
    yield from rows
