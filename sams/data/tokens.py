"""Write tokenised splits in batches, and memory-map them for training.

A split is a folder that `datasets.load_from_disk` opens: an Arrow stream with a column `id`, columns `..._ids` of
token ids and, for pairs, `flipped` and the numbers that the data keeps for selectors. pyarrow alone reads and writes
it, so that training does not need `datasets`.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sams.runtime.errors import UserError
from sams.runtime.files import read_json, write_json

if TYPE_CHECKING:
    import pyarrow as pa

STATE = "state.json"
DATA = "data-00000-of-00001.arrow"
KEPT = "kept/"
"""Prefix of columns of the data that selectors may read: numbers."""


class TokenLists(Sequence[list[int]]):
    """Column of token ids in a memory-mapped file, read row by row.

    Args:
        chunks: concatenated token ids of successive rows, and the offsets of the rows.

    Attributes:
        lengths: tokens of each row, [rows] int64.
    """

    def __init__(self, chunks: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
        self._chunks = chunks
        self._starts = [0, *itertools.accumulate(len(offsets) - 1 for _, offsets in chunks)]
        self.lengths = np.concatenate(
            [np.zeros(0, dtype=np.int64), *(np.diff(offsets).astype(np.int64) for _, offsets in chunks)]
        )

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, row: Any) -> Any:
        """Return the token ids of one row."""
        if not -len(self) <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        row %= len(self)
        chunk = bisect_right(self._starts, row) - 1
        values, offsets = self._chunks[chunk]
        index = row - self._starts[chunk]
        return values[offsets[index] : offsets[index + 1]].tolist()


class Swapped(Sequence[list[int]]):
    """Column that takes some rows from another column, without reading either.

    Attributes:
        lengths: tokens of each row, [rows] int64.
    """

    def __init__(self, own: Sequence[list[int]], other: Sequence[list[int]], swapped: Sequence[bool]) -> None:
        self._own, self._other, self._swapped = own, other, swapped
        self.lengths = np.where(swapped, lengths_of(other), lengths_of(own))

    def __len__(self) -> int:
        return len(self._swapped)

    def __getitem__(self, row: Any) -> Any:
        """Return the token ids of one row."""
        return (self._other if self._swapped[row] else self._own)[row]


def lengths_of(column: Sequence[Sequence[int]]) -> np.ndarray:
    """Return the number of tokens of each row, [rows] int64, without reading columns on disk."""
    if isinstance(column, TokenLists | Swapped):
        return column.lengths
    return np.array([len(row) for row in column], dtype=np.int64)


def read_columns(folder: Path) -> dict[str, Sequence[Any]]:
    """Read the columns of a tokenised split: token ids are memory-mapped, the others are lists.

    Raises:
        UserError: the folder is not a tokenised split.
    """
    import pyarrow as pa

    tables = []
    try:
        for name in (part["filename"] for part in read_json(folder / STATE)["_data_files"]):
            # The table keeps the memory map open; its arrays are views.
            tables.append(pa.ipc.open_stream(pa.memory_map(str(folder / name))).read_all())
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"no tokenised split ({error})", where=str(folder), remedy="run the rule `tokenise` again"
        ) from None
    table = pa.concat_tables(tables)
    columns: dict[str, Any] = {}
    for name in table.column_names:
        if name.startswith(KEPT):
            columns[name] = table[name].to_numpy()
        elif name.endswith("_ids"):
            columns[name] = TokenLists([_parts(chunk) for chunk in table[name].chunks])
        else:
            columns[name] = table[name].to_pylist()
    return columns


def _parts(lists: pa.ListArray) -> tuple[np.ndarray, np.ndarray]:
    return lists.values.to_numpy(), lists.offsets.to_numpy()


def read_batches(folder: Path) -> Iterator[pa.RecordBatch]:
    """Yield the batches of a split that `token_writer` wrote, in order; they are read, not memory-mapped."""
    import pyarrow as pa

    with pa.OSFile(str(folder / DATA)) as stream:
        yield from pa.ipc.open_stream(stream)


class TokenWriter:
    """Writes the rows of a split in batches and counts their tokens.

    Args:
        stream: open Arrow stream of `schema`.
        schema: columns of the split.
        unknown: id of the token for unknown words, if the tokenizer has one.
    """

    def __init__(self, stream: pa.RecordBatchStreamWriter, schema: pa.Schema, unknown: int | None) -> None:
        self._stream = stream
        self._schema = schema
        self._unknown = unknown
        self._rows = 0
        names = [name for name in schema.names if name.endswith("_ids") and not name.startswith(KEPT)]
        self._tokens = dict.fromkeys(names, 0)
        self._longest = dict.fromkeys(names, 0)
        self._unknowns = 0

    def write(self, columns: Mapping[str, Any]) -> None:
        """Append rows, given as columns: lists or Arrow arrays."""
        import pyarrow as pa
        import pyarrow.compute as pc

        batch = pa.RecordBatch.from_pydict(dict(columns), schema=self._schema)
        if not batch.num_rows:
            return
        self._stream.write_batch(batch)
        self._rows += batch.num_rows
        for name in self._tokens:
            lengths = pc.list_value_length(batch[name])
            self._tokens[name] += pc.sum(lengths).as_py()
            self._longest[name] = max(self._longest[name], pc.max(lengths).as_py())
            if self._unknown is not None:
                unknown = pc.equal(pc.list_flatten(batch[name]), self._unknown)
                self._unknowns += pc.sum(unknown, min_count=0).as_py()

    def report(self) -> dict[str, Any]:
        """Return mean and maximum length of each column, and the numbers of tokens and of unknown words."""
        lengths = {
            name: {"mean": round(tokens / self._rows, 2), "max": self._longest[name]}
            for name, tokens in self._tokens.items()
        }
        return {"tokens": sum(self._tokens.values()), "unknown": self._unknowns, **lengths}


@contextmanager
def token_writer(folder: Path, names: Sequence[str], *, unknown: int | None) -> Iterator[TokenWriter]:
    """Write a tokenised split to a new folder.

    Args:
        folder: folder to create.
        names: columns, in order.
        unknown: id of the token for unknown words, if the tokenizer has one.
    """
    import pyarrow as pa

    types = {"id": pa.string(), "flipped": pa.bool_()}
    types |= {name: pa.float64() for name in names if name.startswith(KEPT)}
    schema = pa.schema([(name, types.get(name, pa.list_(pa.int32()))) for name in names])
    folder.mkdir()
    with pa.OSFile(str(folder / DATA), "wb") as file, pa.ipc.new_stream(file, schema) as stream:
        yield TokenWriter(stream, schema, unknown)
    # Files that `datasets` expects; it takes the column types from the Arrow schema.
    write_json(folder / "dataset_info.json", {})
    write_json(
        folder / STATE,
        {
            "_data_files": [{"filename": DATA}],
            "_fingerprint": f"tokenise-{folder.name}",
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": None,
        },
    )
