"""Tokenised splits on disk: written a batch at a time, read without being loaded.

A split is a folder that `datasets.load_from_disk` opens: an Arrow stream with a column `id`, columns `..._ids` of
token ids and, of pairs, `flipped`. It is written and read with pyarrow alone: training needs no more than that.
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


class TokenLists(Sequence[list[int]]):
    """A column of token ids. They stay on disk, memory-mapped, until a row is asked for.

    Args:
        chunks: token ids of successive rows, one after the other, and where each row begins and the last ends.

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
        """Token ids of one row."""
        if not -len(self) <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        row %= len(self)
        chunk = bisect_right(self._starts, row) - 1
        values, offsets = self._chunks[chunk]
        place = row - self._starts[chunk]
        return values[offsets[place] : offsets[place + 1]].tolist()


class Swapped(Sequence[list[int]]):
    """A column in which some rows are another column's; neither is read for it.

    Attributes:
        lengths: tokens of each row, [rows] int64.
    """

    def __init__(self, own: Sequence[list[int]], other: Sequence[list[int]], swapped: Sequence[bool]) -> None:
        self._own, self._other, self._swapped = own, other, swapped
        self.lengths = np.where(swapped, lengths_of(other), lengths_of(own))

    def __len__(self) -> int:
        return len(self._swapped)

    def __getitem__(self, row: Any) -> Any:
        """Token ids of one row."""
        return (self._other if self._swapped[row] else self._own)[row]


def lengths_of(column: Sequence[Sequence[int]]) -> np.ndarray:
    """Tokens of each row of a column, [rows] int64; a column on disk is not read for it."""
    if isinstance(column, TokenLists | Swapped):
        return column.lengths
    return np.array([len(row) for row in column], dtype=np.int64)


def read_columns(folder: Path) -> dict[str, Sequence[Any]]:
    """Columns of a tokenised split: those of token ids are memory-mapped, the others are lists.

    Raises:
        UserError: when the folder holds no such split.
    """
    import pyarrow as pa

    tables = []
    try:
        for name in (part["filename"] for part in read_json(folder / STATE)["_data_files"]):
            # The table holds the map, and its arrays are views of it.
            tables.append(pa.ipc.open_stream(pa.memory_map(str(folder / name))).read_all())
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"no tokenised split ({error})", where=str(folder), remedy="run the rule `tokenise` again"
        ) from None
    table = pa.concat_tables(tables)
    return {
        name: TokenLists([_parts(chunk) for chunk in table[name].chunks])
        if name.endswith("_ids")
        else table[name].to_pylist()
        for name in table.column_names
    }


def _parts(lists: pa.ListArray) -> tuple[np.ndarray, np.ndarray]:
    return lists.values.to_numpy(), lists.offsets.to_numpy()


def read_batches(folder: Path) -> Iterator[pa.RecordBatch]:
    """Batches of a split that `token_writer` wrote, in order; they are read, not mapped."""
    import pyarrow as pa

    with pa.OSFile(str(folder / DATA)) as stream:
        yield from pa.ipc.open_stream(stream)


class TokenWriter:
    """Takes the rows of a split in batches, and counts tokens as they pass.

    Args:
        stream: open Arrow stream of that schema.
        schema: columns of the split.
        unknown: id of the token for unknown words, if there is one.
    """

    def __init__(self, stream: pa.RecordBatchStreamWriter, schema: pa.Schema, unknown: int | None) -> None:
        self._stream = stream
        self._schema = schema
        self._unknown = unknown
        self._rows = 0
        names = [name for name in schema.names if name.endswith("_ids")]
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
                found = pc.equal(pc.list_flatten(batch[name]), self._unknown)
                self._unknowns += pc.sum(found, min_count=0).as_py()

    def report(self) -> dict[str, Any]:
        """Mean and greatest length of prompts and responses, all tokens, and how many are unknown words."""
        lengths = {
            name: {"mean": round(tokens / self._rows, 2), "max": self._longest[name]}
            for name, tokens in self._tokens.items()
        }
        return {"tokens": sum(self._tokens.values()), "unknown": self._unknowns, **lengths}


@contextmanager
def token_writer(folder: Path, names: Sequence[str], *, unknown: int | None) -> Iterator[TokenWriter]:
    """Write a tokenised split to a new folder.

    Args:
        folder: the folder; it is made.
        names: its columns, in order.
        unknown: id of the token for unknown words, if there is one.
    """
    import pyarrow as pa

    types = {"id": pa.string(), "flipped": pa.bool_()}
    schema = pa.schema([(name, types.get(name, pa.list_(pa.int32()))) for name in names])
    folder.mkdir()
    with pa.OSFile(str(folder / DATA), "wb") as file, pa.ipc.new_stream(file, schema) as stream:
        yield TokenWriter(stream, schema, unknown)
    # What `datasets` keeps beside its files. It reads the column types off the Arrow schema.
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
