"""Which rounds are scheduled, and how many pairs each trains on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sams.runtime.errors import UserError
from sams.scheduling.selectors.table import SELECTORS

if TYPE_CHECKING:
    from sams.study.settings import Preference, Training


def selected(batch_size: int, ratio: float) -> int:
    """K: the pairs that a share of a batch comes to.

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
    """The course of the selection over a run; rounds are counted from 1.

    Attributes:
        batch_size: n, the pairs of a global batch.
        rounds: rounds of the whole run.
        ratios: K / n; several hold for consecutive equal parts of the run.
        warmup_rounds: first rounds that train on the full batch.
        full_every: every `full_every`-th round trains on the full batch; None for no such rounds.
        end_after: the last round of scheduling, after which the run is plain training; None for never.

    Raises:
        ValueError: when a ratio does not give a whole number of pairs, or a number of rounds makes no sense.
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
        """Whether the selector takes part. It sees warm-up and full rounds too, to learn from them."""
        return self.end_after is None or round <= self.end_after

    @property
    def largest(self) -> int:
        """The largest K of all rounds."""
        return max(self.size(round) for round in range(1, self.rounds + 1))

    def size(self, round: int) -> int:
        """K of a round."""
        warming = round <= self.warmup_rounds
        full = self.full_every is not None and round % self.full_every == 0
        if warming or full or not self.scheduled(round):
            return self.batch_size
        part = (round - 1) * len(self.ratios) // self.rounds
        return selected(self.batch_size, self.ratios[part])


def count_rounds(items: int, training: Training, where: str, batch: int | None = None) -> int:
    """Return the number of rounds of a run, which are its optimiser steps.

    Args:
        items: number of items in the data.
        training: batch size, epochs and limit.
        where: config key of the batch size, for the message.
        batch: batch size, if it differs from that of the settings.

    Raises:
        UserError: the data does not fill one batch.
    """
    batch = batch or training.batch_size
    if items < batch:
        raise UserError(
            f"{items} rows do not fill one global batch of {batch}",
            where=where,
            remedy="give more data or a smaller batch_size",
        )
    rounds = items // batch * training.epochs
    return rounds if training.max_steps is None else min(rounds, training.max_steps)


def selection_of(training: Preference, items: int, where: str = "preference") -> Selection:
    """Return the rounds of a method and K of each.

    Args:
        training: the method.
        items: number of pairs; of those chosen by cross-fitted losses, if the method has such a choice.
        where: config key of the settings, for the message.

    Raises:
        UserError: the data does not fill a batch, or the run is too short for its ratios.
    """
    batch = selected(training.batch_size, training.preselected or 1.0)
    ratios = (1.0,) if SELECTORS[training.selector].crossfitted else training.ratios
    rounds = count_rounds(items, training, f"{where}.batch_size", batch)
    try:
        return Selection(
            batch, rounds, ratios, training.warmup_rounds, training.full_every, training.end_after
        )
    except ValueError as error:
        raise UserError(str(error), where=f"{where}.ratio") from None
