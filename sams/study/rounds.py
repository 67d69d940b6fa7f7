"""Rows of data that a study requires for its rounds."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from sams.runtime.errors import UserError
from sams.scheduling.selection import selected
from sams.study.study import BASE_METHOD

if TYPE_CHECKING:
    from sams.study.study import Study

LEAST_TEST_PAIRS = 2  # for a standard error

Required = dict[str, tuple[int, str]]
"""For each split the least number of rows, and the key that requires them."""


def required_rows(study: Study) -> Required:
    """Return the least number of rows of each split with which every training stage has a round for each ratio."""
    least: Required = {"test": (LEAST_TEST_PAIRS, "data.test")}

    def require(split: str, rows: int, key: str) -> None:
        if rows > least.get(split, (0, ""))[0]:
            least[split] = rows, key

    if study.sft is not None and BASE_METHOD in study.trained_methods:
        require("sft", study.sft.batch_size, "sft.batch_size")
    if study.pretrains and study.pretrain is not None and study.pretrain.policy == "frozen":
        require("train", study.pretrain.batch_size, "pretrain.batch_size")
    for method in study.preference_methods:
        training = study.preference_of(method)
        key, epochs = (
            f"preference.batch_size of method {method}",
            math.ceil(len(training.ratios) / training.epochs),
        )
        if training.preselected is None:
            require("train", training.batch_size * epochs, key)
        else:
            # Each half of the pairs trains a model; the training itself has a share of them all, rounded.
            items = selected(training.batch_size, training.preselected) * epochs
            share = math.ceil((items - 0.5) / training.preselected)
            require("train", max(2 * training.batch_size, share), f"{key}, trained on half of the pairs")
    return least


def check_rows(required: Required, kept: dict[str, int]) -> None:
    """Check that each split has the rows that a study requires.

    Args:
        required: as `required_rows` returns it.
        kept: rows of each split after tokenising.

    Raises:
        UserError: naming the key that requires more rows.
    """
    for split, (least, key) in required.items():
        if kept[split] < least:
            raise UserError(
                f"rows of {split} left after tokenising: {kept[split]}, required: {least}",
                where=key,
                remedy="give more data or a smaller batch_size",
            )
