"""The training stages and how they are launched."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from sams.losses.table import LOSSES, check_loss, check_loss_name
from sams.runtime.errors import UserError
from sams.scheduling.selection import selected
from sams.scheduling.selectors.table import SELECTORS, Entry, find, settings_of
from sams.study.settings.base import Count, Overlay, Positive, Settings, Share
from sams.study.settings.model import MethodModel
from sams.study.settings.scheduling import MethodScheduler

MicroBatch = Count | Literal["auto"]
Ratio = Annotated[float, Field(gt=0.0, le=1.0)]


class Lora(Settings):
    """Low-rank adapters (peft) instead of full training; merged into the weights at export."""

    r: Count = Field(16, description="Rank.")
    alpha: Positive = Field(32.0, description="Scale: the update is multiplied by alpha / r.")
    target_modules: Literal["all-linear"] | list[str] = Field(
        "all-linear",
        description="Names of the linear layers with an adapter; all-linear: all but the output layer.",
    )
    load_in_4bit: bool = Field(
        False,
        description="Hold the frozen linear layers of the blocks in 4 bits (QLoRA: nf4, double quantisation). Needs "
        "the extra `qlora` and launch.strategy ddp; a model built from `architecture` is not rounded.",
    )

    def bytes_of_base(self, precision: str) -> float:
        """Bytes in memory of a frozen weight of the blocks' linear layers; the others have the compute type."""
        if self.load_in_4bit:
            return 0.5 + 1 / 64 + 4 / (64 * 256)  # codes, scales of 64 weights, scales of 256 scales
        return 2.0 if precision == "bfloat16" else 4.0


class Training(Settings):
    """Keys that all training stages share. Gradient accumulation follows from the global batch."""

    batch_size: Count = Field(
        64, description="Global batch: examples or pairs per round, over all processes."
    )
    micro_batch_size: MicroBatch = Field(
        8,
        description="Examples or pairs per process in one forward and backward pass; auto: the smallest number "
        "that is as fast as a larger one.",
    )
    scoring_micro_batch_size: MicroBatch = Field(
        16,
        description="Examples or pairs per process in one pass without gradients; auto: the smallest number that "
        "is as fast as a larger one.",
    )
    epochs: Count = Field(
        1, description="Passes over the data; the incomplete last batch of each is dropped."
    )
    max_steps: int | None = Field(
        None, ge=1, description="Maximum number of optimiser steps; null: as many as `epochs` gives."
    )
    learning_rate: Positive = Field(5.0e-7, description="Peak learning rate of AdamW.")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="Schedule of the learning rate after the warm-up."
    )
    warmup_ratio: Share = Field(
        0.1,
        description="Share of the steps in which the learning rate rises linearly; the first of them has rate 0.",
    )
    weight_decay: float = Field(
        0.0, ge=0.0, description="Weight decay of AdamW; biases and weights of norms do not decay."
    )
    max_grad_norm: Positive = Field(
        10.0, description="Maximum norm of the gradients; larger ones are clipped."
    )
    lora: Lora | None = Field(None, description="Train low-rank adapters only; null trains all weights.")
    evaluations: Count = Field(
        4, description="Evaluations on the test split during the run, the last one at the end."
    )
    log_every: Count = Field(1, description="Steps between two lines of the metric log.")
    checkpoint_every: Count = Field(100, description="Steps between two checkpoints.")


class Sft(Training):
    """Supervised fine-tuning on prompt and response."""


class Pretrain(Training):
    """Scheduler pretraining on the SFT loss (SamS Eq. 12 to 14).

    `frozen` is a separate stage with forward passes only. A frozen policy makes the batch-level reward noise, so its
    weight is 0 there. `moving` is part of SFT and uses its batches and `scheduler.gamma`; only `ratio` applies here.
    """

    policy: Literal["frozen", "moving"] = Field(
        "frozen", description="frozen: forward passes of the SFT model; moving: during SFT, on its batches."
    )
    ratio: Ratio = Field(0.5, description="Share of each batch taken as arms.")

    @model_validator(mode="after")
    def _fits(self) -> "Pretrain":
        if self.policy == "frozen":
            selected(self.batch_size, self.ratio)
        return self


