"""Plan a study: its jobs and their hours, memory, disk and judge calls, with warnings of what will not fit."""

from __future__ import annotations

import shutil
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from sams.judge.known import judge_warnings, published_note
from sams.judge.store import Tokens
from sams.launch.machine import gpus_here, processes
from sams.planning import work as count
from sams.planning.data import Facts
from sams.planning.memory import RESERVE, SPARE
from sams.planning.models import Sizes, config_object, sizes_of
from sams.planning.parts import Disk, Judged, Plan, Stage
from sams.planning.peaks import Memory, Peaks, together
from sams.planning.work import SchedulerCosts, Work, scheduler_costs
from sams.runtime.gpus import Gpu
from sams.scoring.benchmark import Benchmark
from sams.scoring.table import judged, scored
from sams.study.architectures import config_of
from sams.study.recipes import recipe_of
from sams.study.study import BASE_METHOD, Study
from sams.tables.render import number
from sams.training.checkpoints import KEPT
from sams.training.reference import MOST_ITEMS

if TYPE_CHECKING:
    from sams.study.settings import Decoding, MicroBatch, ModelDecoding, Preference

LONGEST_ANSWER = 1024
"""Decoding steps of a batch, which ends with its longest answer. An assumption."""
STEP_SECONDS = 0.03
"""Least time of a decoding step with transformers on any GPU. An assumption."""
SCHEDULER_RATE = 0.5
"""Rate of TensorFloat-32, which the scheduler uses, relative to bfloat16."""
GIB = 2**30


