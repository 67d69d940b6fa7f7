"""Preference pairs under one loss, with the cached log-probs of the reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sams.data.records import is_flipped
from sams.data.tokens import Swapped
from sams.losses.base import Loss, PairLogps
from sams.losses.table import build_loss
from sams.policy.policy import Scores
from sams.runtime.errors import UserError
from sams.scheduling.selectors.base import Choice, View
from sams.training.tasks.base import Items, Selectable, read_tokens
from sams.training.tasks.pairs import MismatchedTask, PairTask

if TYPE_CHECKING:
    from sams.study.settings import Preference

# Rounding of a summed log-prob, relative to its size. Measured: 8e-8 in float32; in bfloat16 the margins of 32 pairs
# under SmolLM2-135M spread over 4e-3 to 6e-3 of the largest pair's size by rounding alone (docs/log.md, 2026-11-27).
ROUNDING = {"float32": 1e-6, "bfloat16": 5e-3}


class PreferenceTask(PairTask, Selectable):
    """Preference pairs under one loss.

    Args:
        data: as for `PairTask`; a loss with a KL term needs the column mismatched_ids too.
        loss: the loss, with its hyper-parameters.
        reference: cached log-probs under the reference by pair id, as (chosen, rejected[, mismatched]);
            None if neither the loss nor the selector needs a reference.
        precision: compute type, which says how far margins may differ by rounding.
    """

    def __init__(
        self,
        data: Mapping[str, Sequence[Any]],
        *,
        loss: Loss,
        reference: dict[str, tuple[float, ...]] | None,
        precision: str = "float32",
    ) -> None:
        super().__init__(data)
        self.rounding = ROUNDING[precision]
        self.loss = loss
        self.reference: Tensor | None = None
        if reference is not None:
            self.reference = torch.tensor([reference[pair] for pair in self.ids], dtype=torch.float32)
        self.kl_task = MismatchedTask(data) if loss.needs_kl else None

    def kl(self, values: Items, items: list[int]) -> Tensor:
        """KL term on the mismatched completions, clamped at 0 (KTO, Section 4.1)."""
        assert self.reference is not None
        ratios = values["logps/mismatched"] - self.reference[items, 2]
        return ratios.double().mean().clamp(min=0).float()

    def items(
        self, scores: Scores, items: list[int], kl: Tensor | None = None, choice: Choice | None = None
    ) -> Items:
        chosen, rejected = scores.logps.chunk(2)
        chosen_tokens, rejected_tokens = scores.tokens.chunk(2)
        reference = None if self.reference is None else self.reference[items].to(chosen.device)
        logps = PairLogps(
            chosen=chosen,
            rejected=rejected,
            chosen_tokens=chosen_tokens,
            rejected_tokens=rejected_tokens,
            reference_chosen=None if reference is None else reference[:, 0],
            reference_rejected=None if reference is None else reference[:, 1],
            kl=None if kl is None else kl.to(chosen.device),
        )
        chosen_rewards, rejected_rewards = (reward.detach() for reward in self.loss.rewards(logps))
        return {
            "loss": self._losses(logps, choice),
            "rewards/chosen": chosen_rewards,
            "rewards/rejected": rejected_rewards,
            "rewards/margins": chosen_rewards - rejected_rewards,
            "rewards/accuracies": accuracies(chosen_rewards, rejected_rewards),
            "logps/chosen": chosen.detach(),
            "logps/rejected": rejected.detach(),
            "nll_loss": -chosen.detach() / chosen_tokens,
        }

    def _losses(self, logps: PairLogps, choice: Choice | None) -> Tensor:
        """Loss of each pair, with the weights, labels and scales of beta that a selector chose: [n]."""
        if choice is None:
            return self.loss(logps)
        weights, labels, scales = (
            None if values is None else values.to(logps.chosen.device)
            for values in (choice.weights, choice.labels, choice.beta_scales)
        )
        loss = self.loss if scales is None else self.loss.scaled(scales)
        losses = loss(logps)
        if labels is not None:
            losses = labels * losses + (1 - labels) * loss(logps.swapped())
        return losses if weights is None else weights * losses

    def view(self, items: list[int], values: Items, contexts: Tensor | None) -> View:
        flipped = [self.flipped[item] for item in items]
        view = View(
            ids=[self.ids[item] for item in items],
            numbers=torch.tensor(items),
            chosen_tokens=torch.tensor([float(self.chosen_tokens[item]) for item in items]),
            rejected_tokens=torch.tensor([float(self.rejected_tokens[item]) for item in items]),
            flipped=None if None in flipped else torch.tensor(flipped, dtype=torch.bool),
            columns={name: values[items] for name, values in self.columns.items()},
        )
        if self.reference is not None:
            view.reference_chosen, view.reference_rejected = self.reference[items, :2].T
        if values:
            view.losses, view.margins = values["loss"], values["rewards/margins"]
            view.chosen_logps, view.rejected_logps = values["logps/chosen"], values["logps/rejected"]
            view.contexts = contexts
            view.margin_rounding = self.margin_rounding(items, values)
        return view

    def margin_rounding(self, items: list[int], values: Items) -> float:
        """Largest difference of margins due to rounding alone; implicit rewards are linear in the log-probs."""
        tokens = torch.tensor([[self.chosen_tokens[item], self.rejected_tokens[item]] for item in items])
        zeros = torch.zeros(len(items))
        chosen, rejected = self.loss.rewards(
            PairLogps(
                chosen=self.rounding * values["logps/chosen"],
                rejected=self.rounding * values["logps/rejected"],
                chosen_tokens=tokens[:, 0],
                rejected_tokens=tokens[:, 1],
                reference_chosen=zeros,
                reference_rejected=zeros,
            )
        )
        return (chosen.abs() + rejected.abs()).max().item()


def accuracies(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Return 1 where the chosen reward is larger, 0 where it is smaller, and a half for a tie: [n] float32.

    TRL counts a tie as an error, and thus starts from 0 where policy and reference are the same model.
    """
    return ((chosen > rejected).float() + (chosen >= rejected).float()) / 2


