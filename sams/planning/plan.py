"""The plan of a study: its jobs and their hours, memory, disk and judge calls, and what will not fit."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import psutil

from sams.config import Study
from sams.launch import gpus_here, processes
from sams.model_configs import config_of
from sams.planning import work as count
from sams.planning.data import Facts
from sams.planning.gpus import Gpu
from sams.planning.memory import RESERVE, SPARE, Passes, Simulation
from sams.planning.models import Sizes, sizes_of
from sams.planning.work import SchedulerCosts, Work, scheduler_costs
from sams.recipes import recipe_of, scheduler_is_pretrained
from sams.scoring.judge_store import USUAL_ANSWER_TOKENS, Tokens
from sams.tables.render import number
from sams.training.checkpoints import KEPT
from sams.training.costs import PEAK_FLOPS
from sams.training.reference import MOST_ITEMS
from sams.training.tuning import ADAM_BYTES, MEMORY_SHARE, WAITING_BYTES

if TYPE_CHECKING:
    from sams.settings import Decoding, MicroBatch, Training

QUESTIONS = {"alpaca_eval": 805, "mt_bench": 80}
TURNS = {"alpaca_eval": 1, "mt_bench": 2}

# Tokens of a judge's prompt, four characters to one. AlpacaEval: template, instruction, baseline (3,612 characters),
# and an answer of 2,034. MT-Bench: the mean of 480 recorded judgments (3,101 characters).
JUDGE_PROMPT = {"alpaca_eval": 1410, "mt_bench": 775}
JUDGE_ANSWER = {"alpaca_eval": 1, "mt_bench": USUAL_ANSWER_TOKENS}

LONGEST_ANSWER = 1024
"""Steps of a batch of answers, which ends with its longest one. An assumption."""
STEP_SECONDS = 0.03
"""Least time of a decoding step of transformers, whatever the GPU. An assumption."""
SCHEDULER_RATE = 0.5
"""TensorFloat-32, in which the scheduler computes, against bfloat16."""
GIB = 2**30


@dataclass(frozen=True)
class Stage:
    """Jobs of one kind.

    Attributes:
        name: the rule, and the method where it has one job each.
        jobs: how many.
        rounds: of one job; 0 where there are none.
        tokens: that the policy meets, of all jobs.
        gpu_hours: of all jobs; None for CPU jobs, and where no GPU is planned for.
    """

    name: str
    jobs: int
    rounds: int = 0
    tokens: float = 0.0
    gpu_hours: float | None = None


@dataclass(frozen=True)
class Memory:
    """Peak of one process of a stage, in bytes.

    Attributes:
        stages: those of the same passes.
        passes: the largest of them: `4 x 1 pair` are four micro-batches of one.
        policy: weights, gradients, moments, activations, as torch's tracker counts them.
        scheduler: weights, gradients, moments.
        taken: with what the tracker does not see.
        fits: whether the GPU, or this machine's share for the process, holds it; None where it is not known.
        accumulated: bytes of it that are gradients waiting, unsharded, for the last micro-batch.
    """

    stages: str
    passes: str
    checkpointing: bool
    policy: float
    scheduler: float
    taken: float
    fits: bool | None
    accumulated: float = 0.0


@dataclass(frozen=True)
class Disk:
    """Bytes that stay, or that are there while a job runs."""

    what: str
    count: int
    each: float
    stays: bool = True

    @property
    def bytes(self) -> float:
        """Of all."""
        return self.count * self.each


@dataclass(frozen=True)
class Judged:
    """Calls of a judge for one benchmark, over all models."""

    benchmark: str
    calls: int
    tokens: Tokens
    dollars: float | None


@dataclass
class Plan:
    """What is printed."""

    stages: list[Stage]
    memory: list[Memory]
    disk: list[Disk]
    judge: list[Judged]
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


class Planner:
    """Plans one study for one kind of machine.

    Args:
        study: the study.
        facts: sizes of its data.
        gpu: name of the GPU; None for processes on the CPUs of this machine.
        world: processes of a training job, and GPUs there are.
        use: share of the GPU's peak that training reaches; None takes what is assumed for it.
        results: results folder, on whose disk there must be room.
    """

    def __init__(
        self,
        study: Study,
        facts: Facts,
        *,
        gpu: tuple[str, Gpu] | None,
        world: int,
        use: float | None,
        results: Path,
    ) -> None:
        self.study, self.facts, self.world, self.results = study, facts, world, results
        self.gpu = None if gpu is None else gpu[1]
        self.use = 0.0 if gpu is None else use or gpu[1].use
        self.rate = 0.0 if gpu is None else PEAK_FLOPS[gpu[0]] * self.use
        self.timed = self.gpu is not None and study.model.precision == "bfloat16"
        self.config = config_of(study.model)
        self.sharded = study.launch.strategy == "fsdp2" and world > 1
        self.seeds = len(study.seeds)
        self._peaks: dict[tuple[Passes, int | None], int] = {}
        self._schedulers: dict[str, SchedulerCosts] = {}

    @cached_property
    def sizes(self) -> Sizes:
        """Weights of the policy."""
        return sizes_of(self.config)

    @cached_property
    def packed(self) -> bool:
        """Whether a pair's prompt is computed once."""
        return self.study.model.packing

    def plan(self) -> Plan:
        """Everything."""
        made = Plan(self.stages(), self.memory(), self.disk(), self.judge())
        self._notes(made)
        self._warn(made)
        return made

    # --- jobs -------------------------------------------------------------------------------------

    def stages(self) -> list[Stage]:
        """All jobs but the small ones: inputs of the benchmarks, tables, figures."""
        study = self.study
        sets = self.seeds if study.data.world is not None and study.data.world.per_seed else 1
        stages = [Stage("prepare_data", sets)]
        if study.trained_methods:
            stages.append(Stage("tokenise", sets))
        if study.sft is not None:
            watching = recipe_of(study, "train_sft").watching  # type: ignore[attr-defined]
            told = None if watching is None else (watching.scheduler, watching.ratio)
            work = count.sft(study.sft, told, self.facts)
            stages.append(self._stage("train_sft", self.seeds, work, self._scheduler("", train_encoder=True)))
        methods = study.preference_methods
        costs: SchedulerCosts | None
        if self.needs_reference:
            work = count.reference(self.facts, mismatched=study.needs_kl, packed=self.packed)
            stages.append(self._stage("compute_reference", self.seeds, work))
        if self.pretrains:
            assert study.pretrain is not None
            work = count.pretrain(study.pretrain, self.facts, study.scheduler)
            nets = self._scheduler("", train_encoder=True)
            stages.append(self._stage("pretrain_scheduler", self.seeds, work, nets))
        for method in methods:
            training, settings = study.preference_of(method), study.scheduler_of(method)
            if method in study.selective_methods:
                work = count.crossfit(training, self.facts, settings, packed=self.packed)
                stages.append(self._stage(f"train_crossfit {method}", 2 * self.seeds, work))
            work = count.preference(training, self.facts, settings, packed=self.packed)
            costs = self._scheduler(method) if training.selector == "sams" else None
            stages.append(self._stage(f"train_preference {method}", self.seeds, work, costs))
        models = len(study.exported_methods) * self.seeds
        stages.append(Stage("export_model", models))
        if study.chosen is not None:
            stages.append(Stage("assess", self.seeds))
        for name in self.benchmarks:
            stages.append(self._generation(name, getattr(study.benchmarks, name).decoding, models))
            stages.append(Stage(f"score_{name}", models))
        return stages

    @property
    def needs_reference(self) -> bool:
        """Whether a method compares with the reference model."""
        methods = self.study.preference_methods
        return any(self.study.preference_of(method).needs_reference for method in methods)

    @property
    def pretrains(self) -> bool:
        """Whether a job of its own pretrains the scheduler."""
        frozen = self.study.pretrain is not None and self.study.pretrain.policy == "frozen"
        return frozen and any(
            scheduler_is_pretrained(self.study, method) for method in self.study.preference_methods
        )

    @property
    def benchmarks(self) -> list[Literal["alpaca_eval", "mt_bench"]]:
        """Those that the study scores."""
        names: tuple[Literal["alpaca_eval", "mt_bench"], ...] = ("alpaca_eval", "mt_bench")
        return [name for name in names if getattr(self.study.benchmarks, name) is not None]

    def _stage(self, name: str, jobs: int, work: Work, scheduler: SchedulerCosts | None = None) -> Stage:
        checkpointing = self.study.model.activation_checkpointing is not False
        hours = None
        if self.timed:
            shared = work.flops(self.sizes, checkpointing=checkpointing) / self.world
            own = 0.0 if scheduler is None else scheduler.flops(work) / SCHEDULER_RATE
            hours = jobs * self.world * (shared + own) / self.rate / 3600
        return Stage(name, jobs, work.rounds, jobs * work.tokens, hours)

    def _scheduler(self, method: str, *, train_encoder: bool = False) -> SchedulerCosts:
        settings = self.study.scheduler_of(method) if method else self.study.scheduler
        key = f"{settings.model_dump_json()} {train_encoder}"
        if key not in self._schedulers:
            import transformers

            known = dict(self.config)
            config = transformers.AutoConfig.for_model(known.pop("model_type"), **known)
            self._schedulers[key] = scheduler_costs(settings, config, train_encoder=train_encoder)
        return self._schedulers[key]

    def _generation(self, name: str, decoding: Decoding, models: int) -> Stage:
        batches = -(-QUESTIONS[name] // decoding.batch_size) * TURNS[name] * decoding.samples
        steps = min(LONGEST_ANSWER, decoding.max_new_tokens)
        tokens = models * QUESTIONS[name] * TURNS[name] * decoding.samples * steps / 2
        hours = None
        if self.timed and self.gpu is not None:
            kept = self.sizes.cache * decoding.batch_size * steps / 2
            seconds = max(STEP_SECONDS, (2 * self.sizes.total + kept) / self.gpu.bandwidth)
            hours = models * batches * steps * seconds / 3600
        return Stage(f"generate_{name}", models, tokens=tokens, gpu_hours=hours)

    # --- memory -----------------------------------------------------------------------------------

    def memory(self) -> list[Memory]:
        """The largest passes of every stage that loads the policy."""
        study = self.study
        found: list[Memory] = []
        costs: SchedulerCosts | None
        if study.sft is not None:
            watching = study.pretrain is not None and study.pretrain.policy == "moving"
            costs = self._scheduler("", train_encoder=True) if watching else None
            found.append(self._trained("train_sft", study.sft, study.sft.batch_size, 1, costs))
        if self.needs_reference:
            micro = recipe_of(study, "compute_reference").micro_batch_size  # type: ignore[attr-defined]
            found.append(self._scored("compute_reference", micro, MOST_ITEMS, 2))
        if self.pretrains:
            assert study.pretrain is not None
            share = -(-study.pretrain.batch_size // self.world)
            micro = study.pretrain.scoring_micro_batch_size
            costs = self._scheduler("", train_encoder=True)
            found.append(self._scored("pretrain_scheduler", micro, share, 1, costs))
        for method in study.preference_methods:
            training = study.preference_of(method)
            if method in study.selective_methods:
                found.append(self._trained(f"train_crossfit {method}", training, training.batch_size, 2))
            largest = count.course(training, self.facts).largest
            costs = self._scheduler(method) if training.selector == "sams" else None
            found.append(self._trained(method, training, largest, 2, costs))
        found = _together(found)
        decodings = [getattr(study.benchmarks, name).decoding for name in self.benchmarks]
        if decodings and self.gpu is not None:
            largest_cache = max(decoding.batch_size * self._positions(decoding) for decoding in decodings)
            held = 2.0 * self.sizes.total + self.sizes.cache * largest_cache
            found.append(self._row("generate (one GPU each)", "longest answers", False, held, 0))
        return found

    def _positions(self, decoding: Decoding) -> int:
        return int(
            min(
                self.study.data.max_prompt_length + decoding.max_new_tokens,
                self.config["max_position_embeddings"],
            )
        )

    def _trained(
        self,
        stage: str,
        training: Training,
        items: int,
        completions: int,
        scheduler: SchedulerCosts | None = None,
    ) -> Memory:
        """The largest passes of a stage that trains on so many items of a global batch."""
        share = max(1, -(-items // self.world))
        held = 0 if scheduler is None else scheduler.bytes
        # Frozen weights have no gradients and moments; the adapters themselves are small.
        frozen = 0.0 if training.lora is None else self._state
        checkpointing = self._checkpointing(completions, scheduler, frozen)
        wanted = training.micro_batch_size
        size = self._fitting(completions, checkpointing, scheduler, frozen) if wanted == "auto" else wanted
        size = max(1, min(share, size))
        batches = -(-share // size)
        waiting = self.sharded and batches > 1 and training.lora is None
        passes = Passes(-(-share // batches), completions, 2 if waiting else 1, True, checkpointing)
        peak = self._peak(passes) - frozen
        accumulated = 4.0 * self.sizes.total if waiting else 0.0
        told = f"{batches} x {passes.items}"
        # Scoring passes meet gradients and moments too.
        scoring = training.scoring_micro_batch_size
        most = -(-training.batch_size // self.world)
        seen = Passes(most if scoring == "auto" else scoring, completions, trained=False)
        if (scored := self._peak(seen) + self._state - frozen) > peak:
            peak, told, accumulated = scored, f"scoring {seen.items}", 0.0
        return self._row(stage, told, checkpointing, peak, held, accumulated)

    @property
    def _state(self) -> float:
        """Bytes of gradients and two moments of all weights, on one process."""
        return float(ADAM_BYTES * self.sizes.total) / (self.world if self.sharded else 1)

    def _scored(
        self,
        stage: str,
        micro_batch: MicroBatch,
        most: int,
        completions: int,
        scheduler: SchedulerCosts | None = None,
    ) -> Memory:
        """A stage of scoring passes alone."""
        items = most if micro_batch == "auto" else micro_batch
        peak = self._peak(Passes(items, completions, trained=False))
        held = 0 if scheduler is None else scheduler.bytes
        return self._row(stage, f"scoring {items}", False, peak, held)

    def _row(
        self,
        stage: str,
        passes: str,
        checkpointing: bool,
        policy: float,
        scheduler: float,
        accumulated: float = 0.0,
    ) -> Memory:
        # FSDP2 shards what the GPU already holds whole.
        start = (
            4.0 * self.sizes.total * (1 + 1 / self.world) if self.sharded and "generate" not in stage else 0.0
        )
        if start > policy + scheduler:
            passes, policy, scheduler, accumulated = "before sharding", start, 0.0, 0.0
        taken = self._taken(policy + scheduler)
        return Memory(stage, passes, checkpointing, policy, scheduler, taken, taken <= self.room, accumulated)

    def _taken(self, tensors: float) -> float:
        return SPARE * tensors + (RESERVE if self.gpu is not None else 0)

    @cached_property
    def room(self) -> float:
        """Bytes of a GPU, or of a process's share of this machine."""
        return self.gpu.memory if self.gpu is not None else psutil.virtual_memory().total / self.world

    def _peak(self, passes: Passes, layers: int | None = None) -> int:
        """Peak of a process, of the model cut to so many layers."""
        if not passes.trained and passes.items > 2:  # no activation stays, so items add up
            one, two = (self._peak(replace(passes, items=items), layers) for items in (1, 2))
            return one + (passes.items - 1) * (two - one)
        if (passes, layers) not in self._peaks:
            study = self.study
            cut = {} if layers is None else {"num_hidden_layers": layers}
            simulation = Simulation(
                self.config | cut, study.model, self.world, self.sharded, study.data.max_length
            )
            self._peaks[passes, layers] = simulation.peak(passes)
        return self._peaks[passes, layers]

    def _added(self, completions: int, checkpointing: bool) -> float:
        """Bytes that one more of the longest items adds to the peak; from two and four layers, since it is linear."""
        few, more = (
            self._peak(Passes(2, completions, 1, True, checkpointing), layers)
            - self._peak(Passes(1, completions, 1, True, checkpointing), layers)
            for layers in (2, 4)
        )
        return max(1.0, few + (self.config["num_hidden_layers"] - 2) / 2 * (more - few))

    def _checkpointing(self, completions: int, scheduler: SchedulerCosts | None, frozen: float) -> bool:
        """As set; `auto`: where the longest item would not fit otherwise."""
        wanted = self.study.model.activation_checkpointing
        return wanted if wanted != "auto" else not self._fitting(completions, False, scheduler, frozen)

    def _fitting(
        self, completions: int, checkpointing: bool, scheduler: SchedulerCosts | None, frozen: float
    ) -> int:
        """The most of the longest items that fit in a micro-batch, by the rule of `sams.training.tuning`."""
        shards = self.world if self.sharded else 1
        free = self.room - (RESERVE if self.gpu is not None else 0) - 4.0 * self.sizes.total / shards
        free -= 0 if scheduler is None else scheduler.bytes
        waiting = WAITING_BYTES * self.sizes.total if self.sharded and not frozen else 0
        return int(
            MEMORY_SHARE * (free - (self._state - frozen) - waiting) / self._added(completions, checkpointing)
        )

    # --- disk and judge ---------------------------------------------------------------------------

    def disk(self) -> list[Disk]:
        """What the study writes."""
        study, sizes = self.study, self.sizes
        found: list[Disk] = []
        trained = len(study.preference_methods) + (study.sft is not None)
        exported = 2 if study.model.precision == "bfloat16" else 4
        if trained:
            found.append(Disk("trained weights, float32", trained * self.seeds, 4.0 * sizes.total))
        if kept := sum(
            own.validated * own.evaluations for own in map(study.preference_of, study.preference_methods)
        ):
            found.append(Disk("weights of evaluations, float32", kept * self.seeds, 4.0 * sizes.total))
        found.append(
            Disk("exported models", len(study.exported_methods) * self.seeds, exported * sizes.total)
        )
        if study.model.path is not None and not Path(study.model.path).is_dir():
            found.append(
                Disk("the model in the hub's cache", 1 + len(self.study.finished_methods), 2.0 * sizes.total)
            )
        pair, _ = self.facts.pair(packed=True)
        tokens = (self.facts.train + self.facts.test) * pair + self.facts.sft * self.facts.example[0]
        found.append(Disk("token ids", 1, 4 * tokens))
        sams = [
            method for method in study.preference_methods if study.preference_of(method).selector == "sams"
        ]
        nets, pool = 0.0, 0.0
        for method in sams:
            costs, settings = self._scheduler(method), study.scheduler_of(method)
            nets = max(nets, 4.0 * costs.parameters + 8.0 * costs.trained)
            training = study.preference_of(method)
            rounds = count.preference(training, self.facts, settings, packed=self.packed).rounds
            arms = min(settings.replay_rounds, rounds) * training.batch_size * max(training.ratios)
            pool = max(pool, min(settings.replay_bytes, arms * costs.arm_bytes))
        if trained:
            each = 12.0 * sizes.total + nets
            found.append(Disk("checkpoints of the job that runs", KEPT + 1, each, stays=False))
        if pool:
            found.append(Disk("replay pool of the job that runs", 1, 3 * pool, stays=False))
        return found

    def judge(self) -> list[Judged]:
        """Calls of a judge that is asked through an endpoint."""
        judge, models = self.study.benchmarks.judge, len(self.study.methods) * self.seeds
        found = []
        for name in self.benchmarks if judge.kind == "openai" else []:
            calls = models * QUESTIONS[name] * TURNS[name]
            tokens = Tokens(calls * JUDGE_PROMPT[name], calls * JUDGE_ANSWER[name])
            found.append(Judged(name, calls, tokens, tokens.cost(judge.prices)))
        return found

    # --- what is told -----------------------------------------------------------------------------

    def _notes(self, made: Plan) -> None:
        notes, facts, sizes = made.notes, self.facts, self.sizes
        notes += [
            f"{number(facts.train, 0)} pairs, {number(facts.test, 0)} test pairs, {number(facts.sft, 0)} supervised "
            f"examples; {number(sizes.total / 1e6, 1)} million weights.",
            *facts.notes,
        ]
        if self.timed:
            notes.append(
                f"Assumed: training reaches {self.rate / 1e12:.0f} TFLOP/s of each GPU, {self.use:.0%} of its peak "
                "(--mfu), recomputed activations counted. Waiting, loading, checkpoints and CPU jobs are left out."
            )
        else:
            notes.append("Time is planned for bfloat16 on GPUs only.")
        if self.benchmarks and self.timed:
            notes.append(
                f"Assumed: a batch of answers takes {LONGEST_ANSWER} steps of {1000 * STEP_SECONDS:.0f} ms or more, "
                "one GPU to a job; vLLM would be faster."
            )
        unseen = f" and {RESERVE / GIB:.0f} GiB" if self.gpu is not None else ""
        room = (
            "A GPU" if self.gpu is not None else f"A process's share of this machine ({self.world} of them)"
        )
        notes.append(
            f"Memory: rows of the longest pairs, {self.study.data.max_length} tokens a side. `taken` is {SPARE} "
            f"times the tensors{unseen}: the rest is for fragmentation and what else torch's tracker does not see. "
            f"{room} has {self.room / GIB:.1f} GiB."
        )
        if any(row.accumulated for row in made.memory):
            notes.append(
                f"Gradients of several micro-batches wait unsharded for the last one: {4 * sizes.total / GIB:.1f} "
                "GiB a process. With its whole share in one micro-batch there are none."
            )
        if self.study.model.activation_checkpointing == "auto":
            notes.append("activation_checkpointing auto: hours are those with it.")
        if "auto" in self._micro_batches():
            notes.append("micro_batch_size auto: as many as fit; the trainer may find fewer to be as fast.")
        if made.judge:
            priced = self.study.benchmarks.judge.prices is not None
            notes.append(
                "Judge tokens: four characters to one."
                + ("" if priced else " What they cost is not known: set `benchmarks.judge.prices`.")
            )

    def _micro_batches(self) -> list[MicroBatch]:
        trainings = [self.study.preference_of(method) for method in self.study.preference_methods]
        return [training.micro_batch_size for training in trainings]

    def _warn(self, made: Plan) -> None:
        warnings = made.warnings
        for row in made.memory:
            if row.fits is False:
                warnings.append(
                    f"{row.stages} will not fit: {row.taken / GIB:.1f} GiB of {self.room / GIB:.1f} GiB "
                    f"({self._remedy(row)})."
                )
        stays = sum(part.bytes for part in made.disk if part.stays)
        passing = sum(part.bytes for part in made.disk if not part.stays)
        there = self.results if self.results.is_dir() else Path()
        free = shutil.disk_usage(there).free
        if free < stays + passing:
            warnings.append(
                f"The disk here has {free / 1e9:.0f} GB free; the study takes {stays / 1e9:.0f} GB, and "
                f"{passing / 1e9:.0f} GB more while a job runs."
            )
        host, here = self.host_bytes, psutil.virtual_memory().total
        if self.gpu is not None and here < host:
            warnings.append(
                f"This machine has {here / 1e9:.0f} GB of memory; {self.world} processes that each load the weights "
                f"in float32, before they go to the GPUs, take {host / 1e9:.0f} GB."
            )
        gpus = gpus_here()
        if self.gpu is not None and gpus < self.world:
            warnings.append(f"This machine has {gpus or 'no'} GPUs; the study takes {self.world}.")

    @property
    def host_bytes(self) -> float:
        """Memory of the machine while a job starts."""
        return 4.0 * self.sizes.total * self.world

    def _remedy(self, row: Memory) -> str:
        if not self.sharded and self.world > 1:
            return "launch.strategy: fsdp2"
        if not row.checkpointing and "scoring" not in row.passes:
            return "model.activation_checkpointing: true"
        if row.accumulated:
            return "a larger micro_batch_size, so that there is one micro-batch"
        return "smaller micro-batches, more GPUs, or a lower data.max_length"


def world_of(study: Study, gpus: int | None) -> int:
    """Processes of a training job: as asked for, else as the study says, else as it would be here."""
    return gpus or processes(study.launch, gpus_here())


def on_cpus(study: Study) -> bool:
    """Whether the study would run on CPUs as it is launched here."""
    launch = study.launch
    return launch.device == "cpu" or (launch.nproc_per_node == "auto" and not gpus_here())


def _together(rows: list[Memory]) -> list[Memory]:
    """Rows that differ in their stage alone, as one."""
    grouped: dict[Any, list[str]] = {}
    for row in rows:
        key = (row.passes, row.checkpointing, row.policy, row.scheduler, row.taken, row.fits, row.accumulated)
        grouped.setdefault(key, []).append(row.stages)
    return [Memory(", ".join(names), *key) for key, names in grouped.items()]
