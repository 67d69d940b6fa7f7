"""The training stages and how they are launched."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from sams.losses.table import LOSSES, check_loss, check_loss_name
from sams.scheduling.selection import selected
from sams.scheduling.selectors.table import SELECTORS, check_selector
from sams.study.settings.base import Count, Positive, Settings, Share

MicroBatch = Count | Literal["auto"]
Ratio = Annotated[float, Field(gt=0.0, le=1.0)]


class Lora(Settings):
    """Low-rank adapters (peft) in place of full training; merged into the weights at export."""

    r: Count = Field(16, description="Rank.")
    alpha: Positive = Field(32.0, description="Scale: the update is multiplied by alpha / r.")
    target_modules: Literal["all-linear"] | list[str] = Field(
        "all-linear", description="Names of the linear layers that get an adapter, or all but the output."
    )


class Training(Settings):
    """What every training stage shares. The global batch is the setting; accumulation is derived."""

    batch_size: Count = Field(
        64, description="Global batch: examples or pairs per round, over all processes."
    )
    micro_batch_size: MicroBatch = Field(
        8, description="Examples or pairs per process in one forward and backward; auto: found at the start."
    )
    scoring_micro_batch_size: MicroBatch = Field(16, description="The same for passes without gradients.")
    epochs: Count = Field(
        1, description="Passes over the data; the incomplete last batch of each is dropped."
    )
    max_steps: int | None = Field(
        None, ge=1, description="Stop after so many optimiser steps; null runs all epochs."
    )
    learning_rate: Positive = Field(5.0e-7, description="Peak learning rate of AdamW.")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="Course after the warm-up."
    )
    warmup_ratio: Share = Field(
        0.1, description="Share of the steps in which the learning rate rises linearly."
    )
    weight_decay: float = Field(0.0, ge=0.0, description="AdamW weight decay.")
    max_grad_norm: Positive = Field(10.0, description="Gradients are clipped to this norm.")
    lora: Lora | None = Field(None, description="Train low-rank adapters only; null trains all weights.")
    evaluations: Count = Field(
        4, description="Evaluations of the test split in the run, the last at its end."
    )
    log_every: Count = Field(1, description="Steps between two lines of the metric log.")
    checkpoint_every: Count = Field(100, description="Steps between two checkpoints.")


class Sft(Training):
    """Supervised fine-tuning on prompt and response."""


class Pretrain(Training):
    """Scheduler pretraining on the SFT loss (SamS Eq. 12 to 14).

    `frozen` is a stage of its own with forward passes only. `moving` is part of SFT, whose batches it watches:
    then only `ratio` and `gamma` count here.
    """

    policy: Literal["frozen", "moving"] = Field(
        "frozen", description="frozen: forward passes of the SFT model; moving: beside SFT, on its batches."
    )
    ratio: Ratio = Field(0.5, description="Share of each batch taken as arms.")
    gamma: Share | None = Field(
        None,
        description="As `scheduler.gamma`. null: 0 with a frozen policy, whose batch reward is mere noise; "
        "the scheduler's own with a moving one.",
    )

    @model_validator(mode="after")
    def _fits(self) -> "Pretrain":
        if self.policy == "frozen":
            selected(self.batch_size, self.ratio)
        return self


def _named(check: Callable[[str], None], names: Iterable[str]) -> Any:
    """Type of a name in a table, which the schema lists."""

    def checked(name: str) -> str:
        check(name)
        return name

    return Annotated[str, AfterValidator(checked), Field(json_schema_extra={"enum": list(names)})]


if TYPE_CHECKING:
    LossName = str
    SelectorName = str
else:
    LossName = _named(check_loss_name, LOSSES)
    SelectorName = _named(check_selector, SELECTORS)


class Preference(Training):
    """Preference optimisation: a loss, and a selector that chooses whom to train on."""

    loss: LossName = Field("sigmoid", description="Preference loss; docs/losses.md lists them.")
    beta: Positive = Field(0.1, description="Inverse temperature of the implicit reward.")
    loss_settings: dict[str, float] = Field(
        {}, description="The loss's other hyper-parameters, by name; docs/losses.md has their defaults."
    )
    sft_weight: float = Field(
        0.0, ge=0.0, description="Weight of an added SFT term: chosen negative log-prob per token."
    )
    selector: SelectorName = Field("all", description="Who chooses the pairs to train on; docs/selectors.md.")
    ratio: Ratio | Annotated[list[Ratio], Field(min_length=1)] = Field(
        1.0,
        description="K / n: share of each batch trained on. A list holds for equal consecutive parts of the run.",
    )
    easiest: Ratio | None = Field(
        None,
        description="Share of the pairs, the easiest by cross-fitted losses, that the selector is shown, in this "
        "order; null: all. For `selective`, which takes them as they come, `ratio` is that share.",
    )
    flipped_share: Share = Field(
        0.0, description="Share of the training pairs whose labels are swapped (controlled noise)."
    )
    flip_seed: int = Field(
        0, ge=0, description="Seed of the swaps, which hang on it and on the pair's id alone."
    )
    warmup_rounds: int = Field(0, ge=0, description="First rounds that train on the full batch.")
    full_every: int | None = Field(None, ge=2, description="Every such round trains on the full batch.")
    end_after: int | None = Field(
        None, ge=1, description="Round after which training is plain, on full batches without scoring."
    )
    validated: bool = Field(
        False,
        description="Evaluate the validation pairs in place of the test pairs, and keep the weights of each "
        "evaluation: settings and length of the run are chosen afterwards (docs/studies.md, `chosen`).",
    )
    followed_pairs: int = Field(
        16, ge=0, description="Pairs whose losses are followed through the run (the paper's Figure 1a)."
    )

    @model_validator(mode="after")
    def _selection(self) -> "Preference":
        selector = SELECTORS[self.selector]
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
        return self

    @model_validator(mode="after")
    def _loss(self) -> "Preference":
        check_loss(self.loss, beta=self.beta, settings=self.loss_settings, sft_weight=self.sft_weight)
        return self

    @property
    def ratios(self) -> tuple[float, ...]:
        """The ratio of each part of the run."""
        return tuple(self.ratio) if isinstance(self.ratio, list) else (self.ratio,)

    @property
    def preselected(self) -> float | None:
        """Share of the pairs chosen before the training, by cross-fitted losses; None without such a choice."""
        return self.ratios[0] if SELECTORS[self.selector].crossfitted else self.easiest

    @property
    def evaluated_split(self) -> Literal["validation", "test"]:
        """The split that is evaluated in the run and at its end."""
        return "validation" if self.validated else "test"

    @property
    def needs_reference(self) -> bool:
        """Whether the loss compares with a reference model."""
        return LOSSES[self.loss].needs_reference

    @property
    def needs_kl(self) -> bool:
        """Whether the loss needs log-probs of mismatched completions."""
        return LOSSES[self.loss].needs_kl


class Launch(Settings):
    """How training jobs are started. Changes nothing in a result, so it is part of no recipe."""

    nproc_per_node: Count | Literal["auto"] = Field(
        "auto", description="Processes of each torchrun; auto: one per GPU, or 2 without one."
    )
    nodes: Count = Field(
        1, description="Nodes of each training job, under a scheduler; each has `nproc_per_node` processes."
    )
    gpu_model: str | None = Field(
        None, description="Kind of GPU to ask a scheduler for, by its own name; null takes any."
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: GPUs if there are any.")
    strategy: Literal["ddp", "fsdp2"] = Field("ddp", description="Replicate or shard the policy.")
    shard_over: Literal["all", "node"] = Field(
        "all",
        description="With fsdp2, over which processes the policy is sharded: all, or those of each node, which are "
        "then replicas of one another (HSDP): more memory, and only gradients cross between nodes.",
    )
    deterministic: bool = Field(
        False, description="Deterministic kernels only, so that a GPU run is bitwise the same when resumed."
    )
    threads_per_process: Count = Field(1, description="CPU threads of each process.")
    timeout_minutes: Positive = Field(
        30.0, description="A job in which nothing moves for so long ends, and tells where each process was."
    )
