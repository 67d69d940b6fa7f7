"""The two passes over a batch: scoring without gradients, and the gradient of a mean loss."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from sams.policy.policy import Scores, bare
from sams.policy.rows import pack_rows, pad_rows
from sams.runtime.costs import Tally
from sams.runtime.faults import suggesting
from sams.runtime.progress import Progress
from sams.training.batches import deal
from sams.training.distribution import Workers
from sams.training.tasks import Items, Scored, Task


def score(
    policy: nn.Module,
    task: Scored,
    items: list[int],
    workers: Workers,
    micro_batch: int,
    *,
    contexts: bool = False,
    tally: Tally | None = None,
    what: str = "",
) -> tuple[Items, Tensor | None]:
    """Score items without gradients, each process its share; tells how far `what` is, if it is named.

    Returns:
        What the task reports of each item, [n] each; and contexts [n, sequences, layers, width] if asked
        for. Both in the order of `items` and the same on every process.
    """
    collected = Collected(len(items))
    smaller = f"set scoring_micro_batch_size: {max(1, micro_batch // 2)} (now {micro_batch})"
    features: Tensor | None = None
    with torch.no_grad(), suggesting(smaller):
        batches = _micro_batches(policy, task, items, workers, micro_batch, contexts, tally)
        course = Progress(what, len(items), "items") if what and workers.is_main else None
        for places, scores, found in batches:
            collected.add(places, found)
            if course is not None:
                course.add(min(len(places) * workers.world, course.left))
            if scores.contexts is not None:
                part = scores.contexts.unflatten(0, (-1, max(1, len(places)))).transpose(0, 1)
                if features is None:
                    features = part.new_zeros(len(items), *part.shape[1:])
                if places:
                    features[places] = part
    # Exchanged in the policy's compute type, half the bytes in bfloat16; the scheduler computes in float32.
    return collected.gather(workers), None if features is None else workers.sum(features).float()


def accumulate_gradient(
    policy: nn.Module,
    task: Task,
    items: list[int],
    workers: Workers,
    micro_batch: int,
    *,
    tally: Tally | None = None,
) -> Items:
    """Leave in the policy the gradient of the weighted mean loss over all items, whoever holds them.

    Returns:
        What the task reports of each item, [n] each, in the order of `items`, the same on every process.
    """
    total = sum(task.weights[item] for item in items)
    collected = Collected(len(items))
    for places, _, found in _micro_batches(policy, task, items, workers, micro_batch, False, tally):
        weights = torch.tensor([task.weights[items[place]] for place in places] or [0], device=workers.device)
        # The processes' gradients are averaged, and the mean is over all items: hence the factor.
        loss = (found["loss"] * weights).sum() * (workers.world / total)
        workers.accelerator.backward(loss)
        collected.add(places, found)
    return collected.gather(workers)


def _micro_batches(
    policy: nn.Module,
    task: Scored,
    items: list[int],
    workers: Workers,
    micro_batch: int,
    contexts: bool,
    tally: Tally | None,
) -> Iterator[tuple[list[int], Scores, Items]]:
    """Run this process's micro-batches: yields (places in `items`, scores, the task's items)."""
    packed = bare(policy).packed is not None
    lengths = task.packed_lengths if packed else task.lengths
    hands = deal([lengths[item] for item in items], workers.world, micro_batch, packed=packed)
    kind = "training" if torch.is_grad_enabled() else "scoring"
    for number, places in enumerate(hands[workers.rank], start=1):
        workers.watch.at(f"{kind} pass, micro-batch {number} of {len(hands[workers.rank])}")
        workers.exchange_gradients(policy, number == len(hands[workers.rank]))
        # An empty micro-batch still takes part in the collective calls: it runs the first item at weight 0.
        mine = [items[place] for place in places] or items[:1]
        sequences = task.sequences(mine)
        rows = pack_rows(sequences) if packed else pad_rows(sequences)
        if tally is not None:
            tally.add(rows.tokens, rows.input_ids.numel(), len(rows.answers), trained=torch.is_grad_enabled())
        with workers.accelerator.autocast():
            scores: Scores = policy(rows.to(workers.device), contexts)
        yield places, scores, task.items(scores, mine)


class Collected:
    """Values of n items that the processes hold in parts."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.values: dict[str, Tensor] = {}

    def add(self, places: list[int], items: Items) -> None:
        """Take the values of the items at these places."""
        for name, values in items.items():
            whole = self.values.setdefault(name, torch.zeros(self.n, device=values.device))
            if places:
                whole[places] = values.detach().float()

    def gather(self, workers: Workers) -> Items:
        """All n values of each name, on the CPU of every process."""
        names = list(self.values)
        whole = workers.sum(torch.stack([self.values[name] for name in names])).cpu()
        return dict(zip(names, whole, strict=True))
