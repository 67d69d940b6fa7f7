"""Records of a plan: jobs, disk, judge calls, and the plan with its notes."""

from __future__ import annotations

from dataclasses import dataclass, field

from sams.judge.store import Tokens
from sams.planning.peaks import Memory


@dataclass(frozen=True)
class Stage:
    """Jobs of one rule, or of one rule and method.

    Attributes:
        name: rule, and the method if each method has a job.
        jobs: number of jobs.
        rounds: rounds of one job; 0 if it has none.
        tokens: tokens that pass the policy in all jobs.
        gpu_hours: GPU-hours of all jobs; None for CPU jobs, and without a GPU to plan for.
    """

    name: str
    jobs: int
    rounds: int = 0
    tokens: float = 0.0
    gpu_hours: float | None = None


@dataclass(frozen=True)
class Disk:
    """Files of one kind: their number and bytes, and whether they stay when the job has ended."""

    what: str
    count: int
    each: float
    stays: bool = True

    @property
    def bytes(self) -> float:
        """Bytes of all files."""
        return self.count * self.each


@dataclass(frozen=True)
class Judged:
    """Judge calls of one benchmark for all models."""

    benchmark: str
    calls: int
    tokens: Tokens
    dollars: float | None


@dataclass
class Plan:
    """Plan of a study."""

    stages: list[Stage]
    memory: list[Memory]
    disk: list[Disk]
    judge: list[Judged]
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
