"""Tuning: grids of settings, and methods that are chosen of several runs."""

from typing import Literal

from pydantic import Field, model_validator

from sams.study.settings.base import Name, Settings
from sams.study.settings.benchmarks import WorldAccuracy


class Axis(Settings):
    """One setting of a tuning grid."""

    values: list[float] = Field(min_length=1, description="What is tried.")
    source: Literal["published", "ours"] = Field(description="Who chose these values.")


class Grid(Settings):
    """What is tried for one method, and where the values that it has in the study come from."""

    axes: dict[str, Axis] = Field(
        min_length=1, description="By key of the method: learning_rate, beta, loss_settings.alpha, ..."
    )
    default: Literal["published", "ours"] = Field(
        description="Whether the method's own values are a published choice."
    )
    note: str = Field("", description="Where the values are published, or why they are these.")


class Chosen(Settings):
    """Methods whose settings and length are chosen on validation pairs (docs/studies.md, `chosen`)."""

    runs: dict[Name, list[Name]] = Field(
        description="For each method its runs, which are methods of the study: one for each point of its grid."
    )
    base: Name = Field(description="The method that the others are held against.")
    accuracy: WorldAccuracy = Field(WorldAccuracy(), description="How answers of what is chosen are graded.")

    @model_validator(mode="after")
    def _fair(self) -> "Chosen":
        if self.base not in self.runs:
            raise ValueError(f"`base` '{self.base}' is not among `runs`")
        if len({len(runs) for runs in self.runs.values()}) > 1:
            found = ", ".join(f"{method} {len(runs)}" for method, runs in self.runs.items())
            raise ValueError(f"every method needs the same number of runs, or the choice is unfair: {found}")
        return self
