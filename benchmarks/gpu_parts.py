"""Parts of the GPU benchmark, each in a process of its own: `python -m benchmarks.gpu_parts PART JSON`.

A part imports, prints `{"ready": true}`, waits for a line on standard input, and prints one JSON line for each figure
that it has measured: what it printed before it is killed counts. Rules of all timings: no batch is computed twice,
except where the figure says `repeated`; warm-up runs on batches of its own; a pair's lengths are drawn anew, so that
every batch has new shapes; medians of the steps.
"""

from __future__ import annotations

import json
import os
import re
import resource
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.contestant import BETA, CLIP, RATE, dpo_trainer
from benchmarks.setting import LLAMA_8B, Shape, build, draw_pairs, settings_of
from sams.policy.policy import Policy, weights_of
from sams.runtime.gpus import peak_flops

WARM_UP = 3
LENGTH_JITTER = 0.05


@dataclass(frozen=True)
class Size:
    """Model and batch of a contestant.

    Attributes:
        layers: blocks of the model.
        pairs: pairs of a batch.
        repeats: measured steps.
        scale: factor of the HH lengths.
        shape: sizes of the model; `layers` replaces its own.
    """

    layers: int
    pairs: int
    repeats: int
    scale: float
    shape: Shape

    @property
    def model(self) -> Shape:
        """Sizes of the model with these layers."""
        return replace(self.shape, layers=self.layers)


SMALL_SHAPE = Shape(64, 2, 4, 2, 128, 512)
SIZES = {
    "cuda": {
        "small": Size(4, 8, 10, 2.0, LLAMA_8B),
        "large": Size(8, 32, 8, 2.0, LLAMA_8B),
        "lora": Size(32, 8, 5, 2.0, LLAMA_8B),
    },
    "cpu": {
        "small": Size(2, 4, 3, 0.3, SMALL_SHAPE),
        "large": Size(3, 8, 2, 0.3, SMALL_SHAPE),
        "lora": Size(3, 4, 2, 0.3, SMALL_SHAPE),
    },
}


def say(**figures: Any) -> None:
    """Print figures as a JSON line."""
    print(json.dumps(figures), file=ANSWERS, flush=True)


ANSWERS: Any = sys.stdout


class Batches:
    """Batches that are given out once: `fresh()` returns the items of the next one."""

    def __init__(self, size: Size, count: int) -> None:
        self.size = size
        self.left = count
        self.data = draw_pairs(
            count,
            size.pairs,
            vocabulary=size.shape.vocabulary,
            scale=size.scale,
            jitter=LENGTH_JITTER,
        )

    def fresh(self) -> list[int]:
        """Return the items of a batch that no one has had."""
        self.left -= 1
        assert self.left >= 0, "more batches are needed"
        return list(range(self.left * self.size.pairs, (self.left + 1) * self.size.pairs))


# --- contestants ----------------------------------------------------------------------------------