class Planner:
    """Plans one study for one kind of machine.

    Args:
        study: the study.
        facts: sizes of its data.
        gpu: name and data of the GPU; None for processes on the CPUs of this machine.
        world: number of processes of a training job, and of GPUs.
        use: share of the GPU's peak that training reaches; None uses the assumption of `gpu`.
        results: results folder, whose disk the study needs.
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
        self.rate = 0.0 if gpu is None else gpu[1].peak * self.use
        self.timed = self.gpu is not None and study.model.precision == "bfloat16"
        self.config = config_of(study.model)
        self.sharded = study.launch.strategy == "fsdp2" and world > 1
        self.seeds = len(study.seeds)
        self._schedulers: dict[str, SchedulerCosts] = {}

    @cached_property
    def sizes(self) -> Sizes:
        """Numbers of weights of the policy."""
        return sizes_of(self.config)

    @cached_property
    def peaks(self) -> Peaks:
        """Peak memory of the policy's processes."""
        return Peaks(
            self.study, self.config, self.sizes, gpu=self.gpu, world=self.world, sharded=self.sharded
        )

    @cached_property
    def packed(self) -> bool:
        """Whether the prompt of a pair is computed once."""
        return self.study.model.packing

    def plan(self) -> Plan:
        """Return the complete plan."""
        plan = Plan(self.stages(), self.memory(), self.disk(), self.judge())
        self._add_notes(plan)
        self._add_warnings(plan)
        return plan

    # --- jobs -------------------------------------------------------------------------------------

    def stages(self) -> list[Stage]:
        """Return all jobs except small ones (benchmark inputs, tables, figures)."""
        study = self.study
        sets = self.seeds if study.data.world is not None and study.data.world.per_seed else 1
        stages = [Stage("prepare_data", sets)]
        if study.trained_methods:
            stages.append(Stage("tokenise", sets))
        if study.sft is not None:
            watching = recipe_of(study, "train_sft").watching  # type: ignore[attr-defined]
            watched = None if watching is None else (watching.scheduler, watching.ratio)
            work = count.sft(study.sft, watched, self.facts)
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
        if study.samples is not None:
            asked = study.samples.prompts
            stages.append(
                self._generation("samples", study.samples.decoding, len(study.sampled_methods), asked)
            )
        for benchmark, settings in self.scored:
            if benchmark.answers:
                asked = benchmark.work(settings, study.benchmarks.judge).prompts
                asked *= getattr(settings.decoding, "samples", 1)
                answering = models + self.seeds * (
                    bool(benchmark.start)
                    and BASE_METHOD in study.started_methods
                    and BASE_METHOD not in study.methods
                )
                stages.append(self._generation(benchmark.name, settings.decoding, answering, asked))
            stages.append(Stage(f"score_{benchmark.name}", models))
        return stages

    @property
    def needs_reference(self) -> bool:
        """Whether a method needs the reference model."""
        methods = self.study.preference_methods
        return any(self.study.preference_of(method).needs_reference for method in methods)

    @property
    def pretrains(self) -> bool:
        """Whether a separate job pretrains the scheduler."""
        pretrain = self.study.pretrain
        return pretrain is not None and pretrain.policy == "frozen" and self.study.pretrains

    @property
    def scored(self) -> list[tuple[Benchmark, Any]]:
        """Benchmarks that the study scores, with their settings."""
        settings = self.study.benchmarks.scored
        return [(benchmark, settings[benchmark.name]) for benchmark in scored(self.study)]

    def _stage(self, name: str, jobs: int, work: Work, scheduler: SchedulerCosts | None = None) -> Stage:
        # Selective recomputation repeats no matrix product.
        checkpointing = self.study.model.activation_checkpointing in (True, "auto")
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
            config = config_object(self.config).get_text_config()
            self._schedulers[key] = scheduler_costs(settings, config, train_encoder=train_encoder)
        return self._schedulers[key]

    def _generation(self, name: str, decoding: Decoding | ModelDecoding, models: int, answers: int) -> Stage:
        """Return the jobs that decode so many answers of each model."""
        batches = -(-answers // decoding.batch_size)
        steps = min(LONGEST_ANSWER, decoding.max_new_tokens)
        tokens = models * answers * steps / 2
        hours = None
        if self.timed and self.gpu is not None:
            kept = self.sizes.cache * decoding.batch_size * steps / 2
            seconds = max(STEP_SECONDS, (2 * self.sizes.total + kept) / self.gpu.bandwidth)
            hours = models * batches * steps * seconds / 3600
        return Stage(f"generate_{name}", models, tokens=tokens, gpu_hours=hours)

    # --- memory -----------------------------------------------------------------------------------

    def memory(self) -> list[Memory]:
        """Return the peak memory of every stage that loads the policy."""
        study = self.study
        rows: list[Memory] = []
        costs: SchedulerCosts | None
        if study.sft is not None:
            watching = study.pretrain is not None and study.pretrain.policy == "moving"
            costs = self._scheduler("", train_encoder=True) if watching else None
            rows.append(self.peaks.trained("train_sft", study.sft, study.sft.batch_size, 1, costs))
        if self.needs_reference:
            recipe: Any = recipe_of(study, "compute_reference")
            lora = next((own.lora for own in self._preferences if recipe.load_in_4bit), None)
            rows.append(
                self.peaks.scored("compute_reference", recipe.micro_batch_size, MOST_ITEMS, 2, lora=lora)
            )
        if self.pretrains:
            assert study.pretrain is not None
            share = -(-study.pretrain.batch_size // self.world)
            micro = study.pretrain.scoring_micro_batch_size
            costs = self._scheduler("", train_encoder=True)
            rows.append(self.peaks.scored("pretrain_scheduler", micro, share, 1, costs))
        for method in study.preference_methods:
            training = study.preference_of(method)
            if method in study.selective_methods:
                rows.append(self.peaks.trained(f"train_crossfit {method}", training, training.batch_size, 2))
            largest = count.schedule(training, self.facts).largest
            costs = self._scheduler(method) if training.selector == "sams" else None
            rows.append(self.peaks.trained(method, training, largest, 2, costs))
        rows = together(rows)
        decodings = [settings.decoding for benchmark, settings in self.scored if benchmark.has_judge]
        if decodings and self.gpu is not None:
            largest_cache = max(decoding.batch_size * self._positions(decoding) for decoding in decodings)
            weights_and_cache = 2.0 * self.sizes.total + self.sizes.cache * largest_cache
            rows.append(
                self.peaks.row("generate (one GPU each)", "longest answers", "none", weights_and_cache, 0)
            )
        return rows

    def _positions(self, decoding: Decoding) -> int:
        most = self.study.data.max_prompt_length + decoding.max_new_tokens
        return min(most, self.sizes.positions or most)

    # --- disk and judge ---------------------------------------------------------------------------

    def disk(self) -> list[Disk]:
        """Return the files that the study writes."""
        study, sizes = self.study, self.sizes
        files: list[Disk] = []
        dtype = study.export.dtype
        if dtype == "auto":
            dtype = self.config.get("dtype") or self.config.get("torch_dtype") or study.model.precision
        exported = 4 if dtype == "float32" else 2
        trainings = [training for training in (study.sft, *self._preferences) if training is not None]
        # Adapters are stored without the weights that they change.
        for what, group in (
            ("weights", [training for training in trainings if training.lora is None]),
            ("adapters", [training for training in trainings if training.lora is not None]),
        ):
            each = 4.0 * max((self.peaks.trained_weights(training.lora) for training in group), default=0)
            if group:
                files.append(Disk(f"trained {what}, float32", len(group) * self.seeds, each))
            kept = sum(own.validated * own.evaluations for own in self._preferences if own in group)
            if kept:
                files.append(Disk(f"{what} of evaluations, float32", kept * self.seeds, each))
        files.append(
            Disk("exported models", len(study.exported_methods) * self.seeds, exported * sizes.total)
        )
        if study.model.path is not None and not Path(study.model.path).is_dir():
            files.append(
                Disk("the model in the hub's cache", 1 + len(self.study.finished_methods), 2.0 * sizes.total)
            )
        pair, _ = self.facts.pair(packed=True)
        tokens = (self.facts.train + self.facts.test) * pair + self.facts.sft * self.facts.example[0]
        files.append(Disk("token ids", 1, 4 * tokens))
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
        if trainings:
            each = 12.0 * max(self.peaks.trained_weights(training.lora) for training in trainings) + nets
            files.append(Disk("checkpoints of the job that runs", KEPT + 1, each, stays=False))
        if pool:
            files.append(Disk("replay pool of the job that runs", 1, 3 * pool, stays=False))
        return files

    def judge(self) -> list[Judged]:
        """Return the calls of a judge endpoint."""
        judge, models = self.study.benchmarks.judge, len(self.study.methods) * self.seeds
        parts = []
        for benchmark, settings in self.scored:
            work = benchmark.work(settings, judge)
            if work.calls and judge.kind == "openai":
                # Without calls for the start model where it is the baseline.
                free = bool(benchmark.start) and BASE_METHOD in self.study.methods
                calls = (models - self.seeds * free) * work.calls
                tokens = Tokens(calls * work.prompt_tokens, calls * work.answer_tokens)
                parts.append(Judged(benchmark.name, calls, tokens, tokens.cost(judge.prices)))
        return parts

    # --- notes and warnings-----------------------------------------------------------------------

    def _add_notes(self, plan: Plan) -> None:
        notes, facts, sizes = plan.notes, self.facts, self.sizes
        notes += [
            f"{number(facts.train, 0)} pairs, {number(facts.test, 0)} test pairs, {number(facts.sft, 0)} supervised "
            f"examples; {number(sizes.total / 1e6, 1)} million weights.",
            *facts.notes,
        ]
        if self.timed:
            notes.append(
                f"Assumed: training reaches {self.rate / 1e12:.0f} TFLOP/s of each GPU, {self.use:.0%} of its peak "
                "(--mfu), including recomputed activations. Waiting, loading, checkpoints and CPU jobs are left out."
            )
        else:
            notes.append("Hours are planned for bfloat16 on GPUs only.")
        if judged(self.study) and self.timed:
            notes.append(
                f"Assumed: a batch of answers takes {LONGEST_ANSWER} steps of {1000 * STEP_SECONDS:.0f} ms or more, "
                "and each job uses one GPU; vLLM would be faster."
            )
        unseen = f" and {RESERVE / GIB:.0f} GiB" if self.gpu is not None else ""
        room = (
            "A GPU" if self.gpu is not None else f"A process's share of this machine ({self.world} of them)"
        )
        notes.append(
            f"Memory: rows of the longest pairs, {self.study.data.max_length} tokens a side. `taken` is {SPARE} "
            f"times the tensors{unseen}, for fragmentation and memory that torch's tracker does not see. "
            f"{room} has {self.peaks.room / GIB:.1f} GiB."
        )
        if any(row.accumulated for row in plan.memory):
            notes.append(
                f"Gradients of several micro-batches are accumulated unsharded: {4 * sizes.total / GIB:.1f} GiB a "
                "process. With one micro-batch, or `launch.sync_each_micro_batch`, there are none."
            )
        if any(row.sync_each for row in plan.memory):
            notes.append(
                "Micro-batches with `each`: gradients are exchanged in every micro-batch, so none accumulate."
            )
        if self.study.model.activation_checkpointing == "auto":
            notes.append("activation_checkpointing auto: hours include recomputed activations.")
        if "auto" in self._micro_batches():
            notes.append(
                "micro_batch_size auto: the largest that fits; the trainer may choose a smaller one."
            )
        if plan.judge:
            priced = self.study.benchmarks.judge.prices is not None
            notes.append(
                "Judge tokens: four characters a token."
                + ("" if priced else " Their cost is not known: set `benchmarks.judge.prices`.")
            )
            if published := published_note(self.study.benchmarks.judged, self.study.benchmarks.judge.model):
                notes.append(f"{published} Those of another judge are not comparable.")

    def _micro_batches(self) -> list[MicroBatch]:
        return [training.micro_batch_size for training in self._preferences]

    @property
    def _preferences(self) -> list[Preference]:
        return [self.study.preference_of(method) for method in self.study.preference_methods]

    def _add_warnings(self, plan: Plan) -> None:
        warnings = plan.warnings
        if plan.judge:
            warnings += judge_warnings(self.study.benchmarks.judge)
        for row in plan.memory:
            if row.fits is False:
                warnings.append(
                    f"{row.stages} will not fit: {row.taken / GIB:.1f} GiB of {self.peaks.room / GIB:.1f} GiB "
                    f"({self._remedy(row)})."
                )
        kept = sum(part.bytes for part in plan.disk if part.stays)
        temporary = sum(part.bytes for part in plan.disk if not part.stays)
        folder = self.results if self.results.is_dir() else Path()
        free = shutil.disk_usage(folder).free
        if free < kept + temporary:
            warnings.append(
                f"The disk here has {free / 1e9:.0f} GB free; the study takes {kept / 1e9:.0f} GB, and "
                f"{temporary / 1e9:.0f} GB more while a job runs."
            )
        host, here = self.host_bytes, psutil.virtual_memory().total
        if self.gpu is not None and here < host:
            warnings.append(
                f"This machine has {here / 1e9:.0f} GB of memory; {self.world} processes that each load all weights, "
                f"before they go to the GPUs, take {host / 1e9:.0f} GB."
            )
        gpus = gpus_here()
        nodes = self.study.launch.nodes
        if self.gpu is not None and gpus * nodes < self.world:
            where = f" on {nodes} nodes" if nodes > 1 else ""
            warnings.append(f"This machine has {gpus or 'no'} GPUs; the study takes {self.world}{where}.")

    @property
    def host_bytes(self) -> float:
        """Host memory of a starting job in bytes, without shards, which are read a tensor at a time."""
        study = self.study
        trainings = [training for training in (study.sft, *self._preferences) if training is not None]
        fresh = study.sft is not None and study.model.path is None
        # All weights are loaded in the type in which they stay.
        loaded = [
            self.peaks.bytes if training.lora is not None else 4
            for training in trainings
            if not self.sharded or training.lora is not None or (fresh and training is study.sft)
        ]
        return float(max(loaded, default=0) * self.sizes.total * self.world)

    def _remedy(self, row: Memory) -> str:
        if not self.sharded and self.world > 1:
            return "launch.strategy: fsdp2"
        if row.accumulated:
            return "launch.sync_each_micro_batch: true"
        if row.checkpointing == "none" and "scoring" not in row.passes:
            return "model.activation_checkpointing: true"
        return "smaller micro-batches, more GPUs, or a lower data.max_length"


def world_of(study: Study, gpus: int | None) -> int:
    """Return the number of processes of a training job: given, or of the study on this machine."""
    return gpus or study.launch.nodes * processes(study.launch, gpus_here())


def on_cpus(study: Study) -> bool:
    """Return whether the study would run on CPUs on this machine."""
    launch = study.launch
    return launch.device == "cpu" or (launch.nproc_per_node == "auto" and not gpus_here())
