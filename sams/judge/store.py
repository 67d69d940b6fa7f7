"""Answers of a judge: kept as they come, and what they cost."""

import contextlib
import errno
import hashlib
import json
import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from sams.runtime.errors import UserError
from sams.runtime.files import canonical_json
from sams.study.settings.benchmarks import Prices

Request = dict[str, Any]  # body of a chat completion's request
Answer = dict[str, Any]  # body of its answer

CHARACTERS_PER_TOKEN = 4
# A judge that is given room for thousands of tokens uses some 200 of them: GPT-4's 480 published judgments of
# MT-Bench have 785 characters in the mean, 1,761 at the 95th percentile.
USUAL_ANSWER_TOKENS = 200


def key_of(request: Request, attempt: int = 1) -> str:
    """What an answer is kept under: the hash of the whole request.

    A benchmark may ask the same again because it can do nothing with the answer; that attempt counts too.
    """
    text = canonical_json(request) + (f"#{attempt}" if attempt > 1 else "")
    return hashlib.sha256(text.encode()).hexdigest()


def _digest(key: str, answer: Answer) -> str:
    return hashlib.sha256(canonical_json([key, answer]).encode()).hexdigest()


class Store:
    """Answers by key, in an append-only file of JSON lines that any kill leaves usable.

    Args:
        path: the file; None keeps the answers in memory only.

    Raises:
        UserError: a line other than a torn last one is no answer.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._answers: dict[str, Answer] = {}
        self._lock = threading.Lock()
        self._stream: IO[bytes] | None = None  # opened for the first answer
        self._size = self._read(path) if path is not None and path.is_file() else 0

    def _read(self, path: Path) -> int:
        """Read the file; return its size without a torn last line, which a kill may have left."""
        content = path.read_bytes()
        size = content.rfind(b"\n") + 1
        for number, line in enumerate(content[:size].split(b"\n")[:-1], start=1):
            try:
                row = json.loads(line)
                if row["sha256"] != _digest(row["key"], row["answer"]):
                    raise ValueError("its hash is another one")
                self._answers[row["key"]] = row["answer"]
            except (ValueError, KeyError, TypeError):
                raise UserError(
                    "expected an answer of the judge, as it was written",
                    where=f"{path}, line {number}",
                    remedy="delete that line; its call will be made again",
                ) from None
        return size

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, key: str) -> Answer | None:
        """The answer under a key, if there is one."""
        return self._answers.get(key)

    def put(self, key: str, answer: Answer) -> None:
        """Keep an answer; it is on disk when this returns.

        Raises:
            OSError: it cannot be written.
        """
        row = {"key": key, "answer": answer, "sha256": _digest(key, answer)}
        line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
        with self._lock:
            if self.path is not None:
                self._append(self.path, line)
            self._answers[key] = answer

    def _append(self, path: Path, line: bytes) -> None:
        if self._stream is None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = path.open("ab", buffering=0)
            if os.fstat(self._stream.fileno()).st_size > self._size:
                self._stream.truncate(self._size)
        try:
            if self._stream.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._stream.fileno())
        except OSError:
            with contextlib.suppress(OSError):
                self._stream.truncate(self._size)  # no torn line before those of other calls
            raise
        self._size += len(line)

    def close(self) -> None:
        """Close the file."""
        if self._stream is not None:
            self._stream.close()


# --- cost -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tokens:
    """Tokens of prompts and of answers."""

    prompt: int
    completion: int

    def cost(self, prices: Prices | None) -> float | None:
        """Dollars, where there are prices."""
        if prices is None:
            return None
        return (self.prompt * prices.input + self.completion * prices.output) / 1e6


def tokens_of(usages: Iterable[Mapping[str, Any]]) -> Tokens:
    """What answers say about themselves in `usage`, added up."""
    counted = list(usages)
    return Tokens(
        sum(int(usage.get("prompt_tokens") or 0) for usage in counted),
        sum(int(usage.get("completion_tokens") or 0) for usage in counted),
    )


def expected_tokens(requests: Sequence[Request]) -> Tokens:
    """What requests will take, about: four characters are a token, and answers have their usual length.

    OpenAI's own tokenizer would have to be fetched, and judges of other makers have another one.
    """
    return Tokens(
        sum(len(str(message.get("content"))) for request in requests for message in request["messages"])
        // CHARACTERS_PER_TOKEN,
        sum(
            min(request.get("max_tokens") or USUAL_ANSWER_TOKENS, USUAL_ANSWER_TOKENS) for request in requests
        ),
    )
