"""Number of rounds of a run, and the pairs that each round trains on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sams.runtime.errors import UserError
from sams.scheduling.selection import Selection, selected

if TYPE_CHECKING:
    from sams.study.settings import Preference, Training


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
    ratios = (1.0,) if training.selector_entry.crossfitted else training.ratios
    rounds = count_rounds(items, training, f"{where}.batch_size", batch)
    try:
        return Selection(
            batch, rounds, ratios, training.warmup_rounds, training.full_every, training.end_after
        )
    except ValueError as error:
        raise UserError(str(error), where=f"{where}.ratio") from None
