"""What the paper reports: the figures in `sams/tables/paper`, one file for each of its tables."""

from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(__file__).parent / "paper"


class Figure(NamedTuple):
    """A reported figure and where it is reported."""

    value: float
    source: str


class Reported(NamedTuple):
    """One setting of a table of the paper.

    Args:
        title: how the paper calls the table.
        columns: its columns, by their names in the main table; `hours` is run time.
        judges: judges whose scores may stand beside the reported ones, by column. A column without is not judged.
        rows: figures by row and column; what is not reported is absent.
        notes: what a reader has to know of them.
    """

    title: str
    source: str
    columns: list[str]
    judges: dict[str, list[str]]
    rows: dict[str, dict[str, Figure]]
    notes: list[str]


def read_reported(table: str, setting: str) -> Reported:
    """One setting of a table of the paper.

    Raises:
        ValueError: the table has no such setting.
    """
    import yaml

    held = yaml.safe_load((FOLDER / f"{table}.yaml").read_text(encoding="utf-8"))
    if setting not in held["settings"]:
        raise ValueError(f"{held['title']} has no setting {setting}: it has {', '.join(held['settings'])}")
    rows = _rows(held, setting)
    if "elsewhere" in held:
        rows |= _rows(held["elsewhere"], setting)
    return Reported(
        held["title"], held["source"], held["columns"], held.get("judges", {}), rows, held.get("notes", [])
    )


def _rows(held: dict[str, Any], setting: str) -> dict[str, dict[str, Figure]]:
    return {
        row: {
            column: Figure(float(value), held["source"])
            for column, value in zip(held["columns"], values, strict=True)
            if value is not None
        }
        for row, values in held["settings"][setting].items()
    }
