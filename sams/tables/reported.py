"""The paper's figures, read from `sams/tables/paper`: one file for each table."""

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
        title: the table's name in the paper.
        source: the paper and table.
        columns: its columns, under their names in the main table; `hours` is run time.
        judges: judges whose scores are comparable with the reported ones, by column; none for unjudged columns.
        rows: figures by row and column; figures that are not reported are absent.
        notes: for readers of the table.
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

    content = yaml.safe_load((FOLDER / f"{table}.yaml").read_text(encoding="utf-8"))
    if setting not in content["settings"]:
        names = ", ".join(content["settings"])
        raise ValueError(f"{content['title']} has no setting {setting}: it has {names}")
    rows = _rows(content, setting)
    if "elsewhere" in content:
        rows |= _rows(content["elsewhere"], setting)
    return Reported(
        title=content["title"],
        source=content["source"],
        columns=content["columns"],
        judges=content.get("judges", {}),
        rows=rows,
        notes=content.get("notes", []),
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
