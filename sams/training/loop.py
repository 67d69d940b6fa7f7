"""The training loop of every stage: SFT, scheduler pretraining and preference optimisation."""

from __future__ import annotations

import itertools
import logging
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from sams.policy.policy import weights_of
from sams.runtime.costs import Costs
from sams.runtime.processes import EXIT_INTERRUPTED, STOP_SIGNALS
from sams.runtime.progress import progress
from sams.scheduling.selection import Selection
from sams.scheduling.selectors.base import Selector
from sams.training.batches import rounds
from sams.training.distribution import Workers, seeded
from sams.training.gates import refuse_non_finite
from sams.training.job import COSTS, TrainingJob, seconds_since_start
from sams.training.passes import accumulate_gradient, score
from sams.training.tasks import Items, Scored, Task
from sams.training.tuning import Tuning, tune

if TYPE_CHECKING:
    from sams.study.settings import Training

log = logging.getLogger(__name__)

FOLLOWED_TIMES = 20
CHECK_REPLICAS_EVERY = 100


def train(
    policy: nn.Module,
    task: Task,
    test: Task,
    selector: Selector,
    selection: Selection,
    training: Training,
    *,
    updates: Literal["selected", "all", "none"],
    job: TrainingJob,
    order: list[int] | None = None,
    gate: Callable[[list[int], Items], None] | None = None,
    followed: int = 0,
    keep: Callable[[int], None] | None = None,
) -> tuple[dict[str, Any], Items]:
    """Train the policy on what the selector chooses of each global batch.

    Args:
        policy: wrapped by the job's workers.
        task: what is learned.
        test: evaluated during the run and at its end.
        selector: chooses items of each batch.
        selection: how many, round by round.
        training: batch sizes, optimiser, course.
        updates: what the policy is trained on. `all` lets the selector learn beside a plain training, `none`
            beside a frozen policy.
        job: processes, checkpoints, metric log.
        order: items in a fixed order of their own, the same in each epoch; None shuffles each epoch anew.
        gate: shown what the untrained policy says of the first batch, once and never after a resume; raises to
            stop the run.
        followed: items, drawn once, whose losses are logged through the run.
        keep: called after each evaluation with its step, to keep the weights that were evaluated.

    Returns:
        What the run took (steps, pairs_seen, pairs_trained, tokens_seen, train_seconds, ...), and the last
        evaluation of `test`, which is that of the trained policy; empty when it is not updated.

    Raises:
        TrainingFailure: when a loss is not finite, on all processes together.
        SystemExit: with status 75 after a request to stop, once a checkpoint is written.
    """
    workers, checkpoints, watch = job.workers, job.checkpoints, job.workers.watch
    seed = job.recipe["seed"]
    n, steps = selection.batch_size, selection.rounds
    optimiser = None if updates == "none" else adamw(policy, training, workers)
    evaluate_at = spread(steps, training.evaluations)
    follow_at = spread(steps, FOLLOWED_TIMES)
    watched = torch.randperm(len(task.ids), generator=seeded("followed", seed))[:followed].tolist()

    watch.at("reading the checkpoint")
    state = checkpoints.restore(policy, optimiser, selector)
    watch.at("finding micro-batches")
    if state is None:
        state = {"step": 0, "pairs_trained": 0, "tokens_seen": 0, "train_seconds": 0.0, "log_offset": None}
        trained_items = 0 if optimiser is None else n if updates == "all" else selection.largest
        # Only now: a forward pass before the optimiser is made would show it FSDP2's gathered weights.
        tuning = tune(
            policy,
            task,
            workers,
            job.settings.model,
            micro_batch=training.micro_batch_size,
            scoring_micro_batch=training.scoring_micro_batch_size,
            items=trained_items,
            scored_items=n,
            other_weights=selector.trained_weights,
        )
    else:
        tuning = Tuning(**state.pop("tuning")).as_set(training)
    job.tuning = tuning
    tuning.apply(policy)
    run = job.open_run(state["log_offset"])
    costs = Costs(checkpoints.folder / COSTS, workers, *weights_of(policy))
    interrupted = on_request()
    evaluated: Items = {}

    def scored(
        scored_task: Scored, items: list[int], contexts: bool = False, what: str = ""
    ) -> tuple[Items, Tensor | None]:
        return score(
            policy,
            scored_task,
            items,
            workers,
            tuning.scoring_micro_batch,
            contexts=contexts,
            tally=costs.tally,
            what="" if sys.stderr.isatty() else what,  # the bar of the steps is there already
        )

    def figures(scored_task: Scored, items: list[int]) -> Items:
        return scored(scored_task, items)[0]

    def course() -> Iterator[tuple[int, list[int]]]:
        return rounds(len(task.ids) if order is None else order, n, training.epochs, seed)

    if gate is not None and state["step"] == 0:
        _, first = next(course())
        task.begin(first, figures)
        gate(first, figures(task, first))

    batches: Iterator[tuple[int, list[int]]] = itertools.islice(course(), state["step"], steps)
    ended = time.monotonic()
    if workers.is_main:
        batches = progress(batches, job.stage, steps, "steps", done=state["step"])
    for step, batch in batches:
        started = time.monotonic()
        metrics: dict[str, float] = {}
        watch.step = step
        watch.at("reading the batch")
        task.begin(batch, figures)

        # What the policy says of all n items, and what the selector makes of it.
        seen: Items = {}
        chosen = batch
        if selection.scheduled(step):
            view = None
            if selector.needs_view:
                seen, contexts = scored(task, batch, selector.needs_contexts)
                refuse_non_finite(seen, batch, task, step)
                view = task.view(batch, seen, contexts)
            watch.at("selection")
            metrics |= selector.observe(view)
            # Rank 0's choice holds for all: kernels may differ in the last bit from process to process.
            places = workers.broadcast(selector.choose(view, n, selection.size(step))).tolist()
            chosen = [batch[place] for place in places]

        trained = batch if updates == "all" else chosen
        if optimiser is None:
            items = {name: values[places] for name, values in seen.items()}
        else:
            rate = learning_rate(step, steps, training)
            watch.at("training pass")
            optimiser.zero_grad()
            items = accumulate_gradient(policy, task, trained, workers, tuning.micro_batch, tally=costs.tally)
            refuse_non_finite(items, trained, task, step)
            watch.at("optimiser")
            metrics |= {"grad_norm": workers.clip(policy, training.max_grad_norm), "learning_rate": rate}
            for group in optimiser.param_groups:
                group["lr"] = rate
            optimiser.step()
            state["pairs_trained"] += len(trained)

        state["step"] = step
        state["tokens_seen"] += sum(task.lengths[item] for item in batch)
        metrics |= {**means(items), "selected/share": len(chosen) / n}
        metrics |= {f"all/{name}": value for name, value in means(seen).items()}
        if len(chosen) < n:
            metrics |= {f"selected/{name}": value for name, value in task.traits(chosen).items()}
            metrics |= {f"all/{name}": value for name, value in task.traits(batch).items()}
        if watched and step in follow_at:
            task.begin(watched, figures)
            losses = figures(task, watched)["loss"].tolist()
            metrics |= {f"followed/{number:02d}": loss for number, loss in enumerate(losses)}
        if optimiser is not None and step in evaluate_at:
            whole = list(range(len(test.ids)))
            test.begin(whole, figures)
            evaluated = scored(test, whole, what="evaluation")[0]
            metrics |= {f"eval/{name}": value for name, value in means(evaluated).items()}
            if keep is not None:
                keep(step)
        logged = step % training.log_every == 0 or step in evaluate_at
        watch.at("log")
        if logged:
            run.log(metrics, step=step, pairs_seen=step * n)
        if step % CHECK_REPLICAS_EVERY == 0:
            workers.refuse_drift(policy)

        state["train_seconds"] += (took := time.monotonic() - started)
        costs.step(step, seconds=took, data_seconds=started - ended, log=logged)
        if costs.steps == 1:
            log.info("first step %.1f s after the start", seconds_since_start())
        ended = time.monotonic()
        stopping = step < steps and workers.any(interrupted())
        if stopping or (step % training.checkpoint_every == 0 and step < steps):
            watch.at("writing a checkpoint")
            state["log_offset"] = run.offset
            selector_state, tuned = selector.state_dict(), vars(tuning)
            checkpoints.save(policy, optimiser, {**state, "selector": selector_state, "tuning": tuned})
        if stopping:
            raise SystemExit(EXIT_INTERRUPTED)

    spent = {key: state[key] for key in ("pairs_trained", "tokens_seen", "train_seconds")}
    return {**spent, "steps": steps, "pairs_seen": steps * n, **costs.summary()}, evaluated


