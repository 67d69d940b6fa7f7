"""Sets of digests that fit into memory however many there are."""

from array import array
from bisect import bisect_left

import numpy as np

RECENT = 50_000


class Seen:
    """A set of eight-byte digests at some eight to sixteen bytes each, a tenth of what a Python set takes.

    Those added last are in a set. Before it grows large they join the others in one sorted array.
    """

    def __init__(self) -> None:
        self._sorted = array("Q")
        self._recent: set[int] = set()

    def add(self, digest: bytes) -> bool:
        """Add a digest; returns whether it is new."""
        number = int.from_bytes(digest)
        place = bisect_left(self._sorted, number)
        if number in self._recent or (place < len(self._sorted) and self._sorted[place] == number):
            return False
        self._recent.add(number)
        # A share of the whole, so that few joinings are needed, however many there are.
        if len(self._recent) >= max(RECENT, len(self._sorted) // 8):
            self._sorted.extend(self._recent)
            self._recent.clear()
            # In place: the array lends its memory.
            np.frombuffer(self._sorted, dtype=np.uint64).sort()
        return True


class Digests:
    """Eight-byte digests, repeats among them, at eight bytes each."""

    def __init__(self) -> None:
        self._numbers = array("Q")

    def add(self, digest: bytes) -> None:
        """Append a digest."""
        self._numbers.append(int.from_bytes(digest))

    def counts(self) -> tuple[np.ndarray, np.ndarray]:
        """The different digests in ascending order, [digests] uint64, and how often each is there, int64."""
        return np.unique(np.frombuffer(self._numbers, dtype=np.uint64), return_counts=True)
