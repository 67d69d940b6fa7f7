"""Plan a study and print it, for `sams plan`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sams.planning.data import facts_of
from sams.planning.parts import Plan
from sams.planning.plan import GIB, Planner, on_cpus, world_of
from sams.runtime.gpus import gpu_named
from sams.runtime.terminal import Readable, print_list, print_table
from sams.tables.render import MISSING, number

if TYPE_CHECKING:
    from sams.study.study import Study

DEFAULT_GPU = "H100"


def plan_study(
    study: Study,
    results: Path,
    *,
    gpu: str | None,
    gpus: int | None,
    mfu: float | None,
    pairs: int | None,
    prompt_tokens: float | None,
    response_tokens: float | None,
) -> tuple[Plan, str]:
    """Return the plan of a study and its title.

    Raises:
        UserError: the model, the number of pairs or the GPU is not known.
    """
    import torch

    torch.set_num_threads(1)
    name = gpu or (None if on_cpus(study) and gpus is None else DEFAULT_GPU)
    planner = Planner(
        study,
        facts_of(study, results, pairs=pairs, prompt_tokens=prompt_tokens, response_tokens=response_tokens),
        gpu=None if name is None else (name, gpu_named(name)),
        world=world_of(study, gpus),
        use=mfu,
        results=results,
    )
    machine = f"{planner.world} {'CPU processes' if name is None else name}, {study.launch.strategy}"
    return planner.plan(), f"{study.study}, {study.setting}, on {machine}"


def print_plan(plan: Plan, title: str) -> None:
    """Print the tables, notes and warnings of a plan."""
    total = sum(stage.gpu_hours or 0.0 for stage in plan.stages)
    rows: list[tuple[str, ...]] = [
        (
            stage.name,
            str(stage.jobs),
            number(stage.rounds or None, 0),
            number(_millions(stage.tokens), 1),
            _hours(stage.gpu_hours),
        )
        for stage in plan.stages
    ]
    jobs, tokens = sum(stage.jobs for stage in plan.stages), sum(stage.tokens for stage in plan.stages)
    rows.append(("in all", str(jobs), "", number(_millions(tokens), 1), _hours(total or None)))
    print_table(title, _readable(["jobs", "number", "rounds of one", "M tokens", "GPU-hours"], rows))
    print()

    again: dict[str, tuple[str, ...]] = {"none": (), "full": ("recomputed",)}
    cells: list[list[tuple[str, ...]]] = [
        [
            (row.stages,),
            ("yes" if row.fits else "NO",),
            (_amount(row.taken / GIB),),
            (_amount(row.policy / GIB),),
            (_amount(row.scheduler / GIB),),
            (
                row.passes + " each" * (row.sync_each and " x " in row.passes),
                *again.get(row.checkpointing, ("partly recomputed",)),
            ),
        ]
        for row in plan.memory
    ]
    heads = ["peak memory of a process, GiB", "fits", "taken", "policy", "scheduler", "micro-batches"]
    print_table("", Readable(heads, cells))
    print()

    rows = [
        (part.what, str(part.count), _amount(part.each / 1e9), _amount(part.bytes / 1e9))
        for part in plan.disk
    ]
    rows.append(("in all", "", "", _amount(sum(part.bytes for part in plan.disk) / 1e9)))
    print_table("", _readable(["disk, GB", "number", "each", "all"], rows))
    print()

    if plan.judge:
        rows = [
            (
                part.benchmark,
                number(part.calls, 0),
                number(_millions(part.tokens.prompt), 2),
                number(_millions(part.tokens.completion), 2),
                number(part.dollars, 2),
            )
            for part in plan.judge
        ]
        heads = ["judge", "calls", "M prompt tokens", "M answer tokens", "dollars"]
        print_table("", _readable(heads, rows))
        print()
    print_list([*plan.notes, *(f"Warning: {warning}" for warning in plan.warnings)])


def _readable(columns: list[str], rows: list[tuple[str, ...]]) -> Readable:
    return Readable(columns, [[(cell,) for cell in row] for row in rows])


def _millions(count: float) -> float | None:
    return count / 1e6 if count else None


def _amount(value: float) -> str:
    """Format an amount, with more decimals below 1, and a dash for 0."""
    return number(value or None, 1 if value >= 1 else 3)


def _hours(hours: float | None) -> str:
    return MISSING if hours is None else number(hours, 1)
