"""Choose the layout of a job's rows, and the attention of packed rows, by what a model gives with them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from sams.policy.attention import SEGMENTS, kernels, segment_attention
from sams.policy.policy import bare
from sams.policy.rows import Item, pack_rows, zip_completions
from sams.runtime.errors import first_line
from sams.training.agreement import (
    Expected,
    Processes,
    has_experts,
    logps_of,
    refuse_changing_positions,
    refuse_other_logps,
)
from sams.training.tasks.base import Scored

if TYPE_CHECKING:
    from sams.study.settings import Model

log = logging.getLogger(__name__)

TRACED = "sams_traced"
PROBED = 48
"""Tokens of a prompt and of a response in the passes that find what mixes tokens, on CPUs, where passes are slow."""
WINDOWS = ("sliding_window", "attention_window_size", "window_size", "attention_chunk_size")
"""Names in configs for the number of keys that a query attends to."""


def choose_layout(
    policy: nn.Module, task: Scored, workers: Processes, model: Model
) -> tuple[str | None, list[str]]:
    """Choose the fastest attention with which packed rows are right. A collective call; the policy then uses it.

    A model may compute positions, masks or states of its own way, so the two longest items are tried. Nothing but
    this package's attention may mix tokens, with the windows of the config and the positions that are given; no
    token may change the log-prob of a sequence that does not see it; and log-probs must be those of the forward pass
    of the model's own class. On CPUs, whose attention has no blocks, only the last is computed on all their tokens.

    Returns:
        Name of the attention, None for padded rows; and a sentence for each fall-back, with its cause.

    Raises:
        UserError: log-probs in padded rows are not those of the class; see `refuse_other_logps`.
    """
    inner = bare(policy)
    name = type(inner.model).__name__
    order = sorted(range(len(task.ids)), key=lambda item: task.packed_lengths[item])
    refuse_changing_positions(inner.model.config, longest_sequence(task, order))
    items = task.sequences((order * 2)[-2:])
    probes = items if workers.device.type != "cpu" else [_shortened(item) for item in items]
    inner.pack(None)
    log.info("comparing log-probs with the model's own forward pass ...")
    expected = refuse_other_logps(policy, items, probes, workers, model.precision)
    if not model.packing:
        return None, []
    capped = bool(getattr(inner.model.config.get_text_config(), "attn_logit_softcapping", None))
    causes, kernel = [], None
    if cause := _cause(policy, SEGMENTS, partial(_mixing, policy, probes, workers)):
        causes.append(cause)
    else:
        for kernel in kernels(workers.device.type, model.precision, capped=capped):
            cause = _cause(policy, kernel, partial(_objection, policy, items, probes, expected, workers))
            if cause is None:
                break
            causes.append(f"{kernel.removeprefix('sams_')}: {cause}")
        else:
            kernel = None
    inner.pack(kernel)
    layout = "computes padded rows" if kernel is None else f"packs rows with {kernel.removeprefix('sams_')}"
    fallbacks = [f"{name} {layout}, which is slower ({'; '.join(causes)})"] if causes else []
    return kernel, fallbacks


def _shortened(item: Item) -> Item:
    prompt, answers = item
    return prompt[-PROBED:], [answer[:PROBED] for answer in answers]


def longest_sequence(task: Scored, order: Sequence[int]) -> int:
    """Return the tokens of the longest sequence; `order` has the items by length in a packed row, ascending."""
    longest = 0
    for item in reversed(order):
        if task.packed_lengths[item] <= longest:
            break
        [(prompt, completions)] = task.sequences([item])
        longest = max(longest, len(prompt) + max(map(len, completions)))
    return longest


def _cause(policy: nn.Module, attention: str, objection: Callable[[], str | None]) -> str | None:
    """Return why packed rows with this attention cannot be used; None if they can."""
    try:
        bare(policy).pack(attention)
        return objection()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # models, kernels and their compilers raise any type
        return first_line(error)


# --- does a model mix tokens in its attention only, as its config says ------------------------------


def _mixing(policy: nn.Module, items: list[Item], workers: Processes) -> str | None:
    """Return what else than this package's attention, its positions and its windows mixes tokens; None if nothing.

    Exact in any precision, since it looks at what arrives at the attention, and follows NaN.
    """
    config = bare(policy).model.config.get_text_config()
    calls: list[tuple[int | None, int | None, tuple[float, float]]] = []

    def trace(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **others: Any) -> Any:
        if "branches" not in others:
            raise NotImplementedError("its layers do not pass on the layout of packed rows")
        sums = float(query.double().sum()), float(key.double().sum())
        calls.append((getattr(module, "layer_idx", None), others.get("sliding_window"), sums))
        return segment_attention(module, query, key, value, *args, **others)

    AttentionInterface.register(TRACED, trace)
    bare(policy).pack(TRACED)
    logps_of(policy, items, workers)
    if not calls:
        return "its attention cannot be replaced"
    for layer, window, _ in calls:
        if cause := _lost_window(config, layer, window):
            return cause
    first = [sums for _, _, sums in calls]
    calls.clear()
    position_ids = pack_rows(items).position_ids
    assert position_ids is not None
    logps_of(policy, items, workers, position_ids=position_ids.flip(1))
    if first == [sums for _, _, sums in calls]:
        return "its positions are not those of the tokens in their own sequences"
    if not _poisoned(policy, items, workers).isfinite().all():
        return "something else than its attention mixes tokens"
    return None


def _lost_window(config: Any, layer: int | None, arrived: int | None) -> str | None:
    """Return the window of a layer's attention in the config, where another one arrives at the attention."""
    kinds = getattr(config, "layer_types", None)
    kind = kinds[layer] if kinds and layer is not None and layer < len(kinds) else None
    if kind == "full_attention" or getattr(config, "use_sliding_window", None) is False:
        window = None
    elif kind in (None, "sliding_attention"):
        window = next((size for name in WINDOWS if (size := getattr(config, name, None))), None)
    else:
        return f"its config has {kind} in layer {layer}"
    return None if arrived == window else f"its config has a window of {window}, its attention of {arrived}"


