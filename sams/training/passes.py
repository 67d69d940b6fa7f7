"""The two passes over a batch: scoring without gradients, and the gradient of a mean loss."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sams.policy.policy import Scores, bare
from sams.policy.rows import pack_rows, pad_rows
from sams.runtime.costs import Costs, Tally
from sams.runtime.faults import suggesting
from sams.runtime.progress import Progress
from sams.training.batches import deal
from sams.training.distribution import Workers
from sams.training.tasks.base import Items, Scored, Task

if TYPE_CHECKING:
    from sams.scheduling.selectors.base import Choice
    from sams.training.tuning import Tuning


@dataclass
class Passes:
    """Scoring and gradient passes of a run, with its policy, processes and micro-batches, counted in its cost log."""

    policy: nn.Module
    workers: Workers
    tuning: Tuning
    costs: Costs

    def score(
        self,
        task: Scored,
        items: list[int],
        *,
        contexts: bool = False,
        kl: Tensor | None = None,
        what: str = "",
    ) -> tuple[Items, Tensor | None]:
        """Score items without gradients; see `score`."""
        return score(
            self.policy,
            task,
            items,
            self.workers,
            self.tuning.scoring_micro_batch,
            contexts=contexts,
            kl=kl,
            tally=self.costs.tally,
            what="" if sys.stderr.isatty() else what,  # a terminal shows the bar of the steps already
        )

    def gradient(
        self, task: Task, items: list[int], kl: Tensor | None, choice: Choice | None = None
    ) -> Items:
        """Add the gradient of the mean loss; see `accumulate_gradient`."""
        return accumulate_gradient(
            self.policy,
            task,
            items,
            self.workers,
            self.tuning.micro_batch,
            sync_each=self.tuning.sync_each_micro_batch,
            kl=kl,
            choice=choice,
            tally=self.costs.tally,
        )

    def kl(self, task: Scored, items: list[int]) -> Tensor | None:
        """KL term of a global batch; see `kl_term`."""
        size, tally = self.tuning.scoring_micro_batch, self.costs.tally
        return kl_term(self.policy, task, items, self.workers, size, tally=tally)


def score(
    policy: nn.Module,
    task: Scored,
    items: list[int],
    workers: Workers,
    micro_batch: int,
    *,
    contexts: bool = False,
    kl: Tensor | None = None,
    tally: Tally | None = None,
    what: str = "",
) -> tuple[Items, Tensor | None]:
    """Score items without gradients, each process its share.

    Args:
        policy: wrapped by the workers.
        task: task of the items.
        items: indices in the task.
        workers: the processes.
        micro_batch: most items of one forward pass.
        contexts: whether to return the scheduler's features too.
        kl: KL term of the batch; None estimates it on these items if the task's loss has one.
        tally: counts the tokens.
        what: name of the pass in the progress report; empty for no report.

    Returns:
        The task's values of each item, [n] each; and contexts [n, sequences, layers, width] if requested. Both in
        the order of `items` and the same on every process.
    """
    if kl is None:
        kl = kl_term(policy, task, items, workers, micro_batch, tally=tally)
    collected = Collected(len(items))
    smaller = f"set scoring_micro_batch_size: {max(1, micro_batch // 2)} (now {micro_batch})"
    features: Tensor | None = None
    with torch.no_grad(), suggesting(smaller):
        report = Progress(what, len(items), "items") if what and workers.is_main else None
        batches = _micro_batches(policy, task, items, workers, micro_batch, contexts, kl, tally)
        for positions, scores, values in batches:
            collected.add(positions, values)
            if report is not None:
                report.add(min(len(positions) * workers.world, report.left))
            if scores.contexts is not None:
                part = scores.contexts.unflatten(0, (-1, max(1, len(positions)))).transpose(0, 1)
                if features is None:
                    features = part.new_zeros(len(items), *part.shape[1:])
                if positions:
                    features[positions] = part
    # Exchanged in the policy's compute type, half the bytes in bfloat16; the scheduler computes in float32.
    return collected.gather(workers), None if features is None else workers.sum(features).float()


def accumulate_gradient(
    policy: nn.Module,
    task: Task,
    items: list[int],
    workers: Workers,
    micro_batch: int,
    *,
    sync_each: bool = False,
    kl: Tensor | None = None,
    choice: Choice | None = None,
    tally: Tally | None = None,
) -> Items:
    """Add to the policy's gradient that of the weighted mean loss over all items of all processes.

    Args:
        policy: wrapped by the workers.
        task: task of the items.
        items: indices in the task.
        workers: the processes.
        micro_batch: most items of one forward and backward pass.
        sync_each: exchange gradients in every micro-batch under FSDP2; else in the last.
        kl: KL term of the batch; None estimates it on these items if the task's loss has one.
        choice: weights, labels and scales of beta of the items; None for the plain mean.
        tally: counts the tokens.

    Returns:
        The task's values of each item, [n] each, in the order of `items`, the same on every process.
    """
    if kl is None:
        kl = kl_term(policy, task, items, workers, micro_batch, tally=tally)
    total = sum(task.weights[item] for item in items)
    collected = Collected(len(items))
    batches = _micro_batches(policy, task, items, workers, micro_batch, False, kl, tally, sync_each, choice)
    for positions, _, values in batches:
        weights = torch.tensor([task.weights[items[at]] for at in positions] or [0], device=workers.device)
        # The processes' gradients are averaged, and the mean is over all items: hence the factor.
        loss = (values["loss"] * weights).sum() * (workers.world / total)
        workers.accelerator.backward(loss)
        collected.add(positions, values)
    return collected.gather(workers)


def kl_term(
    policy: nn.Module,
    task: Scored,
    items: list[int],
    workers: Workers,
    micro_batch: int,
    *,
    tally: Tally | None = None,
) -> Tensor | None:
    """KL term of a global batch under the current policy; None for a task whose loss has none.

    A step estimates the term once, on all n items of its batch, and gives it to both passes.
    """
    if task.kl_task is None:
        return None
    values, _ = score(policy, task.kl_task, items, workers, micro_batch, tally=tally)
    return task.kl(values, items)


def _micro_batches(
    policy: nn.Module,
    task: Scored,
    items: list[int],
    workers: Workers,
    micro_batch: int,
    contexts: bool,
    kl: Tensor | None,
    tally: Tally | None,
    sync_each: bool = False,
    choice: Choice | None = None,
) -> Iterator[tuple[list[int], Scores, Items]]:
    """Run this process's micro-batches: yields (positions in `items`, scores, the task's values)."""
    packed = bare(policy).packed is not None
    lengths = task.packed_lengths if packed else task.lengths
    mine = deal([lengths[item] for item in items], workers.world, micro_batch, packed=packed)[workers.rank]
    kind = "training" if torch.is_grad_enabled() else "scoring"
    for number, positions in enumerate(mine, start=1):
        workers.watch.at(f"{kind} pass, micro-batch {number} of {len(mine)}")
        workers.exchange_gradients(policy, number == len(mine), each=sync_each)
        # An empty micro-batch still takes part in the collective calls: it runs the first item at weight 0.
        run = [items[at] for at in positions] or items[:1]
        sequences = task.sequences(run)
        rows = pack_rows(sequences) if packed else pad_rows(sequences)
        if tally is not None:
            tally.add(rows.tokens, rows.input_ids.numel(), len(rows.answers), trained=torch.is_grad_enabled())
        scores: Scores = policy(rows.to(workers.device), contexts)
        part = None if choice is None or not positions else choice.take(positions)
        yield positions, scores, task.items(scores, run, kl, part)


class Collected:
    """Values of n items, of which each process holds a part."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.names: list[str] = []
        self.positions: list[int] = []
        self.parts: list[Tensor] = []

    def add(self, positions: list[int], items: Items) -> None:
        """Store the values of the items at these positions."""
        self.names = list(items)
        self.positions += positions
        # Without positions there is the value of an item at weight 0.
        values = torch.stack([value.detach().float() for value in items.values()])
        self.parts.append(values[:, : len(positions)])

    def gather(self, workers: Workers) -> Items:
        """All n values of each name, on the CPU of every process."""
        values = torch.cat(self.parts, dim=1)
        # Indices are copied and values are scattered once, since every call starts kernels of its own on a GPU.
        index = torch.tensor(self.positions, dtype=torch.int64).to(values.device)
        summed = workers.sum(values.new_zeros(len(values), self.n).index_copy_(1, index, values)).cpu()
        return dict(zip(self.names, summed, strict=True))