def read_task(
    tokens: Path, reference: Path | None, split: str, training: Preference, *, precision: str
) -> PreferenceTask:
    """One split of the pairs, with its cached reference log-probs where the loss needs them.

    Raises:
        UserError: when the loss needs a reference and none is given, or the test split has one pair only.
    """
    loss = build_loss(
        training.loss, beta=training.beta, settings=training.loss_settings, sft_weight=training.sft_weight
    )
    data = read_tokens(tokens, split)
    if split == "test" and len(data["id"]) < 2:
        raise UserError(
            "one test pair has no standard error", where=f"{tokens}/test", remedy="give two or more"
        )
    flipped = flip(data, training) if split != "test" else set()
    if not training.needs_reference:
        return PreferenceTask(data, loss=loss, reference=None, precision=precision)
    if reference is None:
        needing = f"loss {training.loss}" if loss.needs_reference else f"selector {training.selector}"
        raise UserError(
            f"{needing} needs reference log-probs",
            where="--reference",
            remedy="give the folder that `sams.training.reference` wrote",
        )
    cached = read_reference(reference, split, data["id"])
    for pair in flipped:
        chosen, rejected, *mismatched = cached[pair]
        cached[pair] = (rejected, chosen, *mismatched)
    return PreferenceTask(data, loss=loss, reference=cached, precision=precision)


def flip(data: dict[str, Sequence[Any]], training: Preference) -> set[str]:
    """Swap the labels of `flipped_share` of the pairs in these columns, and set the column `flipped`.

    Labels are flipped here and not in the data, so that methods under different noise share data, tokens, SFT model
    and reference log-probs. A pair keeps its id. A pair whose labels the data marks as flipped, and that is drawn
    again, is clean.

    Returns:
        Ids of the pairs that were swapped.
    """
    if not training.flipped_share:
        return set()
    drawn = [is_flipped(pair, training.flipped_share, training.flip_seed) for pair in data["id"]]
    data["flipped"] = [swap != bool(known) for swap, known in zip(drawn, data["flipped"], strict=True)]
    chosen, rejected = data["chosen_ids"], data["rejected_ids"]
    data["chosen_ids"] = Swapped(chosen, rejected, drawn)
    data["rejected_ids"] = Swapped(rejected, chosen, drawn)
    return {pair for pair, swap in zip(data["id"], drawn, strict=True) if swap}


def read_reference(folder: Path, split: str, ids: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """Cached reference log-probs of a split, checked to belong to its pairs.

    Returns:
        For each pair id (chosen, rejected), and the mismatched completion's log-prob where the cache has it.

    Raises:
        UserError: naming a pair that is missing, unknown or cached twice.
    """
    from pyarrow import parquet

    file = folder / f"{split}.parquet"
    table = parquet.read_table(file).to_pydict()
    rows = zip(*(table[name] for name in ("chosen", "rejected", "mismatched") if name in table), strict=True)
    cached = dict(zip(table["id"], rows, strict=True))
    wrong = set(ids) ^ set(cached)
    if wrong or len(cached) != len(table["id"]):
        raise UserError(
            f"reference log-probs do not belong to these pairs ({len(ids)} pairs, {len(table['id'])} cached"
            + (f", differing at {min(wrong)})" if wrong else ", one is cached twice)"),
            where=str(file),
            remedy="run the rule `compute_reference` again",
        )
    return cached
