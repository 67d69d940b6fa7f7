"""Recognise a full disk, a lack of memory and a missing extra, without importing torch, and report them in a line."""

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from sams.runtime.errors import UserError
from sams.runtime.extras import not_installed

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# Messages of libraries that raise no OSError: safetensors and pyarrow, SQLite, torch.save.
FULL_WORDS = ("No space left on device", "disk is full", "Disk quota exceeded", "File too large")
TORN_WRITE = ("inline_container", "PytorchStreamWriter", "iostream error")
MEMORY_WORDS = ("can't allocate memory", "out of memory", "Cannot allocate memory")


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, its causes, and those of other processes in a collective save."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        cause = waiting.pop()
        if cause is None or id(cause) in seen:
            continue
        seen.add(id(cause))
        yield cause
        waiting += [cause.__cause__, cause.__context__]
        # torch's CheckpointException: rank -> (error, traceback).
        waiting += [each for each, *_ in getattr(cause, "failures", {}).values()]


def is_disk_full(error: BaseException) -> bool:
    """Return whether a file could not be written because of a full disk, a quota or a limit."""
    return any(
        (isinstance(cause, OSError) and cause.errno in FULL)
        or any(words in str(cause) for words in FULL_WORDS)
        or (isinstance(cause, RuntimeError) and any(words in str(cause) for words in TORN_WRITE))
        for cause in causes(error)
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether the memory of the machine or of a GPU was exhausted."""
    return any(
        isinstance(cause, MemoryError)
        or type(cause).__name__ == "OutOfMemoryError"
        or (isinstance(cause, OSError) and cause.errno == errno.ENOMEM)
        or (isinstance(cause, RuntimeError) and any(words in str(cause) for words in MEMORY_WORDS))
        for cause in causes(error)
    )


@contextlib.contextmanager
def suggesting(remedy: str) -> Iterator[None]:
    """Add a remedy to an error that means a lack of memory."""
    try:
        yield
    except BaseException as error:
        if is_out_of_memory(error):
            error.add_note(remedy)
        raise


def explained(error: BaseException) -> UserError | None:
    """Return the error to report for a full disk, a lack of memory or a missing extra; None for any other error.

    A file that the error does not name is that of option `--out`.
    """
    if is_disk_full(error):
        named = [cause.filename for cause in causes(error) if isinstance(cause, OSError) and cause.filename]
        return UserError(
            "cannot be written: the disk is full, or a quota or limit is reached",
            where=str(named[0] if named else _option("--out")),
            remedy="free space and start the same command again: it resumes from what is finished",
        )
    if is_out_of_memory(error):
        notes = [note for cause in causes(error) for note in getattr(cause, "__notes__", [])]
        return UserError(
            "out of memory",
            where=str(_option("--out")),
            remedy=(notes[0] if notes else "end other processes of this machine, or use one with more memory")
            + ", and start the same command again: it resumes from what is finished",
        )
    return not_installed(error)


def _option(name: str) -> Path | str:
    """Return the value of a command-line option; empty if it is not given."""
    words = iter(sys.argv)
    for word in words:
        if word == name:
            return next(words, "")
        if word.startswith(f"{name}="):
            return word.partition("=")[2]
    return ""


def full_disk(path: Path) -> OSError:
    """Return the error of a full disk for a file whose writer raised another error."""
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
