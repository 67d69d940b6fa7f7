"""Order of the pairs for selector `selective`: by validation loss under models that were not trained on them."""

from collections.abc import Sequence
from pathlib import Path

from sams.runtime.errors import UserError

LOSSES = "losses.parquet"


def read_losses(halves: Sequence[Path]) -> dict[str, float]:
    """Read the validation losses by pair id, from the folders of all halves.

    Raises:
        UserError: when a pair has two losses.
    """
    from pyarrow import parquet

    losses: dict[str, float] = {}
    for folder in halves:
        table = parquet.read_table(folder / LOSSES).to_pydict()
        if twice := losses.keys() & set(table["id"]):
            raise UserError(
                f"pair {min(twice)} has two losses", where=str(folder), remedy="give each half once"
            )
        losses |= dict(zip(table["id"], table["loss"], strict=True))
    return losses


def easiest_first(ids: Sequence[str], losses: dict[str, float], ratio: float) -> list[int]:
    """Indices of the easiest share of the pairs, from the lowest loss to the highest (Selective DPO, Section 4).

    Raises:
        UserError: when the losses are not those of these pairs.
    """
    if wrong := set(ids) ^ losses.keys():
        raise UserError(
            f"cross-fitted losses do not belong to these pairs ({len(ids)} pairs, {len(losses)} losses, "
            f"differing at {min(wrong)})",
            where="--crossfit",
            remedy="give both halves that `train_crossfit` made of these data",
        )
    order = sorted(range(len(ids)), key=lambda pair: (losses[ids[pair]], ids[pair]))
    return order[: round(len(ids) * ratio)]
