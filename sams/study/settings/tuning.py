"""Tuning: grids of settings, and methods chosen from several runs."""

from typing import Literal

from pydantic import Field, model_validator

from sams.study.settings.base import Name, Settings
from sams.study.settings.benchmarks import WorldAccuracy


class Axis(Settings):
    """One setting of a tuning grid."""

    values: list[float] = Field(min_length=1, description="Values to try.")
    source: Literal["published", "ours"] = Field(
        description="Whether these values are published or our own choice."
    )


class Grid(Settings):
    """Tuning grid of one method, and the origin of the method's values in the study."""

    axes: dict[str, Axis] = Field(
        min_length=1, description="Values by key of the method: learning_rate, beta, loss_settings.alpha, ..."
    )
    default: Literal["published", "ours"] = Field(
        description="Whether the values that the method has in the study are published or our own choice."
    )
    note: str = Field("", description="Where the values are published, or why they were chosen.")


class Chosen(Settings):
    """Methods whose settings and length are chosen on validation pairs (docs/studies.md, `chosen`)."""

    runs: dict[Name, list[Name]] = Field(
        description="Runs of each method, one for each point of its grid; runs are methods of the study."
    )
    base: Name = Field(description="Method that the others are compared with.")
    accuracy: WorldAccuracy = Field(
        WorldAccuracy(), description="How answers of the chosen models are graded."
    )

    @model_validator(mode="after")
    def _fair(self) -> "Chosen":
        if self.base not in self.runs:
            raise ValueError(f"`base` '{self.base}' is not among `runs`")
        if len({len(runs) for runs in self.runs.values()}) > 1:
            counts = ", ".join(f"{method} {len(runs)}" for method, runs in self.runs.items())
            raise ValueError(f"every method needs the same number of runs, or the choice is unfair: {counts}")
        return self
