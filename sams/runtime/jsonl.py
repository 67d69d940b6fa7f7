"""Files of JSON lines: append-only ones that stay readable after a kill, and complete ones."""

import contextlib
import errno
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

from sams.runtime.files import whole_file


class Jsonl:
    """An append-only file of JSON lines.

    The first append creates the file and its folder, and cuts off a line that a kill has left incomplete.

    Args:
        path: the file.
        size: bytes to keep of an existing file; None keeps all complete lines.
        synced: whether a line is on disk when `append` returns. A line that is not synced survives a kill of the
            process, but not a loss of power.
    """

    def __init__(self, path: Path, *, size: int | None = None, synced: bool = False) -> None:
        self.path = path
        self.size = complete_size(path) if size is None else size
        self._synced = synced
        self._stream: IO[bytes] | None = None

    def open(self) -> None:
        """Create the file, or cut it to `size` bytes."""
        if self._stream is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = self.path.open("ab", buffering=0)
            if self._stream.tell() > self.size:
                self._stream.truncate(self.size)

    def append(self, record: Any) -> None:
        """Append a record as one line.

        Raises:
            OSError: the line cannot be written; the file is as before.
        """
        self.open()
        assert self._stream is not None
        line = json.dumps(record, ensure_ascii=False).encode() + b"\n"
        try:
            if self._stream.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
            if self._synced:
                os.fsync(self._stream.fileno())
        except OSError:
            with contextlib.suppress(OSError):
                self._stream.truncate(self.size)
            raise
        self.size += len(line)

    def sync(self) -> int:
        """Write the lines to disk; return the size of the file in bytes."""
        if self._stream is not None:
            os.fsync(self._stream.fileno())
        return self.size

    def close(self) -> None:
        """Close the file; the next append opens it again."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None


def complete_lines(path: Path) -> list[bytes]:
    """Return the lines of a file, without an incomplete last one; none if there is no file."""
    if not path.is_file():
        return []
    return path.read_bytes().split(b"\n")[:-1]


def complete_size(path: Path) -> int:
    """Return the bytes of the complete lines of a file."""
    return sum(len(line) + 1 for line in complete_lines(path))


def write_lines(path: Path, records: Iterable[Any]) -> None:
    """Write a file of JSON lines, completely or not at all."""
    with whole_file(path) as part, part.open("w", encoding="utf-8") as stream:
        stream.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
