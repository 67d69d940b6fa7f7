"""The settings of `ScheduledDPOTrainer`: those of TRL's `DPOConfig`, and the keys of the selection."""

from dataclasses import dataclass, field
from typing import Any, cast

from trl import DPOConfig

from sams.runtime.errors import UserError

PACKING = ("auto", "true", "false")


@dataclass
class ScheduledDPOConfig(DPOConfig):
    """Settings of [`ScheduledDPOTrainer`].

    `per_device_train_batch_size` times `gradient_accumulation_steps` times the number of processes are the
    candidates of an optimiser step, as they are the pairs of one with `DPOTrainer`: the number of steps and the
    learning rates do not change.

    Parameters:
        selector: name of a selector (docs/selectors.md), of an entry point, or `package.module:Class`.
        selection_ratio: share of the candidates to train on, 0.5 by default; `all` takes all.
        selector_kwargs: settings of the selector.
        selection_warmup: number of first steps that train on all candidates.
        selection_full_every: every so many steps train on all candidates; None for no such steps.
        selection_end: last step with a selection, after which training is plain; None for never.
        scoring_batch_size: pairs of a forward pass of the scoring, on each device; None for
            `per_device_train_batch_size`.
        scheduler_preset: sizes of the networks of selector `sams`, `small` or `paper`.
        scheduler_kwargs: other settings of these networks (docs/settings.md, `scheduler`).
        scheduler_path: pretrained weights of these networks: a file, or a folder with `scheduler.pt`.
        selection_seed: seed of the selector; None for `seed`.
        packing: whether the rows of a micro-batch are computed as one, without padding and with each prompt once:
            `auto` tries it on the first pairs, `true` requires it, `false` pads as TRL does.
        record_pairs: whether to write what the policy computed of each pair as `pairs.parquet` in `output_dir`.
    """

    _VALID_DICT_FIELDS = DPOConfig._VALID_DICT_FIELDS + ["selector_kwargs", "scheduler_kwargs"]  # noqa: RUF005

    selector: str = field(
        default="all",
        metadata={
            "help": "Selector that chooses the pairs to train on: a name, an entry point of the group "
            "`sams.selectors`, or `package.module:Class`."
        },
    )
    selection_ratio: float | None = field(
        default=None,
        metadata={
            "help": "Share of the candidates of each step to train on. If not set, 0.5, and 1 for selectors that "
            "take all pairs."
        },
    )
    selector_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Settings of the selector, as a dict or a JSON string."}
    )
    selection_warmup: int = field(
        default=0, metadata={"help": "Number of first steps that train on all candidates."}
    )
    selection_full_every: int | None = field(
        default=None, metadata={"help": "Every so many steps train on all candidates."}
    )
    selection_end: int | None = field(
        default=None,
        metadata={"help": "Last step with a selection; from then on training is plain."},
    )
    scoring_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "Pairs of one forward pass of the scoring, on each device. If not set, "
            "`per_device_train_batch_size`."
        },
    )
    scheduler_preset: str = field(
        default="small",
        metadata={
            "help": "Sizes of the networks of selector `sams`: small ones, or those of the paper.",
            "choices": ["small", "paper"],
        },
    )
    scheduler_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "Settings of the networks of selector `sams`, as a dict or a JSON string."},
    )
    scheduler_path: str | None = field(
        default=None,
        metadata={"help": "Pretrained weights of these networks: a file, or a folder with scheduler.pt."},
    )
    selection_seed: int | None = field(
        default=None, metadata={"help": "Seed of the selector. If not set, `seed`."}
    )
    packing: str = field(
        default="auto",
        metadata={
            "help": "Whether the rows of a micro-batch are computed as one, without padding and with each prompt "
            "once: `auto` tries it on the first pairs, `true` requires it, `false` pads.",
            "choices": list(PACKING),
        },
    )
    record_pairs: bool = field(
        default=False,
        metadata={
            "help": "Whether to write what the policy computed of each pair as pairs.parquet in `output_dir`."
        },
    )

    def __post_init__(self) -> None:
        """Check the values of the selection.

        Raises:
            UserError: naming a value out of its range.
        """
        super().__post_init__()
        self.packing = str(self.packing).lower()  # YAML's true and false
        ratio = self.selection_ratio
        for key, right, wanted in (
            ("packing", self.packing in PACKING, "one of auto, true, false"),
            ("selection_ratio", ratio is None or 0 < ratio <= 1, "a number above 0, and at most 1"),
            ("selection_warmup", self.selection_warmup >= 0, "0 or more"),
            ("selection_full_every", (self.selection_full_every or 2) >= 2, "2 or more"),
            ("selection_end", self.selection_end is None or self.selection_end >= 1, "1 or more"),
            (
                "scoring_batch_size",
                self.scoring_batch_size is None or self.scoring_batch_size >= 1,
                "1 or more",
            ),
            ("selector_kwargs", isinstance(self.selector_kwargs or {}, dict), "a dict, or one as JSON"),
            ("scheduler_kwargs", isinstance(self.scheduler_kwargs or {}, dict), "a dict, or one as JSON"),
        ):
            if not right:
                raise UserError(f"{getattr(self, key)!r} is given; give {wanted}", where=key)

    @property
    def selector_settings(self) -> dict[str, Any]:
        """`selector_kwargs` as a dict."""
        return dict(cast(dict[str, Any], self.selector_kwargs or {}))

    @property
    def scheduler_settings(self) -> dict[str, Any]:
        """`scheduler_preset` and `scheduler_kwargs` as a dict."""
        return {"preset": self.scheduler_preset, **cast(dict[str, Any], self.scheduler_kwargs or {})}
