"""What a plan tells: jobs, memory, disk, judge."""

from __future__ import annotations

from dataclasses import dataclass, field

from sams.judge.store import Tokens
from sams.planning.peaks import Memory


@dataclass(frozen=True)
class Stage:
    """Jobs of one kind.

    Attributes:
        name: the rule, and the method where it has one job each.
        jobs: how many.
        rounds: of one job; 0 where there are none.
        tokens: that the policy meets, of all jobs.
        gpu_hours: of all jobs; None for CPU jobs, and where no GPU is planned for.
    """

    name: str
    jobs: int
    rounds: int = 0
    tokens: float = 0.0
    gpu_hours: float | None = None


@dataclass(frozen=True)
class Disk:
    """Bytes that stay, or that are there while a job runs."""

    what: str
    count: int
    each: float
    stays: bool = True

    @property
    def bytes(self) -> float:
        """Of all."""
        return self.count * self.each


@dataclass(frozen=True)
class Judged:
    """Calls of a judge for one benchmark, over all models."""

    benchmark: str
    calls: int
    tokens: Tokens
    dollars: float | None


@dataclass
class Plan:
    """What is printed."""

    stages: list[Stage]
    memory: list[Memory]
    disk: list[Disk]
    judge: list[Judged]
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
