"""The training loop of every stage: SFT, scheduler pretraining and preference optimisation."""

from __future__ import annotations

import logging
import math
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sams.policy.policy import weights_of
from sams.runtime.costs import Costs
from sams.runtime.errors import UserError
from sams.runtime.processes import EXIT_INTERRUPTED, STOP_SIGNALS
from sams.runtime.progress import progress
from sams.scheduling.selectors.base import Choice, checked
from sams.training.batches import Batches
from sams.training.distribution import seeded
from sams.training.gates import refuse_non_finite
from sams.training.job import COSTS, TrainingJob, seconds_since_start
from sams.training.passes import Passes
from sams.training.tasks.base import Items, Selectable, Task
from sams.training.tuning import Tuning, tune
from sams.training.updates import Step, Update

if TYPE_CHECKING:
    from sams.scheduling.selection import Selection
    from sams.scheduling.selectors.base import Selector
    from sams.training.pairs import PairLog

log = logging.getLogger(__name__)

FOLLOWED_TIMES = 20
CHECK_REPLICAS_EVERY = 100


@dataclass
class Selecting:
    """Selection in a run.

    Attributes:
        selector: chooses the items.
        task: the items.
        selection: number of items of each round.
        per_epoch: rounds of an epoch.
        counts: how often each item was seen and trained on; empty unless the selector needs counts.
    """

    selector: Selector
    task: Selectable
    selection: Selection
    per_epoch: int
    counts: dict[str, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.selector.needs_counts:
            pairs = len(self.task.ids)
            self.counts = {name: torch.zeros(pairs, dtype=torch.int32) for name in ("seen", "trained")}

    def count(self, step: Step) -> None:
        """Count the pairs of a step, after its update."""
        for name, items in (("seen", step.batch), ("trained", step.trained)):
            if self.counts:
                self.counts[name][items] += 1


@dataclass
class Reports:
    """Evaluations during a run, items whose losses are followed, and the record of the pairs.

    Attributes:
        test: task that is evaluated during the run and at its end; None for no evaluation.
        evaluated: called with the step after each evaluation, to save the weights that were evaluated.
        followed: number of items, drawn once, whose losses are logged through the run.
        pairs: record of all pairs that the policy sees; None on all processes but one, and in other stages.
    """

    test: Task | None = None
    evaluated: Callable[[int], None] | None = None
    followed: int = 0
    pairs: PairLog | None = None


def train(
    job: TrainingJob,
    policy: nn.Module,
    task: Task,
    batches: Batches,
    update: Update,
    *,
    selecting: Selecting | None = None,
    reports: Reports | None = None,
    gate: Callable[[list[int], Items], None] | None = None,
) -> tuple[dict[str, Any], Items]:
    """Run the steps of a training job that its checkpoints do not have yet.

    Args:
        job: settings, processes, checkpoints, metric log.
        policy: wrapped by the job's workers.
        task: items to learn from.
        batches: global batches of the run.
        update: updates the policy in each step.
        selecting: the selector; None chooses every item.
        reports: evaluations and followed items.
        gate: called with the first batch and its scores before the first step, never after a resume; raises to stop
            the run.

    Returns:
        Counts and costs of the run (steps, pairs_seen, pairs_trained, tokens_seen, train_seconds, ...), and the last
        evaluation, which is that of the trained policy; empty without evaluations.

    Raises:
        TrainingFailure: when a loss is not finite, on all processes together.
        SystemExit: with status 75 after a request to stop, once a checkpoint is written.
    """
    workers, watch, training = job.workers, job.workers.watch, job.settings.training
    reports = reports or Reports()
    state = resume(job, policy, task, batches, update, selecting)
    rows = state.pop("pairs", 0)
    if reports.pairs is not None:
        reports.pairs.resume(rows)
    run = job.open_run(state["log_offset"])
    costs = Costs(job.checkpoints.folder / COSTS, workers, *weights_of(policy))
    assert job.tuning is not None
    passes = Passes(policy, workers, job.tuning, costs)
    measures = Measures(passes, task, reports, batches.steps, job)
    stop_requested = note_stop_requests()

    if gate is not None and state["step"] == 0:
        _, first = next(batches.after(0))
        gate(first, passes.score(task, first)[0])

    ended = time.monotonic()
    for number, batch in with_progress(job, batches, state["step"]):
        started = time.monotonic()
        watch.step = number
        watch.at("reading the batch")
        step = Step(number, batch, passes.kl(task, batch), chosen=list(range(len(batch))))
        if selecting is not None and selecting.selection.scheduled(number):
            select(selecting, passes, step)
        items = update(passes, task, step)
        if selecting is not None:
            selecting.count(step)
        if reports.pairs is not None:
            reports.pairs.trained(step, items)

        state["step"] = number
        state["pairs_trained"] += len(step.trained)
        state["tokens_seen"] += sum(task.lengths[item] for item in batch)
        logged = number % training.log_every == 0 or number in measures.evaluate_at
        if logged:
            measures.take(step, items)
            watch.at("log")
            figures = {name: float(value) for name, value in step.metrics.items()}
            run.log(figures, step=number, pairs_seen=number * batches.size)
        if number % CHECK_REPLICAS_EVERY == 0:
            workers.refuse_drift(policy)

        state["train_seconds"] += (took := time.monotonic() - started)
        costs.step(number, seconds=took, data_seconds=started - ended, log=logged)
        if costs.steps == 1:
            log.info("first step %.1f s after the start", seconds_since_start())
        ended = time.monotonic()
        stopping = number < batches.steps and workers.any(stop_requested())
        if stopping or (number % training.checkpoint_every == 0 and number < batches.steps):
            job.checkpoints.wait()  # before the selector deletes files that only older checkpoints need
            watch.at("writing a checkpoint")
            state["log_offset"] = run.offset
            selector = {} if selecting is None else selecting.selector.state_dict()
            parts: dict[str, Any] = {
                "selector": selector,
                "counts": {} if selecting is None else selecting.counts,
                "tuning": vars(job.tuning),
                "pairs": 0 if reports.pairs is None else reports.pairs.sync(),
            }
            job.checkpoints.save(policy, update.optimiser, state | parts)
        if stopping:
            job.checkpoints.wait()
            raise SystemExit(EXIT_INTERRUPTED)

    job.checkpoints.wait()
    spent = {key: state[key] for key in ("pairs_trained", "tokens_seen", "train_seconds")}
    counts = {"steps": batches.steps, "pairs_seen": batches.steps * batches.size}
    return {**spent, **counts, **costs.summary()}, measures.evaluation


def resume(
    job: TrainingJob,
    policy: nn.Module,
    task: Task,
    batches: Batches,
    update: Update,
    selecting: Selecting | None,
) -> dict[str, Any]:
    """Load the newest checkpoint, or tune a fresh run; return the counts of the steps that are done."""
    training, watch = job.settings.training, job.workers.watch
    watch.at("reading the checkpoint")
    selector = None if selecting is None else selecting.selector
    state = job.checkpoints.restore(policy, update.optimiser, selector)
    watch.at("finding micro-batches")
    if state is not None:
        state.pop("selector", None)  # restored, or empty
        counts = state.pop("counts")
        if selecting is not None:
            selecting.counts = counts
        job.tuning = Tuning(**state.pop("tuning")).as_set(training)
    else:
        state = {"step": 0, "pairs_trained": 0, "tokens_seen": 0, "train_seconds": 0.0, "log_offset": None}
        selected = batches.size if selecting is None else selecting.selection.largest
        # Not before the optimiser exists: a forward pass would show it FSDP2's gathered weights.
        job.tuning = tune(
            policy,
            task,
            job.workers,
            job.settings.model,
            micro_batch=training.micro_batch_size,
            scoring_micro_batch=training.scoring_micro_batch_size,
            items=update.most_items(batches.size, selected),
            scored_items=batches.size,
            passes=batches.steps,
            sync_each_micro_batch=job.job.launch.sync_each_micro_batch,
            other_weights=0 if selector is None else selector.trained_weights,
        )
    job.tuning.apply(policy)
    return state


def with_progress(job: TrainingJob, batches: Batches, done: int) -> Iterator[tuple[int, list[int]]]:
    """Return the batches after `done` steps; on rank 0 they report the progress."""
    following = batches.after(done)
    if not job.workers.is_main:
        return following
    return progress(following, job.stage, batches.steps, "steps", done=done)


def select(selecting: Selecting, passes: Passes, step: Step) -> None:
    """Score the batch if needed, let the selector learn from the last step, and broadcast its choice.

    Raises:
        UserError: the selector's answer is no choice of this batch.
    """
    selector, task, workers = selecting.selector, selecting.task, passes.workers
    features = None
    if selector.needs_scores:
        contexts = selector.needs_contexts
        step.seen, features = passes.score(task, step.batch, contexts=contexts, kl=step.kl)
        refuse_non_finite(step.seen, step.batch, task, step.number)
    view = task.view(step.batch, step.seen, features)
    view.round, view.epoch = step.number, (step.number - 1) // selecting.per_epoch + 1
    if selecting.counts:
        view.seen, view.trained = (selecting.counts[name][step.batch].long() for name in ("seen", "trained"))
    if view.margin_rounding:
        step.metrics["all/rewards/margins_rounding"] = view.rounding_share()
    workers.watch.at("selection")
    step.metrics |= selector.observe(view)
    n = len(step.batch)
    answer = selector.choose(view, selecting.selection.size(step.number))
    try:
        choice = checked(answer, n, selecting.selection.size(step.number))
    except ValueError as error:
        raise UserError(str(error), where=f"selector {type(selector).__name__}, step {step.number}") from None
    # All processes use rank 0's choice: kernels may differ in the last bit from process to process.
    if workers.world > 1:
        choice = Choice.from_rows(workers.broadcast(choice.rows(n)))
    selector.accept(choice)
    step.chosen = choice.indices.tolist()
    step.choice = None if choice.is_plain else choice
    if choice.weights is not None:
        step.metrics["selected/weights_deviation"] = choice.weights.std(correction=0)
    if choice.labels is not None:
        step.metrics["selected/labels"] = choice.labels.mean()


class Measures:
    """The metrics of the logged steps, with evaluations and followed items at the steps that are due.

    Attributes:
        evaluate_at: steps after which the test task is evaluated, and that are logged in any case.
        evaluation: values of all test items at the last evaluation.
    """

    def __init__(self, passes: Passes, task: Task, reports: Reports, steps: int, job: TrainingJob) -> None:
        self.passes = passes
        self.task = task
        self.reports = reports
        self.evaluate_at = spread(steps, job.settings.training.evaluations)
        self.follow_at = spread(steps, FOLLOWED_TIMES)
        generator = seeded("followed", job.recipe["seed"])
        self.followed = torch.randperm(len(task.ids), generator=generator)[: reports.followed].tolist()
        self.evaluation: Items = {}

    def take(self, step: Step, items: Items) -> None:
        """Add the figures of a step, after its update, to its metrics."""
        metrics, task, test = step.metrics, self.task, self.reports.test
        metrics |= {**means(items), "selected/share": len(step.chosen) / len(step.batch)}
        metrics |= {f"all/{name}": value for name, value in means(step.seen).items()}
        if len(step.chosen) < len(step.batch):
            metrics |= {f"selected/{name}": value for name, value in task.traits(step.chosen_items).items()}
            metrics |= {f"all/{name}": value for name, value in task.traits(step.batch).items()}
        if self.followed and step.number in self.follow_at:
            losses = self.passes.score(task, self.followed)[0]["loss"].tolist()
            metrics |= {f"followed/{number:02d}": loss for number, loss in enumerate(losses)}
        if test is not None and step.number in self.evaluate_at:
            self.evaluation, _ = self.passes.score(test, list(range(len(test.ids))), what="evaluation")
            metrics |= {f"eval/{name}": value for name, value in means(self.evaluation).items()}
            if self.reports.pairs is not None:
                self.reports.pairs.evaluated(step.number, self.evaluation)
            if self.reports.evaluated is not None:
                self.reports.evaluated(step.number)


def spread(steps: int, times: int) -> set[int]:
    """Return `times` evenly spaced steps of a run, among them the last."""
    return {math.ceil(steps * part / times) for part in range(1, times + 1)}


def means(items: Items) -> dict[str, float]:
    """Return the mean of each named value over its items."""
    return {name: values.double().mean().item() for name, values in items.items()}


def note_stop_requests() -> Callable[[], bool]:
    """Note requests to stop instead of ending at once; return a function that tells whether one has arrived."""
    received: list[int] = []
    for number in STOP_SIGNALS:
        signal.signal(number, lambda number, _frame: received.append(number))
    return lambda: bool(received)