class Ours:
    """Our trainer: the functions that the training loop calls, in its order.

    The reference's log-probs are those of a uniform model, so that no pass sees a batch before its step.
    """

    def __init__(
        self,
        size: Size,
        batches: Batches,
        device: str,
        *,
        precision: str,
        selects: bool = False,
        lora: dict[str, Any] | None = None,
        checkpointing: bool = False,
    ) -> None:
        import math

        from sams.losses.table import build_loss
        from sams.runtime.costs import Costs
        from sams.study.settings import Preference
        from sams.training.distribution import Workers
        from sams.training.loading import wrap
        from sams.training.passes import Passes
        from sams.training.tasks.preference import PreferenceTask
        from sams.training.tuning import tune
        from sams.training.updates import AdamWStep

        self.size = size
        self.workers = Workers(
            device=device, strategy="ddp", precision=precision, threads=1, timeout_minutes=5
        )
        self.training = Preference.model_validate(
            {
                "batch_size": size.pairs,
                "micro_batch_size": size.pairs,
                "scoring_micro_batch_size": size.pairs,
                "learning_rate": RATE,
                "max_grad_norm": CLIP,
                "beta": BETA,
                "lora": lora,
            }
        )
        settings = settings_of(size.model, precision=precision)
        settings = settings.model_copy(update={"activation_checkpointing": checkpointing})
        loss = build_loss("sigmoid", beta=BETA, settings={}, sft_weight=0.0)

        def task_of(data: dict[str, list[Any]]) -> PreferenceTask:
            nats = math.log(size.shape.vocabulary)
            sides = (data["chosen_ids"], data["rejected_ids"])
            uniform = zip(*([-nats * len(ids) for ids in side] for side in sides), strict=True)
            return PreferenceTask(data, loss=loss, reference=dict(zip(data["id"], uniform, strict=True)))

        self.task = task_of(batches.data)
        dtype = torch.float32 if lora is None else getattr(torch, precision)
        model = build(size.model, 0, str(self.workers.device), dtype=dtype)
        if self.training.lora is not None and self.training.lora.load_in_4bit:
            from sams.policy.quantised import quantise

            quantise(model, self.workers.device)
        self.policy = wrap(model, settings, self.workers, self.training)
        self.update = AdamWStep(self.policy, self.training, self.workers, steps=1000)
        # Layout and kernel are tried on pairs of their own.
        trial = draw_pairs(1, 4, seed=1, vocabulary=size.shape.vocabulary, scale=size.scale)
        self.tuning = tune(
            self.policy,
            task_of(trial),
            self.workers,
            settings,
            micro_batch=size.pairs,
            scoring_micro_batch=size.pairs,
            items=size.pairs,
            scored_items=size.pairs,
        )
        self.folder = tempfile.TemporaryDirectory()
        body, head = weights_of(self.policy)
        self.costs = Costs(Path(self.folder.name) / "costs.jsonl", self.workers, body, head)
        self.passes = Passes(self.policy, self.workers, self.tuning, self.costs)
        self.selecting = self._scheduler(model) if selects else None
        self.number = 0

    def _scheduler(self, model: Any) -> Any:
        from sams.scheduling.pool import ReplayPool
        from sams.scheduling.scheduler import Scheduler, context_width
        from sams.scheduling.selection import Selection
        from sams.scheduling.selectors.base import Setup
        from sams.scheduling.selectors.sams import Sams
        from sams.study.settings import Scheduler as Settings
        from sams.training.loop import Selecting

        settings = Settings()
        pool = ReplayPool(
            Path(self.folder.name) / "replay",
            max_arms=64 * self.size.pairs,
            max_bytes=10**9,
            generator=torch.Generator().manual_seed(0),
        )
        scheduler = Scheduler(
            settings,
            layers=self.size.layers,
            width=context_width(model.config.hidden_size, settings.merge),
            seed=0,
            device=self.workers.device,
            train_encoder=False,
            pool=pool,
        )
        selector = Sams(Setup(), scheduler, gamma=0.5, trained=False)
        return Selecting(selector, self.task, Selection(self.size.pairs, 1000, (0.5,)), per_epoch=1000)

    def prepare(self, compiled: bool) -> None:
        """Set whether blocks are compiled."""
        self.tuning.compiled = compiled
        self.tuning.apply(self.policy)

    def step(self, items: list[int]) -> float:
        """Take a training step; return the FLOPs that the cost log counts for it."""
        from sams.training.batches import balanced
        from sams.training.loop import select
        from sams.training.updates import Step

        self.number += 1
        step = Step(self.number, items, None, chosen=list(range(len(items))))
        if self.selecting is not None:
            select(self.selecting, self.passes, step)
            # A fresh scheduler prefers long or short pairs by chance. The step trains on a proportional share of
            # the tokens instead, after all of the scheduler's work.
            lengths = [self.task.packed_lengths[item] for item in items]
            step.chosen = balanced(range(len(items)), lengths, len(items) // len(step.chosen))[0]
        self.update(self.passes, self.task, step)
        tally, self.costs.tally = self.costs.tally, type(self.costs.tally)()
        return 2.0 * (self.costs.body * tally.units + self.costs.head * tally.predicted)


class Padded:
    """DPO in a few lines of transformers, as TRL's trainer computes it where TRL cannot be installed.

    Chosen and rejected in one padded batch, float32 weights under autocast to bfloat16, logits of every position,
    the reference's log-probs given, clipping, fused AdamW. It is not TRL, and no figure names it so.
    """

    def __init__(self, size: Size, batches: Batches, device: str, *, precision: str) -> None:
        self.device = torch.device(device)
        self.data = batches.data
        self.precision = getattr(torch, precision)
        torch.set_float32_matmul_precision("high")
        self.model = build(size.model, 0, device).train()
        self.model.config.use_cache = False
        self.optimiser = torch.optim.AdamW(self.model.parameters(), lr=RATE, fused=device == "cuda")

    def step(self, items: list[int]) -> float:
        sides = [(self.data["prompt_ids"][item], self.data[name][item]) for name in SIDES for item in items]
        longest = max(len(prompt) + len(answer) for prompt, answer in sides)
        ids = torch.zeros(len(sides), longest, dtype=torch.int64)
        attention, completion = torch.zeros_like(ids), torch.zeros_like(ids)
        for row, (prompt, answer) in enumerate(sides):
            end = len(prompt) + len(answer)
            ids[row, :end] = torch.tensor([*prompt, *answer])
            attention[row, :end] = 1
            completion[row, len(prompt) : end] = 1
        ids, attention, completion = (part.to(self.device) for part in (ids, attention, completion))
        self.optimiser.zero_grad()
        with torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32):
            logits = self.model(input_ids=ids, attention_mask=attention).logits[:, :-1]
            targets = ids[:, 1:, None]
            # As TRL's `selective_log_softmax`: one row at a time in 16 bits, all together in float32.
            if logits.dtype == torch.float32:
                logps = logits.gather(2, targets)[:, :, 0] - logits.logsumexp(dim=2)
            else:
                rows = zip(logits, targets, strict=True)
                logps = torch.stack([row.log_softmax(1).gather(1, own)[:, 0] for row, own in rows])
            sums = (logps * completion[:, 1:]).sum(dim=1)
            chosen, rejected = sums.chunk(2)
            loss = -nn.functional.logsigmoid(BETA * (chosen - rejected)).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimiser.step()
        loss.item()
        return 0.0


