"""Check before the first step that log-probs are those of the forward pass of the model's own class.

The policy calls the body of a model and its output layer itself, on rows of many sequences. Here each sequence is
alone, without padding, packing, mask or kernels of this package, through the same wrapped weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sams.policy.policy import Own, Scores, bare
from sams.policy.rows import Item, Rows, pack_rows, pad_rows, zip_completions
from sams.runtime.errors import UserError

# Root mean square of differences of log-probs over tokens, in standard deviations of the logits.
# LARGEST: due to rounding, in padded rows. SMALLEST: counts as rounding in any case.
# Measured on the models of docs/models.md.
LARGEST = {"float32": 1e-3, "bfloat16": 0.25}
SMALLEST = {"float32": 1e-5, "bfloat16": 2**-5}


class Processes(Protocol):
    """What is needed here of the processes that compute together; `Workers` are such."""

    device: torch.device

    def largest(self, value: float) -> float:
        """Return the largest of the processes' values."""


@dataclass(frozen=True)
class Expected:
    """Log-probs of the class's own forward pass.

    Attributes:
        logps: [M] float64, of the completion tokens of some items, in the order of their rows.
        spread: mean standard deviation of the logits.
        limit: largest difference that is rounding, as a root mean square over tokens, in nats.
    """

    logps: Tensor
    spread: float
    limit: float

    def difference(self, logps: Tensor) -> float:
        """Root mean square over tokens of the difference to these log-probs, in nats."""
        return float((logps - self.logps).square().mean().sqrt())


def refuse_other_logps(
    policy: nn.Module, items: list[Item], probes: list[Item], workers: Processes, precision: str
) -> Expected:
    """Check the policy's log-probs of two items in padded rows. A collective call; the policy expects padded rows.

    Whether passes repeat, and whether tokens depend on those that follow, is tried with `probes`: these items, or
    parts of them.

    Returns:
        The log-probs of the class's own forward pass.

    Raises:
        UserError: log-probs differ from those of the class; they differ between two calls; they depend on tokens
            that follow.
    """
    config, name = bare(policy).model.config.get_text_config(), type(bare(policy).model).__name__
    with torch.no_grad():
        parts: list[Own] = [
            policy(pad_rows([(prompt, [answer])]).to(workers.device), own=True)
            for column in zip_completions(items)
            for prompt, answer in column
        ]
    own = torch.cat([part.logps for part in parts]).cpu()
    spread = float(torch.cat([part.spread for part in parts]).mean())
    expected = Expected(own, spread, SMALLEST[precision] * spread)
    found = logps_of(policy, items, workers)
    probed = found if probes == items else logps_of(policy, probes, workers)
    again = logps_of(policy, probes, workers)
    exact = workers.device.type == "cpu" or not has_experts(config)  # whose sums are in any order on a GPU
    moved = workers.largest(float((again - probed).abs().max()))
    if moved > (0 if exact else expected.limit):
        raise UserError(
            f"two passes of {name} over the same rows differ by {moved:.1e} nats a token",
            where="model",
            remedy="switch off what is random in the model's config: dropout, jitter, noise of routers",
        )
    difference = workers.largest(expected.difference(found))
    if not difference <= LARGEST[precision] * spread:
        raise UserError(
            f"log-probs of {name} differ by {difference:.1e} nats a token from those of its own forward pass, in "
            f"{precision} (logits have a standard deviation of {spread:.1e})",
            where="model",
            remedy="this class computes something that is not known here: take a model of another class",
        )
    limit = max(expected.limit, 3 * difference)
    answers = [answer for column in zip_completions(probes) for _, answer in column]
    last = torch.cat([torch.arange(len(answer), 0, -1) == 1 for answer in answers])
    following = logps_of(policy, [_with_other_ends(item, config.vocab_size) for item in probes], workers)
    moved = workers.largest(float((following - probed)[~last].abs().amax())) if not last.all() else 0.0
    if moved > (limit if has_experts(config) else 0):
        raise UserError(
            f"tokens change the log-probs of tokens before them in {name}, by {moved:.1e} nats",
            where="model",
            remedy="take a causal language model; models of type BERT need is_decoder: true in their config",
        )
    return replace(expected, limit=limit)


def _with_other_ends(item: Item, vocabulary: int) -> Item:
    prompt, answers = item
    return prompt, [[*answer[:-1], (answer[-1] + 1) % vocabulary] for answer in answers]


def logps_of(policy: nn.Module, items: Sequence[Item], workers: Processes, **changes: Any) -> Tensor:
    """Return the log-prob of each completion token, [M] float64, in the policy's layout, without gradients."""
    rows = replace(each_token(rows_of(policy, items)), **changes)
    with torch.no_grad():
        scores: Scores = policy(rows.to(workers.device))
    return scores.logps.double().cpu()


def each_token(rows: Rows) -> Rows:
    """Return the same rows with each completion token as a sequence of its own."""
    count = len(rows.answers)
    return replace(rows, sequence=torch.arange(count), counts=torch.ones(count, dtype=torch.int64))


def rows_of(policy: nn.Module, items: Sequence[Item]) -> Rows:
    """Build rows of items in the policy's layout."""
    return pad_rows(items) if bare(policy).packed is None else pack_rows(items)


def has_experts(config: Any) -> bool:
    """Return whether tokens share the matrices of experts: other tokens then change how sums are rounded."""
    return any(
        "experts" in name and isinstance(value, int) and value > 1 for name, value in vars(config).items()
    )


def refuse_changing_positions(config: Any, longest: int) -> None:
    """Check that rotary positions do not depend on the longest sequence of a batch.

    Raises:
        UserError: the model scales positions dynamically, and `longest` tokens are beyond its original range.
    """
    config = config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    for part in [rope, *(value for value in rope.values() if isinstance(value, dict))]:
        kind = str(part.get("rope_type") or part.get("type"))
        if "dynamic" not in kind and kind != "longrope":
            continue
        original = part.get("original_max_position_embeddings") or config.max_position_embeddings
        if longest > original:
            raise UserError(
                f"the longest sequence has {longest} tokens, and beyond {original} the positions of this model "
                f"({kind} scaling) depend on the longest sequence of a batch",
                where="data.max_length",
                remedy=f"set it to {original} or less",
            )