def _listed(check: Callable[[str], object], schema: dict[str, Any]) -> Any:
    """Return the type of a name that `check` finds; the schema lists the names."""

    def checked(name: str) -> str:
        try:
            check(name)
        except UserError as error:
            raise ValueError(str(error)) from None
        return name

    return Annotated[str, AfterValidator(checked), Field(json_schema_extra=schema)]


if TYPE_CHECKING:
    LossName = str
    SelectorName = str
else:
    LossName = _listed(check_loss_name, {"enum": list(LOSSES)})
    # Selectors of other packages have other names.
    SelectorName = _listed(find, {"anyOf": [{"enum": list(SELECTORS)}, {"pattern": "."}]})


class PreferenceKeys(Training):
    """Keys of preference optimisation, shared by all methods that do not give their own."""

    loss: LossName = Field("sigmoid", description="Preference loss (docs/losses.md).")
    beta: Positive = Field(0.1, description="Inverse temperature of the implicit reward.")
    loss_settings: dict[str, float] = Field(
        {},
        description="Other hyper-parameters of the loss, by name; docs/losses.md lists them with defaults.",
    )
    sft_weight: float = Field(
        0.0, ge=0.0, description="Weight of an added SFT term: chosen negative log-prob per token."
    )
    other_reference: bool = Field(
        False,
        description="Accept reference log-probs of another model than the one that training starts from.",
    )
    selector: SelectorName = Field(
        "all",
        description="Selector that chooses the pairs to train on: a name of docs/selectors.md, the name of another "
        "package's entry point, or the path of a class of your own, `package.module:Class`.",
    )
    selector_settings: dict[str, Any] = Field(
        {}, description="Settings of the selector, by name; docs/selectors.md lists them with defaults."
    )
    ratio: Ratio | Annotated[list[Ratio], Field(min_length=1)] = Field(
        1.0,
        description="K / n: share of each batch trained on. The values of a list hold for equal consecutive parts of "
        "the run.",
    )
    easiest: Ratio | None = Field(
        None,
        description="Share of the pairs, the easiest by cross-fitted losses, that the selector sees, in this order; "
        "null: all pairs. For `selective` that share is `ratio`.",
    )
    flipped_share: Share = Field(
        0.0, description="Share of the training pairs whose labels are swapped (controlled noise)."
    )
    flip_seed: int = Field(
        0, ge=0, description="Seed of the swaps, which depend on the seed and on the id of the pair only."
    )
    warmup_rounds: int = Field(0, ge=0, description="Number of first rounds that train on the full batch.")
    full_every: int | None = Field(
        None,
        ge=2,
        description="Each round with a multiple of this number trains on the full batch; null: none.",
    )
    end_after: int | None = Field(
        None,
        ge=1,
        description="Last round with a selection; later rounds train on full batches without scoring.",
    )
    validated: bool = Field(
        False,
        description="Evaluate on the validation pairs instead of the test pairs, and keep the weights of each "
        "evaluation: settings and length of the run are chosen afterwards (docs/studies.md, `chosen`).",
    )
    followed_pairs: int = Field(
        16,
        ge=0,
        description="Number of pairs whose losses are logged through the run (the paper's Figure 1a).",
    )


