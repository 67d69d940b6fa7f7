"""Contestant of the step benchmark: a process that takes a training step on each request.

    python -m benchmarks.contestant '{"trainer": "sams", ...}'

Reads the number of a batch from each line, takes a step on that batch, and prints one JSON line. A step clears the
gradients, runs the passes, clips, and updates with AdamW. If memory is measured, the step ends before AdamW.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import nn

from benchmarks.setting import Shape, build, draw_pairs, settings_of, tokenizer

BETA = 0.1
RATE = 1e-4
CLIP = 10.0
KIB = 1024


@dataclass(frozen=True)
class Entry:
    """Settings of a contestant.

    Attributes:
        name: name in the table.
        trainer: trl, plain or sams; or `scheduled NAME`, sams.trl's trainer with this selector.
        checkpointing: whether activations are checkpointed.
        packing: whether rows are packed; not for trl.
        processes: number of processes that share a batch, 1 or 2.
        batch: pairs of a batch.
        batches: number of batches.
        micro_batch: pairs of a micro-batch; 0 for all pairs that a process has.
        ratio: K / n of `sams`.
        shape: sizes of the model.
        scale: factor of all lengths.
        memory: whether to measure memory; the step then has no update.
        gradients_kept: keep the gradients allocated between steps, so that the peak is that of activations alone.
    """

    name: str
    trainer: str
    checkpointing: bool = False
    packing: bool = True
    processes: int = 1
    batch: int = 16
    batches: int = 6
    micro_batch: int = 0
    ratio: float = 0.5
    shape: Shape = field(default_factory=Shape)
    scale: float = 1.0
    memory: bool = False
    gradients_kept: bool = False

    @classmethod
    def read(cls, text: str) -> Entry:
        values = json.loads(text)
        return cls(**{**values, "shape": Shape(**values["shape"])})

    def written(self) -> str:
        return json.dumps(asdict(self))


class Trainer(Protocol):
    """Takes steps."""

    def step(self, batch: int, update: bool) -> dict[str, float]:
        """Take a step on a batch; return the loss, and the numbers of tokens and of positions with padding."""
        ...


class Ours:
    """Our trainer: the calls of one step of the training loop, in the same order."""

    def __init__(self, entry: Entry) -> None:
        from sams.losses.table import build_loss
        from sams.runtime.costs import Tally
        from sams.training.distribution import Workers
        from sams.training.passes import score
        from sams.training.tasks.pairs import PairTask
        from sams.training.tasks.preference import PreferenceTask
        from sams.training.tuning import tune

        self.entry = entry
        self.tally = Tally()
        self.workers = Workers(
            device="cpu", strategy="ddp", precision="float32", threads=1, timeout_minutes=5
        )
        model = build(entry.shape, 0, "cpu")
        data = draw_pairs(entry.batches, entry.batch, vocabulary=entry.shape.vocabulary, scale=entry.scale)
        loss = build_loss("sigmoid", beta=BETA, settings={}, sft_weight=0.0)
        settings = settings_of(entry.shape, packing=entry.packing)
        settings = settings.model_copy(update={"activation_checkpointing": entry.checkpointing})
        share = entry.micro_batch or -(-entry.batch // self.workers.world)

        reference = self.workers.wrap(_policy(build(entry.shape, 1, "cpu")), trained=False)
        pairs = PairTask(data)
        tuned = tune(
            reference,
            pairs,
            self.workers,
            settings,
            micro_batch=1,
            scoring_micro_batch=share,
            items=0,
            scored_items=1,
        )
        values = score(
            reference, pairs, list(range(len(pairs.ids))), self.workers, tuned.scoring_micro_batch
        )[0]
        cached = dict(
            zip(pairs.ids, zip(*(part.tolist() for part in values.values()), strict=True), strict=True)
        )
        del reference

        self.task = PreferenceTask(data, loss=loss, reference=cached)
        self.policy = self.workers.wrap(_policy(model))
        self.optimiser = torch.optim.AdamW(self.policy.parameters(), lr=RATE)
        self.tuning = tune(
            self.policy,
            self.task,
            self.workers,
            settings,
            micro_batch=share,
            scoring_micro_batch=share,
            items=entry.batch,
            scored_items=entry.batch,
        )
        self.selector = self._scheduler(model) if entry.trainer == "sams" else None

    def _scheduler(self, model: Any) -> Any:
        from pathlib import Path

        from sams.scheduling.pool import ReplayPool
        from sams.scheduling.scheduler import Scheduler, context_width
        from sams.scheduling.selectors.base import Setup
        from sams.scheduling.selectors.sams import Sams
        from sams.study.settings import Scheduler as Settings

        settings = Settings()
        self.folder = tempfile.TemporaryDirectory()
        scheduler = Scheduler(
            settings,
            layers=self.entry.shape.layers,
            width=context_width(model.config.hidden_size, settings.merge),
            seed=0,
            device=self.workers.device,
            train_encoder=False,
            pool=ReplayPool(
                Path(self.folder.name) / f"replay{self.workers.rank}",
                max_arms=64 * self.entry.batch,
                max_bytes=10**9,
                generator=torch.Generator().manual_seed(0),
            ),
        )
        return Sams(Setup(), scheduler, gamma=0.5, trained=False)

    def step(self, batch: int, update: bool) -> dict[str, float]:
        from sams.scheduling.selectors.base import Choice, checked
        from sams.training.batches import balanced
        from sams.training.passes import accumulate_gradient, score

        n = self.entry.batch
        items = list(range(batch * n, (batch + 1) * n))
        chosen = items
        if self.selector is not None:
            seen, contexts = score(
                self.policy,
                self.task,
                items,
                self.workers,
                self.tuning.scoring_micro_batch,
                contexts=True,
                tally=self.tally,
            )
            view = self.task.view(items, seen, contexts)
            self.selector.observe(view)
            k = max(1, round(self.entry.ratio * n))
            choice = checked(self.selector.choose(view, k), n, k)
            self.selector.accept(Choice.from_rows(self.workers.broadcast(choice.rows(n))))
            # An untrained scheduler prefers short or long pairs by chance, which would distort every ratio. It does
            # all its work, but the step trains on pairs with a proportional share of the batch's tokens.
            chosen = balanced(items, self.task.packed_lengths, n // k)[0]
        self.optimiser.zero_grad(set_to_none=not self.entry.gradients_kept)
        values = accumulate_gradient(
            self.policy, self.task, chosen, self.workers, self.tuning.micro_batch, tally=self.tally
        )
        if update:
            self.workers.clip(self.policy, CLIP, self.optimiser)
            self.optimiser.step()
        tally, self.tally = self.tally, type(self.tally)()
        return {
            "loss": values["loss"].mean().item(),
            "tokens": float(tally.tokens),
            "positions": float(tally.positions),
        }

    def tokens_seen(self, batch: int) -> int:
        """Tokens of the batch as TRL counts them: each prompt twice."""
        n = self.entry.batch
        return sum(self.task.lengths[batch * n : (batch + 1) * n])


def _policy(model: Any) -> Any:
    from sams.policy.policy import Policy

    return Policy(model)


def dpo_trainer(
    model: Any,
    reference: Any,
    data: dict[str, list[Any]],
    batch: int,
    vocabulary: int,
    device: str,
    precision: str,
    *,
    checkpointing: bool = False,
    kind: Any = None,
    config: Any = None,
    **settings: Any,
) -> tuple[Any, list[Any]]:
    """Return TRL's DPOTrainer for these pairs, ready for `training_step`, and its batches.

    Args:
        model: the policy, in float32.
        reference: the reference, whose log-probs TRL computes once; None for those of a uniform model, without any
            pass over the pairs.
        data: pairs from `draw_pairs`.
        batch: pairs of a batch.
        vocabulary: number of token ids.
        device: cpu or cuda.
        precision: float32, or bfloat16 by autocast with float32 master weights.
        checkpointing: whether activations are checkpointed.
        kind, config: classes of the trainer and of its settings, if not TRL's.
        settings: further settings.
    """
    import math

    import datasets
    import trl

    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    datasets.disable_progress_bars()

    class Quiet(kind or trl.DPOTrainer):  # type: ignore[misc]
        def _send_telemetry(self) -> None:
            """Send no telemetry."""

        def _precompute_ref_logps(self, dataset: Any, *others: Any) -> Any:
            if reference is not None:
                return super()._precompute_ref_logps(dataset, *others)
            for side in ("chosen", "rejected"):
                logps = [-math.log(vocabulary) * len(ids) for ids in data[f"{side}_ids"]]
                dataset = dataset.add_column(f"ref_{side}_logps", logps)
            return dataset

    words = tokenizer(vocabulary)
    convert = words.convert_ids_to_tokens
    texts = {"prompt": [" ".join(convert(ids)) for ids in data["prompt_ids"]]} | {
        side: ["".join(f" {word}" for word in convert(ids[:-1])) for ids in data[f"{side}_ids"]]
        for side in ("chosen", "rejected")
    }
    with tempfile.TemporaryDirectory() as folder:
        trainer: Any = Quiet(
            model=model,
            ref_model=reference,
            args=(config or trl.DPOConfig)(
                output_dir=folder,
                per_device_train_batch_size=batch,
                train_sampling_strategy="sequential",
                precompute_ref_log_probs=True,
                max_length=2048,
                beta=BETA,
                use_cpu=device == "cpu",
                bf16=precision == "bfloat16",
                gradient_checkpointing=checkpointing,
                gradient_checkpointing_kwargs={"use_reentrant": False} if checkpointing else None,
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                disable_tqdm=True,
                **settings,
            ),
            train_dataset=datasets.Dataset.from_dict(texts),
            processing_class=words,
        )
    trainer.ref_model = None
    trainer.model_wrapped = trainer.accelerator.prepare_model(model)
    trainer.model_wrapped.train()
    if checkpointing:
        # TRL's training loop does this before the first step; newer releases of transformers have another name.
        enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
        enable({"use_reentrant": False})
    trainer.current_gradient_accumulation_steps = 1
    batches = list(trainer.get_train_dataloader())
    assert all(len(each["input_ids"]) == 2 * batch for each in batches)
    return trainer, batches


class Trl:
    """TRL's DPOTrainer with a precomputed reference, as its own training loop calls it.

    Args:
        entry: settings.
        settings: as in `dpo_trainer`.
    """

    def __init__(self, entry: Entry, **settings: Any) -> None:
        self.entry = entry
        data = draw_pairs(entry.batches, entry.batch, vocabulary=entry.shape.vocabulary, scale=entry.scale)
        self.model = build(entry.shape, 0, "cpu")
        self.trainer, self.batches = dpo_trainer(
            self.model,
            build(entry.shape, 1, "cpu"),
            data,
            entry.batch,
            entry.shape.vocabulary,
            "cpu",
            "float32",
            checkpointing=entry.checkpointing,
            **settings,
        )
        self.optimiser = torch.optim.AdamW(self.model.parameters(), lr=RATE)

    def step(self, batch: int, update: bool) -> dict[str, float]:
        self.optimiser.zero_grad(set_to_none=not self.entry.gradients_kept)
        inputs = self._inputs(batch)
        loss = self.trainer.training_step(self.trainer.model_wrapped, dict(inputs))
        if update:
            nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
            self.optimiser.step()
        return {
            "loss": loss.item(),
            "tokens": float(inputs["attention_mask"].sum()),
            "positions": float(inputs["attention_mask"].numel()),
        }

    def _inputs(self, batch: int) -> Any:
        return self.batches[batch]

    def tokens_seen(self, batch: int) -> int:
        return int(self.batches[batch]["attention_mask"].sum())


class Scheduled(Trl):
    """`sams.trl`'s trainer: what its training loop calls in a step of one micro-batch."""

    def __init__(self, entry: Entry) -> None:
        from sams.training.batches import balanced
        from sams.trl import ScheduledDPOConfig, ScheduledDPOTrainer

        class Balanced(ScheduledDPOTrainer):
            """Trains on pairs with a proportional share of the batch's tokens.

            An untrained scheduler prefers short or long pairs by chance, which would distort every ratio. It does all
            its work.
            """

            def deal(self, batches: Any, batch: Any, choice: Any) -> Any:
                rows = self.train_dataset[batch.numbers.tolist()]
                names = ("prompt_ids", "chosen_ids", "rejected_ids")
                lengths = [sum(map(len, ids)) for ids in zip(*(rows[name] for name in names), strict=True)]
                every = list(range(len(lengths)))
                kept = balanced(every, lengths, len(every) // len(choice.indices))[0]
                return super().deal(batches, batch, replace(choice, indices=torch.tensor(sorted(kept))))

        super().__init__(
            entry,
            kind=Balanced,
            config=ScheduledDPOConfig,
            selector=entry.trainer.removeprefix("scheduled "),
            packing=str(entry.packing).lower(),
            record_pairs=False,
            gradient_accumulation_steps=1,
            max_steps=entry.batches,
        )
        self.trainer.state.max_steps = entry.batches

    def _inputs(self, batch: int) -> Any:
        [inputs], _ = self.trainer.get_batch_samples(iter([self.batches[batch]]), 1, self.trainer.args.device)
        return inputs


# --- memory ---------------------------------------------------------------------------------------


def settle() -> None:
    """Return unused memory to the system."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def resident(key: str) -> int:
    """Return VmRSS or VmHWM of this process, in bytes."""
    with open("/proc/self/status", encoding="utf-8") as status:
        [line] = [line for line in status if line.startswith(f"{key}:")]
    return int(line.split()[1]) * KIB


class Peak:
    """Peak of resident memory above the level at the start.

    It is correct only with MALLOC_MMAP_THRESHOLD_ set, as the benchmark sets it: freed tensors then return to the
    system at once.
    """

    def __init__(self) -> None:
        settle()
        with open("/proc/self/clear_refs", "w", encoding="utf-8") as peak:
            peak.write("5")
        self.base = resident("VmRSS")

    def above(self) -> int:
        """Return the peak above the level at the start, in bytes."""
        return resident("VmHWM") - self.base


# --- the process ----------------------------------------------------------------------------------


def main(text: str) -> None:
    """Take a step for each line of standard input."""
    entry = Entry.read(text)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # output of libraries goes to stderr
    torch.set_num_threads(1)
    kind: Any = {"trl": Trl, "scheduled": Scheduled}.get(entry.trainer.split()[0], Ours)
    trainer = kind(entry)
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        batch = int(line)
        peak = Peak() if entry.memory else None
        cpu, wall = time.process_time(), time.perf_counter()
        figures = trainer.step(batch, not entry.memory)
        figures |= {
            "cpu_seconds": time.process_time() - cpu,
            "wall_seconds": time.perf_counter() - wall,
            "tokens_seen": float(trainer.tokens_seen(batch)),
        }
        if peak is not None:
            figures["memory_mb"] = peak.above() / 2**20
            trainer.optimiser.zero_grad(set_to_none=not entry.gradients_kept)
        print(json.dumps(figures), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
