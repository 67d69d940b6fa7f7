"""What the jobs of a study compute: tokens that the policy meets, arms of the scheduler, and the arithmetic of both.

A job is counted as the trainer runs it (`sams.training.loop`). Left out: finding the micro-batch, the agreement with
the reference at the start, the few pairs that are followed, padding, and attention between tokens (2 % of an 8 B
model's arithmetic at 1,024 tokens).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from sams.planning.models import Sizes
from sams.scheduling.networks import Exploitation, Exploration
from sams.scheduling.scheduler import context_width
from sams.scheduling.selection import Selection, selected
from sams.scheduling.selectors.table import SELECTORS
from sams.training.batches import count_rounds

if TYPE_CHECKING:
    from sams.planning.data import Facts
    from sams.study.settings import Preference, Pretrain, Ratio, Scheduler, Sft


@dataclass
class Work:
    """What one job computes.

    Attributes:
        rounds: global batches.
        scored: tokens of passes without gradients.
        scored_answers: those among them that meet the vocabulary.
        trained: tokens of passes with gradients.
        trained_answers: those among them that meet the vocabulary.
        arms: scored by the scheduler.
        fitted: arms that the scheduler was fitted to, as often as it was.
    """

    rounds: int = 0
    scored: float = 0.0
    scored_answers: float = 0.0
    trained: float = 0.0
    trained_answers: float = 0.0
    arms: int = 0
    fitted: int = 0

    @property
    def tokens(self) -> float:
        """Tokens that the policy meets, as often as it does."""
        return self.scored + self.trained

    def score(self, items: float, size: tuple[float, float]) -> None:
        """Count items scored; `size` is tokens and answer tokens of one."""
        self.scored += items * size[0]
        self.scored_answers += items * size[1]

    def train(self, items: float, size: tuple[float, float]) -> None:
        """Count items trained on."""
        self.trained += items * size[0]
        self.trained_answers += items * size[1]

    def flops(self, sizes: Sizes, *, checkpointing: bool) -> float:
        """Arithmetic of the policy: 2 N per token of a forward pass, twice that of a backward pass.

        The output layer counts for answer tokens only. Checkpointing runs a trained token's forward pass twice.
        """
        passes = 4 if checkpointing else 3
        body = self.scored + passes * self.trained
        return 2 * (sizes.body * body + sizes.head * (self.scored_answers + passes * self.trained_answers))


def course(training: Preference, facts: Facts) -> Selection:
    """The rounds of a method, and how many pairs each trains on."""
    share = training.preselected
    batch = training.batch_size if share is None else selected(training.batch_size, share)
    items = range(round(facts.train * (share or 1.0)))
    rounds = count_rounds(items, training, "preference.batch_size", batch)
    ratios = (1.0,) if SELECTORS[training.selector].crossfitted else training.ratios
    return Selection(batch, rounds, ratios, training.warmup_rounds, training.full_every, training.end_after)


def preference(training: Preference, facts: Facts, scheduler: Scheduler, *, packed: bool) -> Work:
    """A method's training."""
    return _loop(training, course(training, facts), facts, scheduler, packed=packed)


