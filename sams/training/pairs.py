"""The record of the pairs: what the policy computed of each pair each time that it saw it, as pairs.parquet.

During a run, rows of fixed size are appended to a file next to the checkpoints. A checkpoint holds their number, and
a resumed run cuts the file there. At the end ids, tokens, reference and labels are added. Every value is of a pass
that the run needs in any case.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from sams.runtime.errors import UserError
from sams.runtime.files import whole_file
from sams.training.results import PAIRS
from sams.training.tasks.base import Items

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor

    from sams.training.updates import Step

ROWS = "pairs.rows"
GROUP = 2**17
"""Rows of a row group, the most that are in memory."""
REFERENCE = ("reference_chosen_logp", "reference_rejected_logp")
COLUMNS = [
    *("id", "split", "step", "epoch", "margin", "selected", "flipped"),
    *("chosen_logp", "rejected_logp", *REFERENCE, "chosen_tokens", "rejected_tokens"),
]
VALUES = {"chosen_logp": "logps/chosen", "rejected_logp": "logps/rejected", "margin": "rewards/margins"}
FLOATS = [*VALUES, *REFERENCE]
# Evaluated pairs are counted on after the training pairs; `selected` is -1 for them.
ROW = np.dtype([("pair", "<u4"), ("step", "<u4"), *((name, "<f4") for name in VALUES), ("selected", "i1")])


class Recorded(Protocol):
    """What the data and the reference say of the n pairs of a split."""

    @property
    def ids(self) -> Sequence[str]: ...

    @property
    def flipped(self) -> Sequence[bool | None]: ...

    @property
    def chosen_tokens(self) -> Sequence[int]: ...

    @property
    def rejected_tokens(self) -> Sequence[int]: ...

    @property
    def reference(self) -> Tensor | None:
        """[n, 2 or more] log-probs of both responses; None for a loss without a reference."""
        ...


class PairLog:
    """The rows of a run, which one process writes.

    Args:
        folder: folder of the run's checkpoints.
        train: the training pairs.
        test: the evaluated pairs; None if they are not recorded.
        test_split: name of their split.
        epoch: number of steps of an epoch.
    """

    def __init__(
        self, folder: Path, train: Recorded, test: Recorded | None, *, test_split: str = "test", epoch: int
    ) -> None:
        self.path = folder / ROWS
        self.tasks = {"train": train} if test is None else {"train": train, test_split: test}
        self.epoch = epoch
        self._file: FileIO | None = None

    def resume(self, rows: int) -> None:
        """Open the file, and drop what follows its first rows, which the checkpoint counts.

        Raises:
            UserError: there are fewer rows.
        """
        self._file = FileIO(self.path, "ab")
        if (found := self._size() // ROW.itemsize) < rows:
            raise UserError(
                f"{found} rows, but the checkpoint was written after {rows}",
                where=str(self.path),
                remedy=f"restore it, or delete {self.path.parent} to start from step 0",
            )
        self._file.truncate(rows * ROW.itemsize)

    def trained(self, step: Step, items: Items) -> None:
        """Add the pairs of a training step: all of the batch if they were scored, else those trained on.

        Args:
            step: the step, after its update.
            items: values of the pairs that were trained on, from before the update.
        """
        if not step.seen:
            self.add(step.number, step.trained, items, 1)
            return
        selected = np.zeros(len(step.batch), dtype="i1")
        selected[step.chosen] = 1
        self.add(step.number, step.batch, step.seen, selected)

    def evaluated(self, step: int, items: Items) -> None:
        """Add all evaluated pairs, with their values after a step."""
        first = len(self.tasks["train"].ids)
        self.add(step, range(first, first + len(items["loss"])), items, -1)

    def add(self, step: int, pairs: Sequence[int], values: Items, selected: Any) -> None:
        """Add pairs with their values.

        Args:
            step: the step, from 1.
            pairs: [n] indices of the pairs, those of the test split after the training pairs.
            values: `VALUES` of the pairs, [n] each.
            selected: [n] or one value: 1 where a pair is trained on, 0 where it is not, -1 for test pairs.
        """
        assert self._file is not None
        rows = np.empty(len(pairs), dtype=ROW)
        rows["pair"], rows["step"], rows["selected"] = pairs, step, selected
        for column, name in VALUES.items():
            rows[column] = values[name].numpy()
        self._file.write(rows.tobytes())

    def sync(self) -> int:
        """Write the rows to disk; return their number."""
        assert self._file is not None
        os.fsync(self._file.fileno())
        return self._size() // ROW.itemsize

    def _size(self) -> int:
        assert self._file is not None
        return os.fstat(self._file.fileno()).st_size

    def write(self, out: Path) -> None:
        """Write pairs.parquet to the folder of the results."""
        import pyarrow as pa
        from pyarrow import parquet

        assert self._file is not None
        self._file.close()
        known = [_known(split, task) for split, task in self.tasks.items()]
        pairs = pa.concat_tables(known).combine_chunks()
        with whole_file(out / PAIRS) as part, self.path.open("rb") as stream:
            writer = parquet.ParquetWriter(
                part,
                _joined(b"", pairs, self.epoch).schema,
                compression="zstd",
                use_dictionary=["id", "split", "step", "chosen_tokens", "rejected_tokens"],
                use_byte_stream_split=FLOATS,
            )
            with writer:
                while rows := stream.read(GROUP * ROW.itemsize):
                    writer.write_table(_joined(rows, pairs, self.epoch))


def _known(split: str, task: Recorded) -> pa.Table:
    """Return what the data and the reference say of the pairs of a split."""
    import pyarrow as pa

    logps = [None, None] if task.reference is None else task.reference.T.numpy()
    columns = {
        "id": task.ids,
        "split": [split] * len(task.ids),
        "flipped": pa.array(task.flipped, pa.bool_()),
        "chosen_tokens": pa.array(task.chosen_tokens, pa.int32()),
        "rejected_tokens": pa.array(task.rejected_tokens, pa.int32()),
    }
    for name, values in zip(REFERENCE, logps, strict=False):  # a third is of KTO's mismatched completions
        columns[name] = pa.nulls(len(task.ids), pa.float32()) if values is None else pa.array(values)
    return pa.table(columns)


def _joined(rows: bytes, pairs: pa.Table, epoch: int) -> pa.Table:
    """Return rows of the file as rows of pairs.parquet."""
    import pyarrow as pa

    found = np.frombuffer(rows, dtype=ROW)
    table = pairs.take(pa.array(found["pair"]))
    steps = found["step"].astype("i4")
    columns = {
        "step": steps,
        "epoch": (steps - 1) // np.int32(epoch) + 1,
        "selected": pa.array(found["selected"] == 1, mask=found["selected"] < 0),
        **{name: found[name] for name in VALUES},
    }
    for name, values in columns.items():
        table = table.append_column(name, pa.array(values))
    return table.select(COLUMNS)
