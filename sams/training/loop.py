"""The training loop of every stage: SFT, scheduler pretraining and preference optimisation."""

from __future__ import annotations

import itertools
import logging
import math
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn
from tqdm import tqdm

from sams.errors import UserError
from sams.scheduling.selectors import Selector
from sams.training.batches import count_rounds, rounds
from sams.training.checkpoints import Checkpoints
from sams.training.distribution import Workers
from sams.training.passes import accumulate_gradient, score
from sams.training.tasks import Items, Task

if TYPE_CHECKING:
    from sams.config import Training

T = TypeVar("T")

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 20.0

EXIT_INTERRUPTED = 75
"""Exit status after SIGTERM: a checkpoint is written, the same command goes on."""


def train(
    policy: nn.Module,
    task: Task,
    test: Task,
    selector: Selector,
    training: Training,
    *,
    selected: int,
    merge: str,
    frozen: bool,
    seed: int,
    workers: Workers,
    checkpoints: Checkpoints,
    open_run: Callable[[int | None], Any],
) -> tuple[dict[str, Any], Items]:
    """Train the policy on what the selector chooses of each global batch.

    Args:
        policy: wrapped by `workers`.
        task: what is learned.
        test: evaluated during the run and at its end.
        selector: chooses `selected` items of each batch.
        training: batch sizes, optimiser, course.
        selected: K.
        merge: how contexts of two responses are merged for the selector.
        frozen: leave the policy as it is; only the selector learns.
        seed: of the data order.
        workers: the processes.
        checkpoints: where to resume from and to save to.
        open_run: starts the metric log, given the byte offset to resume it at, or None for a new run.

    Returns:
        What the run took (steps, pairs_seen, pairs_trained, tokens_seen, train_seconds), and the last
        evaluation of `test`, which is that of the trained policy; empty when frozen.

    Raises:
        UserError: when a loss is not finite, on all processes together.
        SystemExit: with status 75 after SIGTERM, once a checkpoint is written.
    """
    n = training.batch_size
    steps = count_rounds(len(task.ids), n, training.epochs, training.max_steps, "training.batch_size")
    evaluate_at = {
        math.ceil(steps * part / training.evaluations) for part in range(1, training.evaluations + 1)
    }
    optimiser = None if frozen else adamw(policy, training, workers)

    state = checkpoints.restore(policy, optimiser)
    if state is None:
        state = {"step": 0, "pairs_trained": 0, "tokens_seen": 0, "train_seconds": 0.0, "log_offset": None}
    else:
        selector.load_state_dict(state.pop("selector"))
    interrupted = on_sigterm()
    evaluated: Items = {}

    run = open_run(state["log_offset"])
    batches = itertools.islice(rounds(len(task.ids), n, training.epochs, seed), state["step"], steps)
    for step, batch in progress(batches, state["step"], steps, workers):
        started = time.monotonic()
        rate = learning_rate(step, steps, training)

        view = None
        if selector.needs_view:
            seen, contexts = score(
                policy,
                task,
                batch,
                workers,
                training.scoring_micro_batch_size,
                contexts=selector.needs_contexts,
            )
            view = task.view(seen, contexts, merge)
        metrics = selector.observe(view)
        places = workers.broadcast(selector.choose(view, n, selected)).tolist()
        chosen = [batch[place] for place in places]

        if optimiser is None:
            assert view is not None
            items = {name: values[places] for name, values in seen.items()}
            refuse_non_finite(items, chosen, task, step)
        else:
            optimiser.zero_grad()
            items = accumulate_gradient(policy, task, chosen, workers, training.micro_batch_size)
            refuse_non_finite(items, chosen, task, step)
            metrics["grad_norm"] = workers.clip(policy, training.max_grad_norm)
            metrics["learning_rate"] = rate
            for group in optimiser.param_groups:
                group["lr"] = rate
            optimiser.step()

        state["step"] = step
        state["pairs_trained"] += len(chosen)
        state["tokens_seen"] += sum(task.lengths[item] for item in batch)
        metrics |= means(items)
        if view is not None:
            metrics |= {f"all/{name}": value for name, value in means(seen).items()}
        if selected < n:
            metrics |= {f"selected/{name}": value for name, value in task.traits(chosen).items()}
            metrics |= {f"all/{name}": value for name, value in task.traits(batch).items()}
        if step in evaluate_at and not frozen:
            evaluated, _ = score(
                policy, test, list(range(len(test.ids))), workers, training.scoring_micro_batch_size
            )
            metrics |= {f"eval/{name}": value for name, value in means(evaluated).items()}
        if step % training.log_every == 0 or step in evaluate_at:
            run.log(metrics, step=step, pairs_seen=step * n)
        state["train_seconds"] += time.monotonic() - started

        stopping = step < steps and workers.any(interrupted())
        if stopping or (step % training.checkpoint_every == 0 and step < steps):
            state["log_offset"] = run.offset
            checkpoints.save(policy, optimiser, {**state, "selector": selector.state_dict()})
        if stopping:
            raise SystemExit(EXIT_INTERRUPTED)

    cost = {key: state[key] for key in ("pairs_trained", "tokens_seen", "train_seconds")}
    return {**cost, "steps": steps, "pairs_seen": steps * n}, evaluated


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


def refuse_non_finite(items: Items, chosen: list[int], task: Task, step: int) -> None:
    """Stop on a loss that is not finite. Every process holds all losses, so all stop together.

    Raises:
        UserError: naming the step, the items and their values.
    """
    wrong = [place for place, loss in enumerate(items["loss"].tolist()) if not math.isfinite(loss)]
    if wrong:
        named = ", ".join(f"{task.ids[chosen[place]]} ({items['loss'][place].item()})" for place in wrong[:5])
        raise UserError(
            f"the loss of {len(wrong)} of {len(chosen)} items is not finite: {named}",
            where=f"step {step}",
            remedy="look at these items, lower the learning rate, or use precision float32",
        )


def means(items: Items) -> dict[str, float]:
    """Mean of each named value over its items."""
    return {name: values.double().mean().item() for name, values in items.items()}


def on_sigterm() -> Callable[[], bool]:
    """Note SIGTERM instead of dying of it; returns whether it has come."""
    received: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: received.append(number))
    return lambda: bool(received)


def progress(batches: Iterable[T], done: int, steps: int, workers: Workers) -> Iterator[T]:
    """Pass the batches on; show a bar on a terminal, in a log file a line now and then."""
    if not workers.is_main:
        yield from batches
    elif sys.stderr.isatty():
        yield from tqdm(batches, initial=done, total=steps, unit="step")
    else:
        started = told = time.monotonic()
        for count, batch in enumerate(batches):
            now = time.monotonic()
            if now - told > SECONDS_BETWEEN_LINES:
                told, left = now, (now - started) / count * (steps - done - count)
                log.info("step %d of %d, %.0f s left", done + count, steps, left)
            yield batch
