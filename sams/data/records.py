"""Records that every data source is read into: supervised examples and preference pairs."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from sams.runtime.files import canonical_json

Message = dict[str, str]


def prompt_digest(prompt: list[Message]) -> bytes:
    """Return an eight-byte digest of a prompt."""
    return hashlib.sha256(canonical_json(prompt).encode()).digest()[:8]


def is_held_out(prompt: list[Message], share: float, seed: int) -> bool:
    """Return whether a prompt is among the share that is held out for testing.

    The result depends on prompt and seed alone, and a larger share holds out all prompts that a smaller one does.
    """
    return _drawn(f"test/{seed}/{prompt_digest(prompt).hex()}", share)


def _drawn(name: str, share: float) -> bool:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) < share * 2**64


def is_flipped(pair: str, share: float, seed: int) -> bool:
    """Return whether label noise swaps the responses of the pair with this id.

    The result depends on id and seed alone. So the order of the data does not matter, and a larger share flips all
    pairs that a smaller one flips.
    """
    return _drawn(f"flip/{seed}/{pair}", share)


def _content_id(**content: object) -> str:
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Example:
    """Prompt (messages `{role, content}`, the last from the user) and the response to learn.

    `imperfect`: whether the response is known to be wrong (True) or right (False); None if not known.
    """

    prompt: list[Message]
    response: str
    imperfect: bool | None = None

    @property
    def id(self) -> str:
        """Content id: sixteen hex digits of the SHA-256 of prompt and response."""
        return _content_id(prompt=self.prompt, response=self.response)


@dataclass(frozen=True)
class Pair:
    """Prompt with the preferred and the rejected response.

    `flipped`: whether the label is known to be swapped (True) or clean (False); None if not known. `kept`: numbers of
    the row that selectors may read, by column.
    """

    prompt: list[Message]
    chosen: str
    rejected: str
    flipped: bool | None = None
    kept: Mapping[str, float] = field(default_factory=dict, hash=False)

    @property
    def id(self) -> str:
        """Content id: sixteen hex digits of the SHA-256 of prompt, chosen and rejected response."""
        return _content_id(prompt=self.prompt, chosen=self.chosen, rejected=self.rejected)

    @property
    def opposite_id(self) -> str:
        """Content id of the pair with the opposite label."""
        return _content_id(prompt=self.prompt, chosen=self.rejected, rejected=self.chosen)
