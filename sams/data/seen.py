"""Compact sets and lists of eight-byte digests."""

from array import array
from bisect import bisect_left

import numpy as np

RECENT = 50_000


class Seen:
    """Set of eight-byte digests that takes 8 to 16 bytes a digest, a tenth of a Python set.

    Recent digests are in a Python set, which is merged into a sorted array before it grows large.
    """

    def __init__(self) -> None:
        self._sorted = array("Q")
        self._recent: set[int] = set()

    def __contains__(self, digest: bytes) -> bool:
        number = int.from_bytes(digest)
        index = bisect_left(self._sorted, number)
        return number in self._recent or (index < len(self._sorted) and self._sorted[index] == number)

    def add(self, digest: bytes) -> bool:
        """Add a digest and return whether it is new."""
        if digest in self:
            return False
        self._recent.add(int.from_bytes(digest))
        # Merging at a share of the array's length keeps the number of merges small.
        if len(self._recent) >= max(RECENT, len(self._sorted) // 8):
            self._sorted.extend(self._recent)
            self._recent.clear()
            # Sorts in place: NumPy shares the array's memory.
            np.frombuffer(self._sorted, dtype=np.uint64).sort()
        return True


class Digests:
    """List of eight-byte digests that takes eight bytes a digest."""

    def __init__(self) -> None:
        self._numbers = array("Q")

    def add(self, digest: bytes) -> None:
        """Append a digest."""
        self._numbers.append(int.from_bytes(digest))

    def counts(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the distinct digests, sorted, [digests] uint64, and their numbers of occurrences, int64."""
        return np.unique(np.frombuffer(self._numbers, dtype=np.uint64), return_counts=True)
