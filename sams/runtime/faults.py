"""What the machine refuses, told in one line: a full disk, no memory. Recognised without importing torch."""

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from sams.runtime.errors import UserError

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# Libraries that write with code of their own say it in words: safetensors and pyarrow, SQLite, torch.save.
FULL_WORDS = ("No space left on device", "disk is full", "Disk quota exceeded", "File too large")
TORN_WRITE = ("inline_container", "PytorchStreamWriter", "iostream error")
MEMORY_WORDS = ("can't allocate memory", "out of memory", "Cannot allocate memory")


def causes(error: BaseException) -> Iterator[BaseException]:
    """An error and those behind it, those of other processes in a collective save among them."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        found = waiting.pop()
        if found is None or id(found) in seen:
            continue
        seen.add(id(found))
        yield found
        waiting += [found.__cause__, found.__context__]
        # torch's CheckpointException: rank -> (error, its trace).
        waiting += [each for each, *_ in getattr(found, "failures", {}).values()]


def is_disk_full(error: BaseException) -> bool:
    """Whether a file could not be written for want of room: on the disk, in a quota, under a limit."""
    return any(
        (isinstance(found, OSError) and found.errno in FULL)
        or any(words in str(found) for words in FULL_WORDS)
        or (isinstance(found, RuntimeError) and any(words in str(found) for words in TORN_WRITE))
        for found in causes(error)
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of the machine or of a GPU."""
    return any(
        isinstance(found, MemoryError)
        or type(found).__name__ == "OutOfMemoryError"
        or (isinstance(found, OSError) and found.errno == errno.ENOMEM)
        or (isinstance(found, RuntimeError) and any(words in str(found) for words in MEMORY_WORDS))
        for found in causes(error)
    )


@contextlib.contextmanager
def suggesting(remedy: str) -> Iterator[None]:
    """Note what to set, should memory run out in the block."""
    try:
        yield
    except BaseException as error:
        if is_out_of_memory(error):
            error.add_note(remedy)
        raise


def explained(error: BaseException) -> UserError | None:
    """The line for a fault of the machine; None for any other error.

    A file that the error does not name lies in, or on its way to, what the command line gives as `--out`.
    """
    if is_disk_full(error):
        named = [found.filename for found in causes(error) if isinstance(found, OSError) and found.filename]
        return UserError(
            "it cannot be written: the disk is full, or a quota or limit is reached",
            where=str(named[0] if named else _option("--out")),
            remedy="make room and start the same command again: it goes on from what was finished",
        )
    if is_out_of_memory(error):
        notes = [note for found in causes(error) for note in getattr(found, "__notes__", [])]
        return UserError(
            "out of memory",
            where=str(_option("--out")),
            remedy=(notes[0] if notes else "end what else runs on this machine, or use one with more memory")
            + ", and start the same command again: it goes on from what was finished",
        )
    return None


def _option(name: str) -> Path | str:
    """Value of a command-line option; empty where it is not given."""
    words = iter(sys.argv)
    for word in words:
        if word == name:
            return next(words, "")
        if word.startswith(f"{name}="):
            return word.partition("=")[2]
    return ""


def full_disk(path: Path) -> OSError:
    """The error of a full disk, for a file whose writer said it in other words."""
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
