"""What is learned: supervised responses or preferences. A task turns item numbers into losses.

The loop and the passes know a task by its items only, so SFT and preference training share them.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from sams.data.tokens import lengths_of, read_columns
from sams.losses.base import Loss, PairLogps
from sams.policy.policy import Scores
from sams.policy.rows import Item
from sams.runtime.errors import UserError
from sams.scheduling.selectors.base import View

ROUNDING = 1e-6
"""Rounding of a summed float32 log-prob, relative to its size (measured: 8e-8)."""

Items = dict[str, Tensor]
"""Named values of B items, each [B] float32; `loss` carries the gradient, all others are detached."""


class Scored(Protocol):
    """A set of items that the policy can score."""

    ids: list[str]
    lengths: list[int]
    """Tokens of each item, over all its sequences: its prompt as often as it has completions."""
    packed_lengths: list[int]
    """Tokens of each item in a packed row, its prompt once."""

    def sequences(self, items: list[int]) -> list[Item]:
        """Token ids of each item: its prompt and its completions."""
        ...

    def items(self, scores: Scores, items: list[int]) -> Items:
        """What is reported of each item, from the scores of `sequences(items)`."""
        ...


class Task(Scored, Protocol):
    """A set of items to learn from; `loss` is one of the values of its items."""

    weights: list[int]
    """Weight of each item in the mean loss."""

    def begin(self, items: list[int], scored: Callable[[Scored, list[int]], Items]) -> None:
        """Get ready for a global batch, before any of it is scored; `scored` runs the policy without gradients."""
        ...

    def view(self, items: list[int], found: Items, contexts: Tensor | None) -> View:
        """What a selector is shown of a scored batch; contexts are [n, sequences, layers, width]."""
        ...

    def traits(self, items: list[int]) -> dict[str, float]:
        """Means over items of what is known without the policy: tokens, share of flipped labels."""
        ...


class SftTask:
    """Supervised responses: the loss is the negative log-prob per response token.

    Args:
        data: tokenised examples with columns id, prompt_ids, response_ids.
        response: the column of the response (`chosen_ids` to pretrain a scheduler on preference pairs).
    """

    def __init__(self, data: Mapping[str, Sequence[Any]], *, response: str = "response_ids") -> None:
        self.ids = list(data["id"])
        self.prompts, self.responses = data["prompt_ids"], data[response]
        # The mean is over tokens, as everywhere in the field: each item weighs as much as it has tokens.
        self.weights: list[int] = lengths_of(self.responses).tolist()
        self.lengths: list[int] = (lengths_of(self.prompts) + lengths_of(self.responses)).tolist()
        self.packed_lengths = self.lengths

    def sequences(self, items: list[int]) -> list[Item]:
        return [(self.prompts[item], [self.responses[item]]) for item in items]

    def items(self, scores: Scores, items: list[int]) -> Items:
        return {"loss": -scores.logps / scores.tokens, "logps/chosen": scores.logps.detach()}

    def begin(self, items: list[int], scored: Callable[[Scored, list[int]], Items]) -> None:
        """Nothing: an example stands for itself."""

    def view(self, items: list[int], found: Items, contexts: Tensor | None) -> View:
        """The scheduler's view while pretraining (SamS Eq. 12 to 14).

        The per-token log-prob stands for the margin and the *summed* one for the uncertainty: of one and
        the same quantity the two terms of Eq. 13 would cancel to a constant, so `uncertainty: mean` does not
        reach here: no token counts are shown.
        """
        return View(
            losses=found["loss"],
            margins=-found["loss"],
            chosen_logps=found["logps/chosen"],
            contexts=contexts,
        )

    def traits(self, items: list[int]) -> dict[str, float]:
        return {"tokens": _mean([self.lengths[item] for item in items])}


class PairTask:
    """Preference pairs: the log-probs of both responses.

    Args:
        data: tokenised pairs with columns id, prompt_ids, chosen_ids, rejected_ids, flipped.
    """

    def __init__(self, data: Mapping[str, Sequence[Any]]) -> None:
        self.ids = list(data["id"])
        self.flipped: Sequence[bool | None] = data["flipped"]
        self.prompts, self.chosen, self.rejected = (
            data[name] for name in ("prompt_ids", "chosen_ids", "rejected_ids")
        )
        prompts, chosen, rejected = map(lengths_of, (self.prompts, self.chosen, self.rejected))
        self.chosen_tokens: list[int] = chosen.tolist()
        self.rejected_tokens: list[int] = rejected.tolist()
        self.packed_lengths: list[int] = (prompts + chosen + rejected).tolist()
        self.lengths: list[int] = (2 * prompts + chosen + rejected).tolist()
        self.weights = [1] * len(self.ids)

    def sequences(self, items: list[int]) -> list[Item]:
        return [(self.prompts[item], [self.chosen[item], self.rejected[item]]) for item in items]

    def items(self, scores: Scores, items: list[int]) -> Items:
        chosen, rejected = scores.logps.chunk(2)
        return {"logps/chosen": chosen.detach(), "logps/rejected": rejected.detach()}

    def traits(self, items: list[int]) -> dict[str, float]:
        traits = {"tokens": _mean([self.lengths[item] for item in items])}
        flipped = [self.flipped[item] for item in items]
        if None not in flipped:
            traits["flipped_share"] = _mean([float(bool(flip)) for flip in flipped])
        return traits


class PreferenceTask(PairTask):
    """Preference pairs under one loss.

    Args:
        data: as for `PairTask`; a loss with a KL term needs the column mismatched_ids too.
        loss: the loss, with its hyper-parameters.
        reference: cached log-probs under the reference by pair id, as (chosen, rejected[, mismatched]);
            None for a loss without a reference.
    """

    def __init__(
        self,
        data: Mapping[str, Sequence[Any]],
        *,
        loss: Loss,
        reference: dict[str, tuple[float, ...]] | None,
    ) -> None:
        super().__init__(data)
        self.loss = loss
        self.reference: Tensor | None = None
        if loss.needs_reference:
            assert reference is not None
            self.reference = torch.tensor([reference[pair] for pair in self.ids], dtype=torch.float32)
        self.mismatched = MismatchedTask(data) if loss.needs_kl else None
        self.kl: Tensor | None = None

    def begin(self, items: list[int], scored: Callable[[Scored, list[int]], Items]) -> None:
        """For a loss with a KL term: estimate it on the mismatched completions of all n pairs (KTO, Section 4.1)."""
        if self.mismatched is None:
            return
        assert self.reference is not None
        found = scored(self.mismatched, items)["logps/mismatched"]
        self.kl = (found - self.reference[items, 2]).double().mean().clamp(min=0).float()

    def items(self, scores: Scores, items: list[int]) -> Items:
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
            kl=None if self.kl is None else self.kl.to(chosen.device),
        )
        chosen_rewards, rejected_rewards = (reward.detach() for reward in self.loss.rewards(logps))
        return {
            "loss": self.loss(logps),
            "rewards/chosen": chosen_rewards,
            "rewards/rejected": rejected_rewards,
            "rewards/margins": chosen_rewards - rejected_rewards,
            "rewards/accuracies": (chosen_rewards > rejected_rewards).float(),
            "logps/chosen": chosen.detach(),
            "logps/rejected": rejected.detach(),
            "nll_loss": -chosen.detach() / chosen_tokens,
        }

    def view(self, items: list[int], found: Items, contexts: Tensor | None) -> View:
        flipped = [self.flipped[item] for item in items]
        return View(
            losses=found["loss"],
            margins=found["rewards/margins"],
            chosen_logps=found["logps/chosen"],
            chosen_tokens=torch.tensor([float(self.chosen_tokens[item]) for item in items]),
            contexts=contexts,
            margin_rounding=self.margin_rounding(items, found),
            flipped=None if None in flipped else torch.tensor(flipped, dtype=torch.bool),
        )

    def margin_rounding(self, items: list[int], found: Items) -> float:
        """Span that rounding alone may give the margins. Implicit rewards are linear in the log-probs."""
        tokens = torch.tensor([[self.chosen_tokens[item], self.rejected_tokens[item]] for item in items])
        nothing = torch.zeros(len(items))
        chosen, rejected = self.loss.rewards(
            PairLogps(
                chosen=ROUNDING * found["logps/chosen"],
                rejected=ROUNDING * found["logps/rejected"],
                chosen_tokens=tokens[:, 0],
                rejected_tokens=tokens[:, 1],
                reference_chosen=nothing,
                reference_rejected=nothing,
            )
        )
        return (chosen.abs() + rejected.abs()).max().item()


class MismatchedTask:
    """Prompts with the completion of another pair, for KTO's KL term; one sequence each."""

    def __init__(self, data: Mapping[str, Sequence[Any]]) -> None:
        self.ids = list(data["id"])
        self.prompts, self.completions = data["prompt_ids"], data["mismatched_ids"]
        self.lengths: list[int] = (lengths_of(self.prompts) + lengths_of(self.completions)).tolist()
        self.packed_lengths = self.lengths

    def sequences(self, items: list[int]) -> list[Item]:
        return [(self.prompts[item], [self.completions[item]]) for item in items]

    def items(self, scores: Scores, items: list[int]) -> Items:
        return {"logps/mismatched": scores.logps.detach()}


