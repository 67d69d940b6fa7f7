"""Schedule of the selection: which rounds select, and the number of pairs that each trains on."""

from dataclasses import dataclass


def selected(batch_size: int, ratio: float) -> int:
    """Return K, the number of pairs of a share of a batch.

    Raises:
        ValueError: unless it is a whole number of at least one pair and at most the batch.
    """
    pairs = batch_size * ratio
    if not 1 <= round(pairs) <= batch_size or abs(pairs - round(pairs)) > 1e-6:
        raise ValueError(
            f"batch_size {batch_size} times ratio {ratio} is {pairs:.10g} pairs: "
            f"choose a whole number from 1 to {batch_size}"
        )
    return round(pairs)


@dataclass(frozen=True)
class Selection:
    """Schedule of the selection over a run; rounds are counted from 1.

    Attributes:
        batch_size: n, the pairs of a global batch.
        rounds: rounds of the complete run.
        ratios: K / n; several ratios apply to consecutive equal parts of the run.
        warmup_rounds: number of first rounds that train on the full batch.
        full_every: every `full_every`-th round trains on the full batch; None for no such rounds.
        end_after: the last round of scheduling, after which the run is plain training; None for never.

    Raises:
        ValueError: when a ratio does not give a whole number of pairs, or a number of rounds is out of range.
    """

    batch_size: int
    rounds: int
    ratios: tuple[float, ...]
    warmup_rounds: int = 0
    full_every: int | None = None
    end_after: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= len(self.ratios) <= self.rounds:
            raise ValueError(f"{len(self.ratios)} ratios for {self.rounds} rounds: give 1 to {self.rounds}")
        for ratio in self.ratios:
            selected(self.batch_size, ratio)
        if self.warmup_rounds < 0:
            raise ValueError(f"warmup_rounds is {self.warmup_rounds}: give 0 or more")
        if self.full_every is not None and self.full_every < 2:
            raise ValueError(f"full_every is {self.full_every}: give 2 or more, or None for no full rounds")
        if self.end_after is not None and self.end_after < 1:
            raise ValueError(f"end_after is {self.end_after}: give 1 or more, or choose selector `all`")

    def scheduled(self, round: int) -> bool:
        """Return whether the selector runs in a round. It runs in warm-up and full rounds too, to learn from them."""
        return self.end_after is None or round <= self.end_after

    @property
    def largest(self) -> int:
        """The largest K of all rounds."""
        return max(self.size(round) for round in range(1, self.rounds + 1))

    def size(self, round: int) -> int:
        """Return K of a round."""
        is_warmup = round <= self.warmup_rounds
        full = self.full_every is not None and round % self.full_every == 0
        if is_warmup or full or not self.scheduled(round):
            return self.batch_size
        part = (round - 1) * len(self.ratios) // self.rounds
        return selected(self.batch_size, self.ratios[part])
