"""Digests of files and folders by content, remembered from one start of the workflow to the next."""

import atexit
import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from sams.runtime.files import canonical_json, sha256_of, sha256_of_text, whole_file

T = TypeVar("T")

SETTLED_SECONDS = 2.0
"""Least age of a file whose value is remembered: two changes within one tick of the clock have the same time."""


class _Memory:
    """Values computed from files, each with the state of the file that it was computed from."""

    def __init__(self) -> None:
        self.file: Path | None = None
        self.values: dict[str, Any] = {}
        self.is_changed = False

    def open(self, file: Path) -> None:
        self.file, self.values, self.is_changed = file, {}, False
        with contextlib.suppress(OSError, ValueError):
            read = json.loads(file.read_text(encoding="utf-8"))
            self.values = read if isinstance(read, dict) else {}

    def write(self) -> None:
        if self.file is not None and self.is_changed:
            with contextlib.suppress(OSError), whole_file(self.file) as part:
                part.write_text(json.dumps(self.values), encoding="utf-8")
            self.is_changed = False


_memory = _Memory()


def remember(file: Path) -> None:
    """Read remembered values from a file, and write them there when this process ends.

    A file that is damaged or cannot be written only costs the time of computing its values again.
    """
    _memory.open(file.absolute())  # the working directory may have changed at the end
    atexit.register(_memory.write)


def remembered(kind: str, path: Path, compute: Callable[[Path], T]) -> T:
    """Return `compute(path)`, or its remembered value while path, device, inode, size and times stay the same.

    Args:
        kind: name of what is computed, JSON.
        path: the file.
        compute: function of the file's content.
    """
    status = path.stat()
    state = [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    key = f"{kind} {os.path.abspath(path)}"
    match _memory.values.get(key):
        case [known, value] if known == state:
            return value  # type: ignore[no-any-return]
    value = compute(path)
    if time.time() - max(status.st_mtime, status.st_ctime) > SETTLED_SECONDS:
        _memory.values[key] = [state, value]
        _memory.is_changed = True
    return value


def digest_of_source(path: Path) -> str:
    """Return the SHA-256 of a file, or of the relative names and contents of a folder's files.

    Links are followed. Hidden files, such as the notes of a download, do not count.

    Raises:
        OSError: there is no such file or folder, or it cannot be read.
    """
    if not path.is_dir():
        return _sha256(path)
    return sha256_of_text(
        canonical_json({str(file.relative_to(path)): _sha256(file) for file in _files(path)})
    )


def _sha256(file: Path) -> str:
    return remembered("sha256", file, sha256_of)


def _files(folder: Path) -> Iterator[Path]:
    seen: set[str] = set()
    for name, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(name)
        folders[:] = sorted(each for each in folders if not each.startswith(".") and real not in seen)
        seen.add(real)
        yield from (Path(name, file) for file in sorted(files) if not file.startswith("."))
