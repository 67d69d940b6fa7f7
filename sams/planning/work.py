"""Work of a study's jobs: tokens that pass the policy, arms of the scheduler, and the FLOPs of both.

Jobs are counted as the trainer runs them (`sams.training.loop`). Not counted: the search for the micro-batch size,
the comparison with the reference at the start, followed pairs, padding, and attention between tokens (2 % of the
FLOPs of an 8 B model at 1,024 tokens).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from sams.planning.models import Sizes
from sams.scheduling.networks import Exploitation, Exploration
from sams.scheduling.rounds import count_rounds, selection_of
from sams.scheduling.scheduler import context_width
from sams.scheduling.selection import Selection, selected

if TYPE_CHECKING:
    from sams.planning.data import Facts
    from sams.study.settings import Preference, Pretrain, Ratio, Scheduler, Sft


@dataclass
class Work:
    """Work of one job.

    Attributes:
        rounds: number of global batches.
        scored: tokens of passes without gradients.
        scored_answers: answer tokens among them, which pass the output layer.
        trained: tokens of passes with gradients.
        trained_answers: answer tokens among them.
        arms: arms that the scheduler scores.
        fitted: arms that the scheduler is fitted to, counted once for each update.
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
        """Tokens that pass the policy, counted once for each pass."""
        return self.scored + self.trained

    def score(self, items: float, size: tuple[float, float]) -> None:
        """Count scored items; `size` holds the tokens and answer tokens of one."""
        self.scored += items * size[0]
        self.scored_answers += items * size[1]

    def train(self, items: float, size: tuple[float, float]) -> None:
        """Count trained items; `size` holds the tokens and answer tokens of one."""
        self.trained += items * size[0]
        self.trained_answers += items * size[1]

    def flops(self, sizes: Sizes, *, checkpointing: bool) -> float:
        """Return the FLOPs of the policy: 2 N a token for a forward pass, 4 N for a backward pass.

        The output layer counts for answer tokens only. With checkpointing a trained token has two forward passes.
        """
        passes = 4 if checkpointing else 3
        body = self.scored + passes * self.trained
        return 2 * (sizes.body * body + sizes.head * (self.scored_answers + passes * self.trained_answers))


def schedule(training: Preference, facts: Facts) -> Selection:
    """Return the rounds of a method and the number of pairs that each trains on."""
    return selection_of(training, round(facts.train * (training.preselected or 1.0)))


def preference(training: Preference, facts: Facts, scheduler: Scheduler, *, packed: bool) -> Work:
    """Count the training of a method."""
    return _loop(training, schedule(training, facts), facts, scheduler, packed=packed)


def crossfit(training: Preference, facts: Facts, scheduler: Scheduler, *, packed: bool) -> Work:
    """Count one half of a cross-fitting: training on half of the pairs, then the losses of the other half."""
    rounds = count_rounds(-(-facts.train // 2), training, "preference.batch_size")
    plain = training.model_copy(update={"selector": "all", "selector_settings": {}, "ratio": 1.0})
    work = _loop(plain, Selection(training.batch_size, rounds, (1.0,)), facts, scheduler, packed=packed)
    work.score(facts.train // 2, facts.pair(packed=packed))
    if training.needs_kl:
        work.score(facts.train // 2, facts.example)
    return work


def _loop(
    training: Preference, selection: Selection, facts: Facts, scheduler: Scheduler, *, packed: bool
) -> Work:
    selector = training.selector_entry
    work, pair, n = Work(selection.rounds), facts.pair(packed=packed), selection.batch_size
    for step in range(1, selection.rounds + 1):
        is_scored = selection.scheduled(step) and selector.needs_scores
        if is_scored:
            work.score(n, pair)
        if training.needs_kl:
            work.score(n, facts.example)
        work.train(selection.size(step), pair)
        if is_scored and selector.trains_scheduler:
            _learn(work, scheduler, n, selection.size(step))
    work.score(training.evaluations * facts.test, pair)
    if training.needs_kl:
        work.score(training.evaluations * facts.test, facts.example)
    return work


def sft(training: Sft, watching: tuple[Scheduler, Ratio] | None, facts: Facts) -> Work:
    """Count supervised fine-tuning, with or without a scheduler that learns at the same time."""
    work = Work(count_rounds(facts.sft, training, "sft.batch_size"))
    for _ in range(work.rounds):
        work.train(training.batch_size, facts.example)
        if watching is not None:
            work.score(training.batch_size, facts.example)
            _learn(work, watching[0], training.batch_size, selected(training.batch_size, watching[1]))
    work.score(training.evaluations * facts.test, facts.example)
    return work


def pretrain(training: Pretrain, facts: Facts, scheduler: Scheduler) -> Work:
    """Count scheduler pretraining with a frozen policy."""
    work = Work(count_rounds(facts.train, training, "pretrain.batch_size"))
    for _ in range(work.rounds):
        work.score(training.batch_size, facts.example)
        _learn(work, scheduler, training.batch_size, selected(training.batch_size, training.ratio))
    return work


def reference(facts: Facts, *, mismatched: bool, packed: bool) -> Work:
    """Count the reference log-probs of all pairs."""
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
    """Memory and FLOPs of the scheduler on every process.

    Attributes:
        parameters: parameters of both networks, including the encoder.
        trained: parameters with gradients and moments.
        score: FLOPs to score an arm.
        fit: FLOPs of one update for an arm.
        arm_bytes: bytes of an arm in the replay pool.
    """

    parameters: int
    trained: int
    score: float
    fit: float
    arm_bytes: int

    @property
    def bytes(self) -> int:
        """Bytes of weights, and of gradient and two moments of the trained ones, in float32."""
        return 4 * self.parameters + 12 * self.trained

    def flops(self, work: Work) -> float:
        """Return the FLOPs of a job on each process."""
        return work.arms * self.score + work.fitted * self.fit


def scheduler_costs(settings: Scheduler, config: Any, *, train_encoder: bool) -> SchedulerCosts:
    """Count parameters and FLOPs of the networks for a policy's transformers config, on the meta device."""
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
    """Build a network on the meta device, without the warning that weights from a file are not copied."""
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*copying from a non-meta parameter.*")
        return kind(*arguments)