SIDES = ("chosen_ids", "rejected_ids")


class Trl:
    """TRL's DPOTrainer: bfloat16, fused AdamW, the reference's log-probs given (it has no padding-free DPO)."""

    def __init__(self, size: Size, batches: Batches, device: str, *, precision: str) -> None:
        self.pairs = size.pairs
        model = build(size.model, 0, device)
        self.trainer, self.batches = dpo_trainer(
            model, None, batches.data, size.pairs, size.shape.vocabulary, device, precision
        )
        self.model = model
        self.optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, fused=device == "cuda")

    def step(self, items: list[int]) -> float:
        self.optimiser.zero_grad()
        inputs = self.batches[items[0] // self.pairs]
        loss = self.trainer.training_step(self.trainer.model_wrapped, dict(inputs))
        nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimiser.step()
        loss.item()
        return 0.0


# --- measuring ------------------------------------------------------------------------------------


def synchronise() -> None:
    """Wait for the GPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def graphs() -> int:
    """Return the number of graphs that torch.compile has compiled in this process."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


def peak_gib() -> float:
    """Return the peak of allocated memory, or of resident memory without a GPU."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def timed(step: Callable[[list[int]], float], items: list[int]) -> tuple[float, float]:
    """Return seconds and FLOPs of a step."""
    synchronise()
    started = time.perf_counter()
    flops = step(items)
    synchronise()
    return time.perf_counter() - started, flops


def measured(
    step: Callable[[list[int]], float], batches: Batches, size: Size, *, seconds: float
) -> tuple[dict[str, Any], list[list[int]]]:
    """Warm up and measure steps on fresh batches.

    Args:
        step: takes a step on a batch.
        batches: gives out the batches.
        size: number of pairs and of steps.
        seconds: no step begins later than this after the first; two are measured in any case.

    Returns:
        Figures, and the batches of the measured steps.
    """
    before = time.perf_counter()
    for _ in range(WARM_UP):
        timed(step, batches.fresh())
    compiled = graphs()
    warm = time.perf_counter() - before
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    taken: list[tuple[float, float]] = []
    used = []
    begun = time.perf_counter()
    for _ in range(size.repeats):
        if len(taken) >= 2 and time.perf_counter() - begun > seconds:
            break
        used.append(batches.fresh())
        taken.append(timed(step, used[-1]))
    took = median(each for each, _ in taken)
    figures: dict[str, Any] = {
        "ms": 1000 * took,
        "ms_of_each": [round(1000 * each, 1) for each, _ in taken],
        "pairs_per_s": size.pairs / took,
        "peak_gib": peak_gib(),
        "warm_up_s": warm,
        "graphs": compiled,
        "graphs_while_measuring": graphs() - compiled,
    }
    per_second = median(flops / each for each, flops in taken)
    if per_second and torch.cuda.is_available():
        figures["tflops"] = per_second / 1e12
        if peak := peak_flops(torch.cuda.get_device_name()):
            figures["mfu"] = per_second / peak
    return figures, used


CLASSES = {
    "attention": r"flash|fmha|attention|attn|sdpa|segments",
    "matrix products": r"gemm|cutlass|nvjet|cublas|xmma|wgmma|aten::(mm|addmm|bmm|baddbmm)$|mkl",
    "optimiser": r"adam",
    "clipping": r"norm_?functor|lpnorm|foreach_norm|linalg_vector_norm|binaryopscalar|foreach_mul",
    "communication": r"nccl|c10d|reduce_scatter|all_gather",
    "fused by torch.compile": r"triton|cpp_fused",
    "copies and casts": r"copy|memcpy|memset|cat|convert|fill|aten::(to|_to_copy|clone|zero_|cat|stack)$",
}
"""Kernels by name, in lower case; the first class that fits counts. All others are `elementwise and other`."""


def class_of(kernel: str) -> str:
    """Return the class of a kernel."""
    return next(
        (name for name, form in CLASSES.items() if re.search(form, kernel.lower())), "elementwise and other"
    )


def profiled(step: Callable[[list[int]], float], batches: Batches, count: int = 2) -> dict[str, Any]:
    """Return milliseconds a step by class of kernel, of `count` fresh batches, and the slowest kernels."""
    from torch.profiler import ProfilerActivity, profile

    cuda = torch.cuda.is_available()
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    begun = time.perf_counter()
    with profile(activities=kinds) as profiler:
        for _ in range(count):
            step(batches.fresh())
        synchronise()
    wall = time.perf_counter() - begun
    table: dict[str, float] = {}
    kernels: dict[str, tuple[float, int]] = {}
    for row in profiler.key_averages():
        on_device = str(row.device_type).endswith("CUDA")
        spent = row.self_device_time_total if cuda else row.self_cpu_time_total
        # On a GPU kernels count, not the host's functions that start them, nor the ranges that enclose them.
        if on_device != cuda or not spent or getattr(row, "is_user_annotation", False):
            continue
        table[class_of(row.key)] = table.get(class_of(row.key), 0.0) + spent / 1000 / count
        kernels[row.key[:120]] = (round(spent / 1000 / count, 3), row.count // count)
    slowest = sorted(kernels.items(), key=lambda item: -item[1][0])[:25]
    return {
        "ms_by_class": {name: round(spent, 2) for name, spent in sorted(table.items())},
        "ms_of_all_kernels": round(sum(table.values()), 2),
        "ms_wall": round(1000 * wall / count, 2),
        "kernels_a_step": sum(number for _, number in kernels.values()),
        "slowest": [{"kernel": name, "ms": spent, "calls": calls} for name, (spent, calls) in slowest],
    }


# --- parts ----------------------------------------------------------------------------------------


def contestant(given: dict[str, Any]) -> None:
    """Time one trainer: our own first as it is, then with compiled blocks; repeated batches, profiles."""
    size, device = SIZES[given["device"]][given["size"]], given["device"]
    modes = given["modes"]
    batches = Batches(size, len(modes) * (WARM_UP + size.repeats + 2))
    say(size=asdict(size))
    kinds: dict[str, Any] = {"hf_padded": Padded, "trl": Trl}
    if given["trainer"] in kinds:
        other = kinds[given["trainer"]](size, batches, device, precision=given["precision"])
        figures, used = measured(other.step, batches, size, seconds=given["seconds"])
        say(eager=figures | {"repeated_ms": repeated(other.step, used)})
        return
    ours = Ours(size, batches, device, precision=given["precision"], selects=given["trainer"] == "sams")
    say(rows=ours.tuning.packed or "padded", fallbacks=ours.tuning.fallbacks)
    for mode in modes:
        ours.prepare(compiled=mode == "compiled")
        figures, used = measured(ours.step, batches, size, seconds=given["seconds"])
        say(**{mode: figures})
        say(**{mode: {"repeated_ms": repeated(ours.step, used)}})
        if given["profile"]:
            say(**{mode: {"profile": profiled(ours.step, batches)}})


def repeated(step: Callable[[list[int]], float], used: list[list[int]]) -> float:
    """Return the median of steps on batches a second time, in milliseconds."""
    return 1000 * median(timed(step, items)[0] for items in used)


def lora(given: dict[str, Any]) -> None:
    """Time LoRA of rank 16 on all layers with activation checkpointing; the base in bfloat16 or in 4 bits."""
    size, device = SIZES[given["device"]]["lora"], given["device"]
    batches = Batches(size, 2 * (WARM_UP + size.repeats + 2))
    adapters = {"r": 16, "alpha": 32} | given["lora"]
    ours = Ours(size, batches, device, precision=given["precision"], lora=adapters, checkpointing=True)
    synchronise()
    loaded = torch.cuda.memory_allocated() / 2**30 if torch.cuda.is_available() else None
    say(rows=ours.tuning.packed or "padded", fallbacks=ours.tuning.fallbacks, loaded_gib=loaded)
    for mode in given["modes"]:
        ours.prepare(compiled=mode == "compiled")
        say(**{mode: measured(ours.step, batches, size, seconds=given["seconds"])[0]})


def generation(given: dict[str, Any]) -> None:
    """Greedy answers of a model of the shape of Llama 3.2 1B: new tokens a second."""
    from sams.generation.engines import TransformersEngine
    from sams.study.settings import Decoding

    cuda = given["device"] == "cuda"
    shape = Shape(2048, 16, 32, 8, 8192, 128_256) if cuda else SMALL_SHAPE
    prompts, new = (64, 128) if cuda else (4, 8)
    with tempfile.TemporaryDirectory() as folder:
        dtype = getattr(torch, given["precision"])
        build(shape, 0, given["device"], dtype=dtype).save_pretrained(folder)
        engine = TransformersEngine(
            Path(folder), given["precision"], Decoding(max_new_tokens=new), [shape.vocabulary - 1]
        )
    data = draw_pairs(
        3, prompts, vocabulary=shape.vocabulary, scale=2.0 if cuda else 0.3, jitter=LENGTH_JITTER
    )
    speeds = []
    for number in range(3):
        own = data["prompt_ids"][number * prompts : (number + 1) * prompts]
        synchronise()
        started = time.perf_counter()
        answers = engine.generate(own, 0.0, 0)
        synchronise()
        speeds.append(sum(map(len, answers)) / (time.perf_counter() - started))
    say(tokens_per_s=max(speeds[1:]), prompts=prompts, new_tokens=new)


def checks(given: dict[str, Any]) -> None:
    """Errors of bfloat16 for packed and padded rows, and capped attention by FlexAttention and by segments."""
    for part in (errors, capped):
        try:
            part(given)
        except Exception as error:
            say(**{f"{part.__name__}_error": f"{type(error).__name__}: {error}"[:2000]})


def errors(given: dict[str, Any]) -> None:
    """Compare log-probs a token and gradients in bfloat16, packed and padded, with padded rows in float32."""
    from sams.policy.attention import SEGMENTS, VARLEN
    from sams.policy.rows import pack_rows, pad_rows

    cuda = given["device"] == "cuda"
    shape = Shape(1024, 8, 16, 4, 2816, 32_000) if cuda else SMALL_SHAPE
    data = draw_pairs(1, 4, vocabulary=shape.vocabulary, scale=1.0 if cuda else 0.3)
    columns = zip(*(data[name] for name in ("prompt_ids", *SIDES)), strict=True)
    items: Any = [(prompt, [chosen, rejected]) for prompt, chosen, rejected in columns]
    device = torch.device(given["device"])

    def computed(dtype: torch.dtype, layout: str | None) -> tuple[Tensor, Tensor]:
        model = build(shape, 0, given["device"], dtype=dtype)
        # Weights that are drawn in bfloat16 are other weights.
        model.load_state_dict(build(shape, 0, given["device"]).state_dict())
        policy = Policy(model)
        policy.pack(layout)
        scores = policy((pad_rows(items) if layout is None else pack_rows(items)).to(device))
        each = scores.logps / scores.tokens
        each.sum().backward()
        gradients = [weight.grad.float().flatten() for weight in policy.parameters()]  # type: ignore[union-attr]
        return each.detach(), torch.cat(gradients)

    expected, gradient = computed(torch.float32, None)
    found = {}
    for name, layout in (("padded", None), ("packed", VARLEN if cuda else SEGMENTS)):
        logps, other = computed(torch.bfloat16, layout)
        found[name] = {
            "logp_per_token": (logps - expected).abs().max().item(),
            "gradient": ((other - gradient).norm() / gradient.norm()).item(),
        }
    say(bfloat16_errors=found)


def capped(given: dict[str, Any]) -> None:
    """Time attention of Gemma 2's shape with capped scores, forward and backward, on fresh rows."""
    from sams.policy.attention import FLEX, SEGMENTS, block_mask, flexible_attention, segment_attention
    from sams.policy.rows import pack_rows

    cuda = given["device"] == "cuda"
    heads, groups, width = (16, 8, 256) if cuda else (4, 2, 16)
    data = draw_pairs(12, 8, vocabulary=512, scale=2.0 if cuda else 0.2, jitter=LENGTH_JITTER)
    columns = [*zip(*(data[name] for name in ("prompt_ids", *SIDES)), strict=True)]
    device = torch.device(given["device"])
    dtype = torch.bfloat16 if cuda else torch.float32
    found: dict[str, Any] = {}
    for name, attention in ((FLEX, flexible_attention), (SEGMENTS, segment_attention)):
        taken, outputs = [], []
        for batch in range(6):
            own = [(prompt, [*sides]) for prompt, *sides in columns[8 * batch : 8 * batch + 8]]
            branches: Any = pack_rows(own).branches
            branches = branches.to(device)
            tokens = branches.parts.shape[1]
            torch.manual_seed(batch)
            query, key, value = (
                # FlexAttention has no backward pass on CPUs.
                torch.randn(1, count, tokens, width, device=device, dtype=dtype, requires_grad=cuda)
                for count in (heads, groups, groups)
            )
            synchronise()
            started = time.perf_counter()
            if name == FLEX:
                branches.block_masks[None] = block_mask(branches.parts, None)
            out = attention(
                nn.Module(), query, key, value, None, branches=branches, scaling=width**-0.5, softcap=50.0
            )[0]
            if cuda:
                out.float().square().sum().backward()
            synchronise()
            taken.append(time.perf_counter() - started)
            outputs.append(out.detach().float())
        found[name] = {"ms": 1000 * median(taken[3:]), "first_ms": 1000 * taken[0]}
        found.setdefault("outputs", []).append(outputs[0])
    one, other = found.pop("outputs")
    say(capped_attention=found | {"largest_difference": (one - other).abs().max().item()})


PARTS: dict[str, Callable[[dict[str, Any]], None]] = {
    "contestant": contestant,
    "lora": lora,
    "generation": generation,
    "checks": checks,
}


def lines() -> Iterator[str]:
    """Return the lines of standard input."""
    yield from sys.stdin


def main(part: str, text: str) -> None:
    """Wait for a line, then run a part; an error is a figure too."""
    global ANSWERS
    ANSWERS = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # output of libraries goes to stderr
    given = json.loads(text)
    if given["device"] == "cpu":
        torch.set_num_threads(1)
        compiled = torch.compile

        def without_code(*args: Any, backend: Any = None, **kwargs: Any) -> Any:
            """Rehearse what is traced; a C++ compiler would take most of a rehearsal's time."""
            return compiled(*args, backend="aot_eager", **kwargs)

        torch.compile = without_code  # type: ignore[assignment]
    say(ready=True)
    sys.stdin.readline()
    try:
        PARTS[part](given)
    except BaseException as error:
        say(error=f"{type(error).__name__}: {error}"[:2000], trace=traceback.format_exc()[-3000:])
        raise SystemExit(1) from None
    finally:
        ANSWERS.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