def spread(steps: int, times: int) -> set[int]:
    """Steps at which something is done so many times in a run, evenly, the last at its end."""
    return {math.ceil(steps * part / times) for part in range(1, times + 1)}


def adamw(policy: nn.Module, training: Training, workers: Workers) -> torch.optim.AdamW:
    """AdamW over the float32 master weights."""
    parameters = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    fused = workers.device.type == "cuda"
    return torch.optim.AdamW(
        parameters, lr=training.learning_rate, weight_decay=training.weight_decay, fused=fused
    )


def learning_rate(step: int, steps: int, training: Training) -> float:
    """Learning rate of a step counted from 1: linear warm-up, then constant, linear or cosine to 0."""
    warm = math.ceil(training.warmup_ratio * steps)
    if step <= warm:
        return training.learning_rate * step / warm
    left = (steps - step + 1) / (steps - warm)
    if training.schedule == "linear":
        return training.learning_rate * left
    if training.schedule == "cosine":
        return training.learning_rate * (1 - math.cos(math.pi * left)) / 2
    return training.learning_rate


def means(items: Items) -> dict[str, float]:
    """Mean of each named value over its items."""
    return {name: values.double().mean().item() for name, values in items.items()}


def on_request() -> Callable[[], bool]:
    """Note a request to stop instead of ending at once; returns whether one has come."""
    received: list[int] = []
    for number in STOP_SIGNALS:
        signal.signal(number, lambda number, _frame: received.append(number))
    return lambda: bool(received)
