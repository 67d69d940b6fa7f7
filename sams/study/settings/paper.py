"""The table of the paper that a study reproduces."""

from typing import Literal

from pydantic import Field, model_validator

from sams.study.reported import read_reported
from sams.study.settings.base import Name, Settings


class Paper(Settings):
    """A table of the paper, whose figures are shown next to those of the study."""

    table: Literal["table1", "table2", "figure3", "table3", "table7"] = Field(
        description="Table or figure of the paper (arXiv 2506.17252); sams/study/paper has its figures."
    )
    setting: Name = Field(description="Setting of that table.")
    rows: dict[Name, Name | list[Name]] = Field(
        {},
        description="Row or rows of the table that a method reproduces, if the names differ.",
    )

    @model_validator(mode="after")
    def _is_in_the_paper(self) -> "Paper":
        reported = read_reported(self.table, self.setting)
        for row in (row for method in self.rows for row in self.rows_of(method)):
            if row not in reported.rows:
                raise ValueError(
                    f"`rows`: {reported.title} has no row {row}: it has {', '.join(reported.rows)}"
                )
        return self

    def rows_of(self, method: str) -> list[str]:
        """Return the rows that a method reproduces, whether or not the table has them."""
        named = self.rows.get(method, method)
        return [named] if isinstance(named, str) else named
