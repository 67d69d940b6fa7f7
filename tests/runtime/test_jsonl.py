"""Append-only JSON lines: incomplete lines, sizes to go back to, writes that fail."""

import errno
import os
from pathlib import Path

import pytest

from sams.runtime.jsonl import Jsonl, complete_lines


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of two lines, in a folder that the first append has made."""
    log = Jsonl(tmp_path / "folder" / "log.jsonl")
    assert not log.path.parent.exists()
    for number in range(2):
        log.append({"n": number, "text": "ü\u2028"})
    log.close()
    return log.path


@pytest.mark.parametrize("synced", [False, True])
def test_an_incomplete_line_is_cut_off_before_the_next(path: Path, synced: bool) -> None:
    whole = path.read_bytes()
    for torn in (b"{", whole[: len(whole) // 2 - 1]):
        path.write_bytes(whole + torn)
        assert len(complete_lines(path)) == 2
        log = Jsonl(path, synced=synced)
        log.append([])
        assert path.read_bytes() == whole + b"[]\n" and log.sync() == len(whole) + 3
        log.close()


def test_a_log_goes_back_to_a_size(path: Path) -> None:
    size = len(complete_lines(path)[0]) + 1
    log = Jsonl(path, size=size)
    assert len(complete_lines(path)) == 2, "nothing is cut off before it is opened"
    log.open()
    assert path.stat().st_size == size == log.size
    log.append({})
    assert len(complete_lines(path)) == 2


def test_a_write_that_fails_leaves_the_lines_before_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = path.read_bytes()
    log = Jsonl(path, synced=True)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(os, "fsync", full)
        log.append({"n": 2})
    assert path.read_bytes() == whole
    log.append({"n": 3})
    assert path.read_bytes() == whole + b'{"n": 3}\n'
