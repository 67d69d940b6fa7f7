"""The record of the pairs of a run with TRL: pairs.parquet, as runs of a study write it (sams/training/pairs.py)."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from sams.runtime.files import whole_file
from sams.training.pairs import PairLog


@dataclass
class Known:
    """What is known of the training pairs, by their number; tokens and reference once a pair was computed.

    Attributes:
        ids, flipped: of the data.
        chosen_tokens, rejected_tokens: [pairs] int32.
        reference: [pairs, 2] float32, log-probs of both responses.
    """

    ids: list[str]
    flipped: list[bool | None]
    chosen_tokens: Any
    rejected_tokens: Any
    reference: Tensor

    @classmethod
    def of(cls, data: Any) -> Self:
        """Return what a data set says of its rows."""
        count = len(data)
        ids = data["id"][:] if "id" in data.column_names else range(count)
        flipped = data["flipped"][:] if "flipped" in data.column_names else [None] * count
        return cls(
            ids=[*map(str, ids)],
            flipped=[*flipped],
            chosen_tokens=torch.zeros(count, dtype=torch.int32),
            rejected_tokens=torch.zeros(count, dtype=torch.int32),
            reference=torch.full((count, 2), torch.nan),
        )

    def tensors(self) -> dict[str, Tensor]:
        """Return what a checkpoint must keep."""
        return {part.name: getattr(self, part.name) for part in fields(self)[2:]}


class PairRecord:
    """The record of a run, which one process writes.

    Args:
        folder: folder for the rows during the run.
        data: the training data.
        epoch: steps of an epoch.
    """

    def __init__(self, folder: Path, data: Any, epoch: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.known = Known.of(data)
        self.log = PairLog(folder, self.known, None, epoch=epoch)
        self.log.resume(0)

    def add(self, step: int, numbers: Tensor, values: dict[str, Tensor], selected: Any) -> None:
        """Add pairs of a step.

        Args:
            step: the step, from 1.
            numbers: [n] positions of the pairs in the data.
            values: margins, log-probs under policy and reference, and tokens (sams/trl/scoring.py), [n] on the CPU.
            selected: [n] or one value: 1 where a pair is trained on, and 0 where it is not.
        """
        known = self.known
        known.reference[numbers] = torch.stack(
            [values["reference_chosen"], values["reference_rejected"]], dim=1
        )
        for name in ("chosen_tokens", "rejected_tokens"):
            getattr(known, name)[numbers] = values[name].int()
        named = {
            "logps/chosen": values["chosen_logps"],
            "logps/rejected": values["rejected_logps"],
            "rewards/margins": values["margins"],
        }
        self.log.add(step, numbers.tolist(), named, selected)

    def state(self) -> dict[str, Any]:
        """Return the state for a checkpoint, whose rows are on the disk then."""
        return {"rows": self.log.sync(), **self.known.tensors()}

    def restore(self, state: dict[str, Any]) -> None:
        """Restore the state of `state`, whose file is in place; later rows are dropped."""
        self.log.resume(state["rows"])
        for name in self.known.tensors():
            setattr(self.known, name, state[name])

    def write(self, out: Path) -> None:
        """Write pairs.parquet."""
        known = self.known
        known.chosen_tokens, known.rejected_tokens = (
            known.chosen_tokens.numpy(),
            known.rejected_tokens.numpy(),
        )
        self.log.write(out)


def write_texts(data: Any, file: Path) -> None:
    """Write prompt, as messages, and responses of all pairs, if the data has their text."""
    if not {"prompt", "chosen", "rejected"} <= {*data.column_names}:
        return

    def as_text(row: dict[str, Any], number: int) -> dict[str, Any]:
        prompt, *sides = row["prompt"], row["chosen"], row["rejected"]
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        chosen, rejected = (
            side if isinstance(side, str) else "\n".join(said["content"] for said in side) for side in sides
        )
        return {
            "id": str(row.get("id", number)),
            "prompt": [{"role": said["role"], "content": said["content"]} for said in messages],
            "chosen": chosen,
            "rejected": rejected,
            "flipped": row.get("flipped"),
        }

    texts = data.map(as_text, with_indices=True, remove_columns=data.column_names, desc="Texts of the pairs")
    with whole_file(file) as part:
        texts.to_parquet(part)
