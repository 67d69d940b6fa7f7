"""Store of a judge's answers, and their cost."""

import hashlib
import json
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sams.runtime.errors import UserError
from sams.runtime.files import canonical_json
from sams.runtime.jsonl import Jsonl, complete_lines
from sams.study.settings.benchmarks import Prices

Request = dict[str, Any]  # body of a chat completion's request
Answer = dict[str, Any]  # body of its answer

CHARACTERS_PER_TOKEN = 4
# Mean length of a judgment, whatever `max_tokens` allows: the 480 published judgments of MT-Bench by GPT-4 have a
# mean of 785 characters and a 95th percentile of 1,761.
USUAL_ANSWER_TOKENS = 200


def key_of(request: Request, attempt: int = 1) -> str:
    """Return the key of an answer: the hash of the complete request and of the number of the attempt.

    A benchmark repeats a request whose answer it cannot use.
    """
    text = canonical_json(request) + (f"#{attempt}" if attempt > 1 else "")
    return hashlib.sha256(text.encode()).hexdigest()


def _digest(key: str, answer: Answer) -> str:
    return hashlib.sha256(canonical_json([key, answer]).encode()).hexdigest()


class Store:
    """Answers by key, in an append-only file that stays readable after a kill.

    Args:
        path: the file; None keeps the answers in memory only.

    Raises:
        UserError: a complete line that is not an answer as it was written.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._answers: dict[str, Answer] = {}
        self._lock = threading.Lock()
        self._file = Jsonl(path, synced=True) if path is not None else None
        for number, line in enumerate(complete_lines(path) if path is not None else [], start=1):
            try:
                row = json.loads(line)
                if row["sha256"] != _digest(row["key"], row["answer"]):
                    raise ValueError("the hash differs")
                self._answers[row["key"]] = row["answer"]
            except (ValueError, KeyError, TypeError):
                raise UserError(
                    "expected an answer of the judge, as it was written",
                    where=f"{path}, line {number}",
                    remedy="delete that line; its call will be made again",
                ) from None

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, key: str) -> Answer | None:
        """Return the answer under a key, or None."""
        return self._answers.get(key)

    def put(self, key: str, answer: Answer) -> None:
        """Add an answer; it is on disk when this returns.

        Raises:
            OSError: the answer cannot be written.
        """
        with self._lock:
            if self._file is not None:
                self._file.append({"key": key, "answer": answer, "sha256": _digest(key, answer)})
            self._answers[key] = answer

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


# --- cost -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tokens:
    """Tokens of prompts and of answers."""

    prompt: int
    completion: int

    def cost(self, prices: Prices | None) -> float | None:
        """Return the cost in dollars; None without prices."""
        if prices is None:
            return None
        return (self.prompt * prices.input + self.completion * prices.output) / 1e6


def tokens_of(usages: Iterable[Mapping[str, Any]]) -> Tokens:
    """Return the sum of the `usage` fields of answers."""
    counted = list(usages)
    return Tokens(
        sum(int(usage.get("prompt_tokens") or 0) for usage in counted),
        sum(int(usage.get("completion_tokens") or 0) for usage in counted),
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