def _poisoned(policy: nn.Module, items: list[Item], workers: Processes) -> Tensor:
    """Return the log-probs of the last of these sequences in a row, with NaN as embedding of all others."""
    alone = [(prompt, [answer]) for column in zip_completions(items) for prompt, answer in column]
    branches = pack_rows(alone).branches
    assert branches is not None
    unseen = branches.parts[0] < len(alone) - 1

    def poison(_module: nn.Module, _inputs: Any, states: Tensor) -> Tensor:
        return states.masked_fill(unseen.to(states.device)[None, :, None], torch.nan)

    embeddings = bare(policy).model.get_input_embeddings()
    assert isinstance(embeddings, nn.Module)
    handle = embeddings.register_forward_hook(poison)
    try:
        return logps_of(policy, alone, workers)[-len(alone[-1][1][0]) :]
    finally:
        handle.remove()


# --- does a kernel give what the class gives ----------------------------------------------------------


def _objection(
    policy: nn.Module, items: list[Item], probes: list[Item], expected: Expected, workers: Processes
) -> str | None:
    """Return why a kernel cannot be used for these two items; None if it can. Other tokens are tried in `probes`."""
    config = bare(policy).model.config.get_text_config()
    found = logps_of(policy, items, workers)
    probed = found if probes == items else logps_of(policy, probes, workers)
    sequence = pack_rows(probes).sequence
    moved = 0.0
    for changed, unseen in _changes(probes, config.vocab_size):
        own = torch.isin(sequence, torch.tensor(unseen))
        change = (logps_of(policy, changed, workers) - probed)[own]
        moved = max(moved, float(change.square().mean().sqrt()))
    moved, difference = workers.largest(moved), workers.largest(expected.difference(found))
    if moved > (expected.limit if has_experts(config) else 0):
        return f"tokens that a sequence does not see change its log-prob by {moved:.1e} nats a token"
    if not difference <= expected.limit:
        return f"log-probs differ by {difference:.1e} nats a token from those of the model's own forward pass"
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
