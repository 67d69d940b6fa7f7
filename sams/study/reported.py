"""Figures that the paper reports, one YAML file for each of its tables in `sams/study/paper`."""

from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(__file__).parent / "paper"


class Figure(NamedTuple):
    """A reported figure and its source."""

    value: float
    source: str


class Reported(NamedTuple):
    """One setting of a table of the paper.

    Args:
        title: name of the table in the paper.
        columns: columns by their names in the main table; `hours` is run time.
        rows: figures by row and column; figures that are not reported are absent.
        notes: what a reader must know about the figures.
    """

    title: str
    source: str
    columns: list[str]
    rows: dict[str, dict[str, Figure]]
    notes: list[str]


def read_reported(table: str, setting: str) -> Reported:
    """Read one setting of a table of the paper.

    Raises:
        ValueError: the table has no such setting.
    """
    import yaml

    content = yaml.safe_load((FOLDER / f"{table}.yaml").read_text(encoding="utf-8"))
    if setting not in content["settings"]:
        raise ValueError(
            f"{content['title']} has no setting {setting}: it has {', '.join(content['settings'])}"
        )
    rows = _rows(content, setting)
    if "elsewhere" in content:
        rows |= _rows(content["elsewhere"], setting)
    return Reported(
        content["title"],
        content["source"],
        content["columns"],
        rows,
        content.get("notes", []),
    )


def _rows(content: dict[str, Any], setting: str) -> dict[str, dict[str, Figure]]:
    return {
        row: {
            column: Figure(float(value), content["source"])
            for column, value in zip(content["columns"], values, strict=True)
            if value is not None
        }
        for row, values in content["settings"][setting].items()
    }
