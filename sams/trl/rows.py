"""Training rows with their numbers, so that a chosen row can be read again from the data."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

NUMBER = "pair_number"
"""Key of the rows' numbers in a batch."""

Features = list[dict[str, Any]]


class Numbered(Dataset[dict[str, Any]]):
    """A data set whose rows have their position under the key `NUMBER`.

    Args:
        data: `datasets.Dataset` with the columns that the collator needs.
    """

    def __init__(self, data: Any) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, number: int) -> dict[str, Any]:
        return {**self.data[number], NUMBER: number}

    def __getitems__(self, numbers: Sequence[int]) -> Features:
        """Return several rows, read together."""
        rows = self.data.__getitems__([*numbers])
        return [{**row, NUMBER: number} for row, number in zip(rows, numbers, strict=True)]


class NumberedCollator:
    """A collator that passes the rows' numbers on: [rows] int64.

    Args:
        collate: the collator of the rows.
    """

    def __init__(self, collate: Callable[[Features], dict[str, Tensor]]) -> None:
        self.collate = collate

    def __call__(self, features: Features) -> dict[str, Tensor]:
        numbers = [feature[NUMBER] for feature in features]
        bare = [{key: value for key, value in feature.items() if key != NUMBER} for feature in features]
        return {**self.collate(bare), NUMBER: torch.tensor(numbers)}
