"""Compact digests give the same answers as Python's set and counter."""

import random
import tracemalloc
from collections import Counter

import pytest

from sams.data import seen


def test_seen_is_a_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seen, "RECENT", 10)
    draw = random.Random(0)
    ours, plain = seen.Seen(), set()
    for _ in range(5000):
        digest = draw.choice([draw.randbytes(8), draw.randrange(900).to_bytes(8), bytes(8), b"\xff" * 8])
        assert ours.add(digest) == (digest not in plain)
        plain.add(digest)


def test_digests_are_counted() -> None:
    draw = random.Random(0)
    drawn = [draw.randrange(2**62, 2**62 + 60).to_bytes(8) for _ in range(500)]
    ours = seen.Digests()
    for digest in drawn:
        ours.add(digest)
    found = zip(*(values.tolist() for values in ours.counts()), strict=True)
    assert {number.to_bytes(8): count for number, count in found} == Counter(drawn)
    assert [len(values) for values in seen.Digests().counts()] == [0, 0]


def test_few_bytes_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seen, "RECENT", 2000)
    draw, count = random.Random(0), 40_000
    tracemalloc.start()
    ours, prompts = seen.Seen(), seen.Digests()
    for _ in range(count):
        digest = draw.randbytes(8)
        ours.add(digest)
        prompts.add(digest)
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    # 8 + 8 for each, and the set of those added last, which does not grow with them.
    assert held < 40 * count + 100 * seen.RECENT