class Preference(PreferenceKeys):
    """Preference optimisation of one method: a loss, and a selector that chooses the pairs to train on."""

    @model_validator(mode="after")
    def _selection(self) -> "Preference":
        selector = self.selector_entry
        if self.selector_settings or selector.needs_settings or self.selector not in SELECTORS:
            try:
                settings_of(self.selector, self.selector_settings)
            except UserError as error:
                raise ValueError(str(error)) from None
        if selector.full_batch and self.ratios != (1.0,):
            raise ValueError(
                f"selector `{self.selector}` has ratio 1.0: choose another selector or drop `ratio`"
            )
        if selector.crossfitted and (
            len(self.ratios) > 1 or self.warmup_rounds or self.full_every or self.end_after
        ):
            raise ValueError(
                f"selector `{self.selector}` is a fixed order of the data: it takes one ratio and no rounds"
            )
        if selector.crossfitted and self.easiest is not None:
            raise ValueError(f"selector `{self.selector}` takes its share from `ratio`: drop `easiest`")
        batch = selected(self.batch_size, self.easiest or 1.0)
        for ratio in self.ratios:
            selected(batch, ratio)
        if self.max_steps is not None and self.max_steps < len(self.ratios):
            raise ValueError(f"`ratio` has {len(self.ratios)} values, more than `max_steps` {self.max_steps}")
        return self

    @model_validator(mode="after")
    def _loss(self) -> "Preference":
        check_loss(self.loss, beta=self.beta, settings=self.loss_settings, sft_weight=self.sft_weight)
        return self

    @property
    def selector_entry(self) -> Entry:
        """The selector's entry: its class and its needs."""
        return find(self.selector)

    @property
    def ratios(self) -> tuple[float, ...]:
        """The ratio of each part of the run."""
        return tuple(self.ratio) if isinstance(self.ratio, list) else (self.ratio,)

    @property
    def preselected(self) -> float | None:
        """Share of the pairs chosen before the training by cross-fitted losses; None without such a choice."""
        return self.ratios[0] if self.selector_entry.crossfitted else self.easiest

    @property
    def evaluated_split(self) -> Literal["validation", "test"]:
        """The split that is evaluated during the run and at its end."""
        return "validation" if self.validated else "test"

    @property
    def needs_reference(self) -> bool:
        """Whether the loss or the selector needs log-probs under a reference model."""
        return LOSSES[self.loss].needs_reference or self.selector_entry.needs_reference

    @property
    def needs_kl(self) -> bool:
        """Whether the loss needs log-probs of mismatched completions."""
        return LOSSES[self.loss].needs_kl


class Method(PreferenceKeys, Overlay):
    """One method. Keys that are not given are those of `preference`."""

    scheduler: MethodScheduler = Field(
        MethodScheduler(), description="Keys of the scheduler that differ from `scheduler`."
    )
    fresh_scheduler: bool = Field(False, description="Start with fresh networks instead of pretrained ones.")
    model: MethodModel | None = Field(
        None,
        description="A finished model, `{path: ...}`, which is scored and not trained; null trains the method.",
    )


class Launch(Settings):
    """How training jobs are started. No key changes a result, so no recipe holds them."""

    nproc_per_node: Count | Literal["auto"] = Field(
        "auto", description="Processes of each torchrun; auto: one per GPU, or 2 without a GPU."
    )
    nodes: Count = Field(
        1, description="Nodes of each training job, on a cluster; each has `nproc_per_node` processes."
    )
    gpu_model: str | None = Field(
        None, description="GPU model to request, by the cluster's name for it; null: any."
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Device of the policy; auto: GPUs if there are any."
    )
    strategy: Literal["ddp", "fsdp2"] = Field(
        "ddp", description="ddp replicates the policy on every process, fsdp2 shards it."
    )
    shard_over: Literal["all", "node"] = Field(
        "all",
        description="With fsdp2, the processes that share one policy: all, or those of each node, which are then "
        "replicas of one another (HSDP): more memory, and only gradients cross between nodes.",
    )
    sync_each_micro_batch: bool | Literal["auto"] = Field(
        "auto",
        description="With fsdp2, exchange gradients in every micro-batch, not only in the last of a step: no process "
        "then keeps unsharded gradients (4 bytes per weight); auto: if they would not fit in memory.",
    )
    deterministic: bool = Field(
        False, description="Deterministic kernels only, so that a resumed GPU run is bitwise the same."
    )
    async_checkpoints: bool = Field(
        True,
        description="Write checkpoints in a thread, from a copy of the state in the machine's memory, while training "
        "continues. Where the free memory does not hold the copy, training waits.",
    )
    threads_per_process: Count = Field(1, description="CPU threads of each process.")
    timeout_minutes: Positive = Field(
        30.0,
        description="A job without progress for this long ends, and reports where each process was "
        "(docs/reliability.md).",
    )
