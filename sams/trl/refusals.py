"""What a scheduled run cannot do, reported in one line before anything is loaded."""

from __future__ import annotations

import math
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packaging.version import Version

from sams.runtime.errors import UserError
from sams.scheduling.selectors.table import Entry, find, settings_of
from sams.trl.losses import NOT_OF_PAIRS

if TYPE_CHECKING:
    from sams.trl.config import ScheduledDPOConfig

WEIGHTS = "scheduler.pt"
SUPPORTED = ("1.16", "1.17")
"""TRL from the first version to before the second: parts of its trainer are overridden."""


def refuse_version() -> None:
    """Refuse a version of TRL whose trainer is not known.

    Raises:
        UserError: naming the version.
    """
    found = version("trl")
    first, end = SUPPORTED
    if not Version(first) <= Version(found) < Version(end):
        raise UserError(
            f"version {found} is installed, and versions from {first} to before {end} are supported",
            where="trl",
            remedy=f'pip install "trl>={first},<{end}"',
        )


def candidates(args: ScheduledDPOConfig) -> int:
    """Return the number of candidates of a step, over all processes."""
    return args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size


def ratio(args: ScheduledDPOConfig, entry: Entry) -> float:
    """Return the share of the candidates to train on."""
    return 1.0 if entry.full_batch else args.selection_ratio or 0.5


def nearest_multiple(pairs: float, processes: int) -> int:
    """Return the multiple of the number of processes that is nearest to a number of pairs, of two the larger."""
    return processes * math.floor(pairs / processes + 0.5)


def read_scheduler(args: ScheduledDPOConfig) -> Any:
    """Return the settings of the scheduler.

    Raises:
        UserError: naming a key that there is not, or whose value does not fit.
    """
    from pydantic import ValidationError

    from sams.study.settings import Scheduler

    try:
        return Scheduler.model_validate(args.scheduler_settings)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise UserError(
            f"`{key}`: {first['msg']}" if key else str(first["msg"]),
            where="scheduler_kwargs",
            remedy="docs/settings.md lists the keys of `scheduler`",
        ) from None


def weights_file(args: ScheduledDPOConfig) -> Path | None:
    """Return the file with the weights of a pretrained scheduler; None if none is given.

    Raises:
        UserError: there is no such file.
    """
    if args.scheduler_path is None:
        return None
    path = Path(args.scheduler_path)
    file = path / WEIGHTS if path.is_dir() else path
    if not file.is_file():
        raise UserError(
            "no such file", where=f"scheduler_path {file}", remedy=f"give {WEIGHTS} or its folder"
        )
    return file


def refuse(args: ScheduledDPOConfig, data: Any) -> Entry:
    """Refuse settings and data that a scheduled run cannot take.

    Args:
        args: the settings.
        data: the training data, as it was given.

    Returns:
        The entry of the selector.

    Raises:
        UserError: naming the first that is not possible.
    """
    from datasets import IterableDataset

    if not hasattr(args, "selector"):
        raise UserError(
            f"{type(args).__name__} has no selector",
            where="args",
            remedy="give a sams.trl.ScheduledDPOConfig",
        )
    entry = find(args.selector)
    settings_of(args.selector, args.selector_settings)
    if entry.crossfitted:
        raise UserError(
            f"{args.selector} chooses its pairs in a stage of its own before the training",
            where="selector",
            remedy="use it in a study (`sams run`), or choose another selector",
        )
    if entry.full_batch and args.selection_ratio not in (None, 1):
        raise UserError(
            f"{args.selection_ratio} is given, and selector {args.selector} takes all pairs",
            where="selection_ratio",
            remedy="leave it out, or choose another selector",
        )
    share, n, world = ratio(args, entry), candidates(args), args.world_size
    if not nearest_multiple(share * n, world):
        raise UserError(
            f"{share:g} of {n} candidates are no pair on each of {world} process(es)",
            where="selection_ratio",
            remedy="raise it, or per_device_train_batch_size, or gradient_accumulation_steps",
        )
    if entry.reads_scheduler:
        read_scheduler(args)
        weights_file(args)
    if isinstance(data, IterableDataset):
        raise UserError(
            "an iterable data set cannot be read by the number of a row",
            where="train_dataset",
            remedy="give a `datasets.Dataset` (load_dataset without streaming)",
        )
    if data is not None and {"image", "images"} & {*data.column_names}:
        raise UserError(
            "pairs with images are not supported", where="train_dataset", remedy="use TRL's DPOTrainer"
        )
    parallel = getattr(args, "parallelism_config", None)
    if parallel is not None and (parallel.cp_enabled or parallel.sp_enabled):
        raise UserError(
            "context and sequence parallelism are not supported",
            where="parallelism_config",
            remedy="use data parallelism (DDP or FSDP)",
        )
    if args.deepspeed is not None or args.deepspeed_plugin is not None:
        raise UserError("DeepSpeed is not supported", where="deepspeed", remedy="use DDP or FSDP")
    refused = [loss for loss in args.loss_type if loss in NOT_OF_PAIRS]
    if entry.needs_scores and refused:
        raise UserError(
            f"`{refused[0]}` is not a loss of a pair, and selector {args.selector} needs the loss of each",
            where="loss_type",
            remedy="choose another loss, or a selector without scores (all, random)",
        )
    return entry
