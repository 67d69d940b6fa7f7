"""Store of a judge's answers, which several processes may share, and their cost."""

import asyncio
import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sams.judge.calls import Answer, Request
from sams.runtime.errors import UserError
from sams.runtime.files import canonical_json
from sams.study.settings.benchmarks import Prices

log = logging.getLogger(__name__)

CHARACTERS_PER_TOKEN = 4
# Mean length of a judgment, whatever `max_tokens` allows: the 480 published judgments of MT-Bench by GPT-4 have a
# mean of 785 characters and a 95th percentile of 1,761.
USUAL_ANSWER_TOKENS = 200
WAIT_SECONDS = 0.1


def key_of(request: Request, repeat: int = 1) -> str:
    """Return the key of an answer: the hash of the complete request and of the number of the judgment."""
    text = canonical_json(request) + (f"#{repeat}" if repeat > 1 else "")
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _digest(key: str, answer: Answer) -> str:
    return hashlib.sha256(canonical_json([key, answer]).encode()).hexdigest()


class Store:
    """Answers by key, in an append-only file that stays readable after a kill and that processes may share.

    Locks on byte ranges beyond the content exclude other processes: byte `APPEND` while a line is written, and a
    byte by the hash of the key while a call is made. The system releases them when a process ends in any way.

    Args:
        path: the file; None keeps the answers in memory only.

    Raises:
        UserError: a file that cannot be opened, or a complete line that is not an answer as it was written.
    """

    APPEND = 1 << 61

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._answers: dict[str, Answer] = {}
        self._file: int | None = None
        self._read = self._lines = 0
        self._locks = True
        if path is not None and path.exists():
            self._open()

    def get(self, key: str) -> Answer | None:
        """Return the answer under a key, or None."""
        return self._answers.get(key)

    def put(self, key: str, answer: Answer) -> None:
        """Add an answer; it is on disk when this returns.

        Raises:
            OSError: the answer cannot be written; the file is as before.
        """
        if self.path is not None:
            line = json.dumps(
                {"key": key, "answer": answer, "sha256": _digest(key, answer)}, ensure_ascii=False
            )
            with self._appending() as file:
                size = os.fstat(file).st_size
                try:
                    data = line.encode() + b"\n"
                    if os.write(file, data) != len(data):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
                    os.fsync(file)
                except OSError:
                    with contextlib.suppress(OSError):
                        os.ftruncate(file, size)
                    raise
        self._answers[key] = answer

    @contextlib.asynccontextmanager
    async def claim(self, key: str, stopped: Callable[[], bool]) -> AsyncIterator[None]:
        """Exclude other processes from the same call within a block, and read what they have stored before it.

        Once `stopped` returns true, a process that has the call is no longer waited for.
        """
        if self.path is None:
            yield
            return
        file, position = self._open(), int(key[:14], 16)
        while not self._lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB, position) and not stopped():
            await asyncio.sleep(WAIT_SECONDS)
        try:
            self.refresh()
            yield
        finally:
            self._lock(file, fcntl.LOCK_UN, position)

    def refresh(self) -> None:
        """Read the lines that other processes have added.

        Raises:
            UserError: a complete line that is not an answer as it was written.
        """
        if self._file is None:
            return
        # The file must not be opened again: closing any descriptor of it would release the locks of this process.
        new, size = b"", os.fstat(self._file).st_size
        while part := os.pread(self._file, max(0, size - self._read - len(new)), self._read + len(new)):
            new += part  # one call returns at most 2 GiB
        *lines, rest = new.split(b"\n")
        self._read += len(new) - len(rest)
        for line in lines:
            self._lines += 1
            try:
                row = json.loads(line)
                if row["sha256"] != _digest(row["key"], row["answer"]):
                    raise ValueError("the hash differs")
                self._answers[row["key"]] = row["answer"]
            except (ValueError, KeyError, TypeError):
                raise UserError(
                    "expected an answer of the judge, as it was written",
                    where=f"{self.path}, line {self._lines}",
                    remedy="delete that line; its call will be made again",
                ) from None

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _open(self) -> int:
        """Open the file and read it."""
        assert self.path is not None
        if self._file is None:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
            except OSError as error:
                raise UserError(
                    f"the judge's answers cannot be stored here: {error.strerror}", where=str(self.path)
                ) from None
            self.refresh()
        return self._file

    @contextlib.contextmanager
    def _appending(self) -> Iterator[int]:
        """Lock the end of the file within a block, and cut a line that a kill has left incomplete."""
        file = self._open()
        self._lock(file, fcntl.LOCK_EX, self.APPEND)
        try:
            self.refresh()
            if os.fstat(file).st_size > self._read:
                os.ftruncate(file, self._read)
            yield file
            self.refresh()
        finally:
            self._lock(file, fcntl.LOCK_UN, self.APPEND)

    def _lock(self, file: int, kind: int, position: int) -> bool:
        """Take or release a lock; return False if another process has it."""
        try:
            fcntl.lockf(file, kind, 1, position)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return False
            if self._locks:  # a file system without locks
                log.warning(
                    "warning: %s cannot be locked (%s): use it in one process at a time", self.path, error
                )
            self._locks = False
        return True


# --- cost -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tokens:
    """Tokens of prompts and of answers."""

    prompt: int
    completion: int

    def __add__(self, other: "Tokens") -> "Tokens":
        return Tokens(self.prompt + other.prompt, self.completion + other.completion)

    def cost(self, prices: Prices | None) -> float | None:
        """Return the cost in dollars; None without prices."""
        if prices is None:
            return None
        return (self.prompt * prices.input + self.completion * prices.output) / 1e6


def tokens_of(usages: Iterable[Mapping[str, Any]]) -> Tokens:
    """Return the sum of the `usage` fields of answers."""
    counted = list(usages)
    return Tokens(
        *(
            sum(count for usage in counted if isinstance(count := usage.get(key), int))
            for key in ("prompt_tokens", "completion_tokens")
        )
    )


def expected_tokens(requests: Sequence[Request]) -> Tokens:
    """Estimate the tokens of requests and of their answers: four characters a token, answers of the usual length.

    A tokenizer would have to be downloaded, and each maker of judges has its own.
    """
    return Tokens(
        sum(len(str(message.get("content"))) for request in requests for message in request["messages"])
        // CHARACTERS_PER_TOKEN,
        sum(
            min(request.get("max_tokens") or USUAL_ANSWER_TOKENS, USUAL_ANSWER_TOKENS) for request in requests
        ),
    )