def crossfit(training: Preference, facts: Facts, scheduler: Scheduler, *, packed: bool) -> Work:
    """One half of a cross-fitting: plain training on half of the pairs, then the losses of the other half."""
    half = range(-(-facts.train // 2))
    rounds = count_rounds(half, training, "preference.batch_size")
    plain = training.model_copy(update={"selector": "all", "ratio": 1.0})
    work = _loop(plain, Selection(training.batch_size, rounds, (1.0,)), facts, scheduler, packed=packed)
    work.score(facts.train // 2, facts.pair(packed=packed))
    if training.needs_kl:
        work.score(facts.train // 2, facts.example)
    return work


def _loop(
    training: Preference, selection: Selection, facts: Facts, scheduler: Scheduler, *, packed: bool
) -> Work:
    work, pair, n = Work(selection.rounds), facts.pair(packed=packed), selection.batch_size
    for step in range(1, selection.rounds + 1):
        seen = selection.scheduled(step) and SELECTORS[training.selector].needs_view
        if seen:
            work.score(n, pair)
        if training.needs_kl:
            work.score(n, facts.example)
        work.train(selection.size(step), pair)
        if seen and SELECTORS[training.selector].trains_scheduler:
            _learn(work, scheduler, n, selection.size(step))
    work.score(training.evaluations * facts.test, pair)
    if training.needs_kl:
        work.score(training.evaluations * facts.test, facts.example)
    return work


def sft(training: Sft, watching: tuple[Scheduler, Ratio] | None, facts: Facts) -> Work:
    """Supervised fine-tuning, with a scheduler that learns beside it or without."""
    work = Work(count_rounds(range(facts.sft), training, "sft.batch_size"))
    for _ in range(work.rounds):
        work.train(training.batch_size, facts.example)
        if watching is not None:
            work.score(training.batch_size, facts.example)
            _learn(work, watching[0], training.batch_size, selected(training.batch_size, watching[1]))
    work.score(training.evaluations * facts.test, facts.example)
    return work


def pretrain(training: Pretrain, facts: Facts, scheduler: Scheduler) -> Work:
    """Scheduler pretraining beside a frozen policy."""
    work = Work(count_rounds(range(facts.train), training, "pretrain.batch_size"))
    for _ in range(work.rounds):
        work.score(training.batch_size, facts.example)
        _learn(work, scheduler, training.batch_size, selected(training.batch_size, training.ratio))
    return work


def reference(facts: Facts, *, mismatched: bool, packed: bool) -> Work:
    """Log-probs of all pairs."""
    work = Work()
    work.score(facts.train + facts.test, facts.pair(packed=packed))
    if mismatched:
        work.score(facts.train + facts.test, facts.example)
    return work


def _learn(work: Work, scheduler: Scheduler, n: int, chosen: int) -> None:
    work.arms += n
    work.fitted += scheduler.updates_per_round * (chosen + scheduler.replay_sample)


@dataclass(frozen=True)
class SchedulerCosts:
    """What the scheduler takes, on every process.

    Attributes:
        parameters: of both nets, the encoder's included.
        trained: of them, those with gradient and moments.
        score: FLOPs of an arm scored.
        fit: FLOPs of an arm in one fit.
        arm_bytes: of an arm in the replay pool.
    """

    parameters: int
    trained: int
    score: float
    fit: float
    arm_bytes: int

    @property
    def bytes(self) -> int:
        """Weights, and gradient and two moments of those that are trained, in float32."""
        return 4 * self.parameters + 12 * self.trained

    def flops(self, work: Work) -> float:
        """Arithmetic of a job, on each process."""
        return work.arms * self.score + work.fitted * self.fit


def scheduler_costs(settings: Scheduler, config: Any, *, train_encoder: bool) -> SchedulerCosts:
    """Count the nets for a policy of that transformers config; nothing is computed."""
    from torch.utils.flop_counter import FlopCounterMode

    layers, width = config.num_hidden_layers, context_width(config.hidden_size, settings.merge)
    with torch.device("meta"):
        exploitation = _without_values(Exploitation, settings, layers, width)
        exploration = Exploration(settings, exploitation.hidden_width)
        contexts = torch.empty(1, layers, width)
    exploitation.encoder.requires_grad_(train_encoder)
    with FlopCounterMode(display=False) as scored:
        value, hidden = exploitation(contexts)
        residual = exploration(hidden)
    with FlopCounterMode(display=False) as back:
        (value + residual).sum().backward()
    parameters = [*exploitation.parameters(), *exploration.parameters()]
    return SchedulerCosts(
        sum(parameter.numel() for parameter in parameters),
        sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        scored.get_total_flops(),
        scored.get_total_flops() + back.get_total_flops(),
        2 * (layers * width + exploitation.hidden_width + 2),
    )


def _without_values(kind: Any, *arguments: Any) -> Any:
    """Build on meta; that weights read from a file have nowhere to go is what is wanted here."""
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*copying from a non-meta parameter.*")
        return kind(*arguments)
