"""Canonical records: a supervised example, a preference pair."""

import hashlib
from dataclasses import dataclass

from sams.runtime.files import canonical_json

Message = dict[str, str]


def prompt_digest(prompt: list[Message]) -> bytes:
    """Eight bytes that stand for a prompt."""
    return hashlib.sha256(canonical_json(prompt).encode()).digest()[:8]


def is_flipped(pair: str, share: float, seed: int) -> bool:
    """Whether controlled noise swaps the labels of the pair with this id.

    It hangs on id and seed alone, so the order of the data does not matter, and the pairs that one share flips are
    flipped by any greater one too.
    """
    drawn = hashlib.sha256(f"flip/{seed}/{pair}".encode()).digest()[:8]
    return int.from_bytes(drawn) < share * 2**64


def _content_id(**content: object) -> str:
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Example:
    """A prompt (messages `{role, content}`, the last from the user) and the response to learn.

    `imperfect`: whether the response is known to be wrong (True) or right (False); None if not known.
    """

    prompt: list[Message]
    response: str
    imperfect: bool | None = None

    @property
    def id(self) -> str:
        """Sixteen hex digits that stand for prompt and response."""
        return _content_id(prompt=self.prompt, response=self.response)


@dataclass(frozen=True)
class Pair:
    """A prompt with the preferred and the rejected response.

    `flipped`: whether the label is known to be swapped (True) or clean (False); None if not known.
    """

    prompt: list[Message]
    chosen: str
    rejected: str
    flipped: bool | None = None

    @property
    def id(self) -> str:
        """Sixteen hex digits that stand for prompt, chosen and rejected response."""
        return _content_id(prompt=self.prompt, chosen=self.chosen, rejected=self.rejected)
