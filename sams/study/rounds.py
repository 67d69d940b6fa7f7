"""Are there rows enough for what a study will train? Told by the stage that counts them, before any training."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from sams.runtime.errors import UserError

if TYPE_CHECKING:
    from sams.study.config import Study
    from sams.study.settings import Training

VARIABLE = "SAMS_STUDY"  # the workflow's jobs have their study in it
LEAST_TEST_PAIRS = 2  # a standard error needs two


def current_study() -> Study | None:
    """The study that this process is a job of; None for a stage run by hand."""
    if VARIABLE not in os.environ:
        return None
    from sams.runtime.stage import read_recipe
    from sams.study.config import Study

    return read_recipe(os.environ[VARIABLE], Study)


def check_rounds(study: Study, kept: dict[str, int]) -> None:
    """See that every training stage of a study gets at least one global batch, and a round for each of its ratios.

    Args:
        study: the study.
        kept: rows of each split after tokenising.

    Raises:
        UserError: naming the key of the batch size, or of the data.
    """
    if kept["test"] < LEAST_TEST_PAIRS:
        raise UserError(
            f"{kept['test']} test pair is left; a standard error needs {LEAST_TEST_PAIRS}",
            where="data.test",
            remedy="give more test pairs",
        )
    if study.sft is not None:
        _check_batch(kept["sft"], study.sft, study.sft.batch_size, "sft")
    if study.pretrain is not None and study.pretrain.policy == "frozen":
        _check_batch(kept["train"], study.pretrain, study.pretrain.batch_size, "pretrain")
    for method in study.preference_methods:
        training = study.preference_of(method)
        key = f"preference.batch_size of method {method}"
        items, batch = kept["train"], training.batch_size
        if training.preselected is not None:
            _check_batch(items // 2, training, batch, f"{key}, cross-fitted on half of the pairs")
            items, batch = round(items * training.preselected), round(batch * training.preselected)
        rounds = _check_batch(items, training, batch, key)
        if len(training.ratios) > rounds:
            raise UserError(
                f"{len(training.ratios)} ratios for {rounds} rounds",
                where=f"preference.ratio of method {method}",
                remedy="give fewer ratios, or more pairs or epochs",
            )


def _check_batch(items: int, training: Training, batch: int, key: str) -> int:
    """The rounds of a run, of which there must be one."""
    if items < batch:
        raise UserError(
            f"{items} rows do not fill one global batch of {batch}",
            where=key if "." in key else f"{key}.batch_size",
            remedy="give more data or a smaller batch_size",
        )
    rounds = items // batch * training.epochs
    return rounds if training.max_steps is None else min(rounds, training.max_steps)
