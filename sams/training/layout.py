"""Choose the layout of a job's rows, and the attention of packed rows, by what a model gives with them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sams.policy.attention import kernels
from sams.policy.policy import Scores, bare
from sams.policy.rows import Item, pack_rows, pad_rows
from sams.training.distribution import Workers
from sams.training.gates import OUTLIER, TOLERANCE, allowed
from sams.training.tasks.base import Scored

if TYPE_CHECKING:
    from sams.study.settings import Model

log = logging.getLogger(__name__)


def choose_layout(
    policy: nn.Module, task: Scored, workers: Workers, model: Model
) -> tuple[str | None, list[str]]:
    """Choose the fastest attention with which packed rows are right. A collective call; the policy then uses it.

    A model may compute positions, masks or states of its own way, so each kernel is tried on the two longest items:
    no token may change the log-prob of a sequence that does not see it, and log-probs must be those of padded rows.

    Returns:
        Name of the attention, None for padded rows; and a sentence for each fall-back, with its cause.
    """
    name = type(bare(policy).model).__name__
    order = sorted(range(len(task.ids)), key=lambda item: task.packed_lengths[item])
    items = task.sequences((order * 2)[-2:])
    bare(policy).pack(None)
    expected = score(policy, items, workers)
    capped = bool(getattr(bare(policy).model.config, "attn_logit_softcapping", None))
    causes = []
    for kernel in kernels(workers.device.type, model.precision, capped=capped):
        bare(policy).pack(kernel)
        cause = _objection(policy, items, expected, workers, model.precision)
        if cause is None:
            break
        causes.append(f"{kernel.removeprefix('sams_')}: {cause}")
    else:
        kernel = None
        bare(policy).pack(None)
    layout = "computes padded rows" if kernel is None else f"packs rows with {kernel.removeprefix('sams_')}"
    fallbacks = [f"{name} {layout}, which is slower ({'; '.join(causes)})"] if causes else []
    for sentence in fallbacks:
        log.warning(sentence)
    return kernel, fallbacks


def _objection(
    policy: nn.Module, items: list[Item], expected: Scores, workers: Workers, precision: str
) -> str | None:
    """Return why the policy's layout cannot be used for these two items; None if it can."""
    try:
        found = score(policy, items, workers)
        moved = max(
            float((score(policy, changed, workers).logps - found.logps)[unseen].abs().max())
            for changed, unseen in _changes(items, bare(policy).model.config.get_text_config().vocab_size)
        )
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # models, kernels and their compilers raise any type
        return repr(error).splitlines()[0]
    moved = workers.largest(moved)
    if moved > _noise(policy, precision) * int(found.tokens.max()):
        return f"tokens that a sequence does not see change its log-prob by {moved:.1e}"
    difference = float((found.logps - expected.logps).abs().sum() / expected.tokens.sum())
    difference = workers.largest(difference)
    if not difference <= allowed(precision, float(found.tokens.max()), outlier=True):
        return f"log-probs differ from those of padded rows by {difference:.1e} per token"
    return None


def _changes(items: Sequence[Item], vocabulary: int) -> list[tuple[list[Item], list[int]]]:
    """Two items with other tokens, and the sequences that do not see them: [(items, sequences), ...]."""

    def other(ids: Sequence[int]) -> list[int]:
        return [(token + 1) % vocabulary for token in ids]

    first, second = items
    count = len(second[1])
    of_first, of_second = range(0, 2 * count, 2), range(1, 2 * count, 2)
    all_first = (other(first[0]), [other(ids) for ids in first[1]])
    chosen = (second[0], [other(second[1][0]), *second[1][1:]])
    return [([all_first, second], [*of_second]), ([first, chosen], [*of_first, *of_second[1:]])]


def _noise(policy: nn.Module, precision: str) -> float:
    """Largest change per token that is rounding: none, except where tokens share the matrices of experts."""
    config: Any = bare(policy).model.config
    experts = any("experts" in name and isinstance(value, int) for name, value in vars(config).items())
    return OUTLIER * TOLERANCE[precision] if experts else 0.0


def score(policy: nn.Module, items: list[Item], workers: Workers) -> Scores:
    """Score items without gradients, in the policy's layout."""
    with torch.no_grad():
        scores: Scores = policy(rows_of(policy, items).to(workers.device))
    return scores


def rows_of(policy: nn.Module, items: list[Item]) -> Any:
    """Build rows of items in the policy's layout."""
    return pad_rows(items) if bare(policy).packed is None else pack_rows(items)