def _mean(values: list[Any]) -> float:
    return sum(values) / len(values)


def read_tokens(tokens: Path, split: str) -> dict[str, Sequence[Any]]:
    """Columns of one split of the tokenised data; token ids stay on disk until a batch needs them.

    Raises:
        UserError: when it is not there or empty.
    """
    folder = tokens / split
    if not folder.is_dir():
        raise UserError("no such tokenised split", where=str(folder), remedy="run the rule `tokenise` first")
    columns = read_columns(folder)
    if not columns["id"]:
        raise UserError("the split is empty", where=str(folder), remedy="see report.json beside it")
    return columns


def read_reference(folder: Path, split: str, ids: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """Read the cached reference log-probs of a split and see that they are those of its pairs.

    Returns:
        For each pair id (chosen, rejected), and the mismatched completion's where it was asked for.

    Raises:
        UserError: naming a pair that is missing, foreign or there twice.
    """
    from pyarrow import parquet

    file = folder / f"{split}.parquet"
    table = parquet.read_table(file).to_pydict()
    found = zip(*(table[name] for name in ("chosen", "rejected", "mismatched") if name in table), strict=True)
    cached = dict(zip(table["id"], found, strict=True))
    wrong = set(ids) ^ set(cached)
    if wrong or len(cached) != len(table["id"]):
        raise UserError(
            f"reference log-probs do not belong to these pairs ({len(ids)} pairs, {len(table['id'])} cached"
            + (f", differing at {min(wrong)})" if wrong else ", one is there twice)"),
            where=str(file),
            remedy="run the rule `compute_reference` again",
        )
    return cached
