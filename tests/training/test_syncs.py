"""A step that is not logged reads few scalars: on a GPU each makes the host wait for the device."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sams.runtime.costs import Costs
from sams.training import preference
from tests.training.test_runs import here, preference_recipe

SELECTED = 10
"""Scalars that the host reads in a round of `sams`, all from values on the CPU: B, Eq. 7, rank correlations."""


class ScalarReads(TorchDispatchMode):
    """Counts the tensors whose value the host reads; integers are lengths of rows, which the host computes itself."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        read = func is torch.ops.aten._local_scalar_dense.default
        self.count += read and args[0].dtype != torch.int64
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("selector", "most"), [("all", 0), ("sams", SELECTED)])
def test_scalars_that_a_step_without_a_log_line_reads(
    selector: str, most: int, prepared: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    after: list[int] = []
    reads, closed = ScalarReads(), Costs.step
    optimisers = {torch.optim.AdamW: torch.optim.AdamW.step, torch.optim.Adam: torch.optim.Adam.step}

    def step(costs: Costs, number: int, **figures: Any) -> None:
        closed(costs, number, **figures)
        after.append(reads.count)

    def uncounted(of: Any) -> Any:
        def update(optimiser: Any, *args: Any, **kwargs: Any) -> Any:
            # On a CPU it counts its steps on the host; on a GPU it is fused.
            before = reads.count
            of(optimiser, *args, **kwargs)
            reads.count = before

        return update

    monkeypatch.setattr(Costs, "step", step)
    for kind, of in optimisers.items():
        monkeypatch.setattr(kind, "step", uncounted(of))
    ratio = 0.5 if selector == "sams" else 1.0
    recipe = preference_recipe(selector=selector, ratio=ratio, log_every=100, checkpoint_every=100)
    with reads:
        here(
            preference, recipe, out=tmp_path / "out", checkpoints=tmp_path / "ck", **paths(prepared, selector)
        )
    *unlogged, last = (now - before for before, now in itertools.pairwise(after))
    assert len(unlogged) == 2 and max(unlogged) <= most, unlogged
    assert last > most, "the last step is logged"


def paths(prepared: dict[str, Path], selector: str) -> dict[str, Path]:
    """Inputs of the stage: the scheduler only for the selector that has one."""
    return {name: path for name, path in prepared.items() if name != "scheduler" or selector == "sams"}
