"""What is learned: supervised responses or preferences. A task turns item numbers into losses.

The loop and the passes know a task by its items only, so SFT and preference training share them.
"""

from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from sams import losses
from sams.errors import UserError
from sams.policy.policy import Scores
from sams.scheduling.scheduler import merge_contexts
from sams.scheduling.selectors import View
from sams.training.batches import Rows, pad_rows

Items = dict[str, Tensor]
"""Named values of B items, each [B] float32; `loss` carries the gradient, all others are detached."""


class Scored(Protocol):
    """A set of items that the policy can score."""

    ids: list[str]
    lengths: list[int]
    """Tokens of each item, over all its sequences: what dealing balances."""

    def rows(self, items: list[int]) -> Rows:
        """Padded token ids of the items' sequences."""
        ...

    def items(self, scores: Scores, items: list[int]) -> Items:
        """What is reported of each item, from the scores of `rows(items)`."""
        ...


class Task(Scored, Protocol):
    """A set of items to learn from; `loss` is one of the values of its items."""

    weights: list[int]
    """Weight of each item in the mean loss."""

    def view(self, found: Items, contexts: Tensor | None, merge: str) -> View:
        """What a selector is shown of a scored batch; contexts are [n, sequences, layers, width]."""
        ...

    def traits(self, items: list[int]) -> dict[str, float]:
        """Means over items of what is known without the policy: tokens, share of flipped labels."""
        ...


class SftTask:
    """Supervised responses: the loss is the negative log-prob per response token.

    Args:
        data: tokenised examples with columns id, prompt_ids, response_ids.
        pad: id of the padding token.
        response: the column of the response (`chosen_ids` to pretrain a scheduler on preference pairs).
    """

    def __init__(self, data: dict[str, list[Any]], pad: int, *, response: str = "response_ids") -> None:
        self.ids: list[str] = data["id"]
        self.sequences = list(zip(data["prompt_ids"], data[response], strict=True))
        self.lengths = [len(prompt) + len(answer) for prompt, answer in self.sequences]
        # The mean is over tokens, as everywhere in the field: each item weighs as much as it has tokens.
        self.weights = [len(answer) for _, answer in self.sequences]
        self.pad = pad

    def rows(self, items: list[int]) -> Rows:
        return pad_rows([self.sequences[item] for item in items], self.pad)

    def items(self, scores: Scores, items: list[int]) -> Items:
        return {"loss": -scores.logps / scores.tokens, "logps/chosen": scores.logps.detach()}

    def view(self, found: Items, contexts: Tensor | None, merge: str) -> View:
        """The scheduler's view while pretraining (SamS Eq. 12 to 14).

        The per-token log-prob stands for the margin and the *summed* one for the uncertainty: of one and
        the same quantity the two terms of Eq. 13 would cancel to a constant.
        """
        merged = None if contexts is None else merge_contexts(contexts[:, 0], None, merge)
        return View(found["loss"], -found["loss"], found["logps/chosen"], merged)

    def traits(self, items: list[int]) -> dict[str, float]:
        return {"tokens": _mean([self.lengths[item] for item in items])}


class PairTask:
    """Preference pairs: the log-probs of both responses.

    Args:
        data: tokenised pairs with columns id, prompt_ids, chosen_ids, rejected_ids, flipped.
        pad: id of the padding token.
    """

    def __init__(self, data: dict[str, list[Any]], pad: int) -> None:
        self.ids: list[str] = data["id"]
        self.flipped: list[bool | None] = data["flipped"]
        self.chosen = list(zip(data["prompt_ids"], data["chosen_ids"], strict=True))
        self.rejected = list(zip(data["prompt_ids"], data["rejected_ids"], strict=True))
        self.lengths = [
            len(a[0]) + len(a[1]) + len(b[0]) + len(b[1])
            for a, b in zip(self.chosen, self.rejected, strict=True)
        ]
        self.weights = [1] * len(self.ids)
        self.pad = pad

    def rows(self, items: list[int]) -> Rows:
        return pad_rows(
            [*(self.chosen[item] for item in items), *(self.rejected[item] for item in items)], self.pad
        )

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
    """Preference pairs under one loss, against cached reference log-probs.

    Args:
        data: as for `PairTask`.
        pad: id of the padding token.
        reference: log-probs under the reference by pair id, as (chosen, rejected).
        loss: name of a function in `sams.losses`.
        beta: inverse temperature of the implicit reward.
    """

    def __init__(
        self,
        data: dict[str, list[Any]],
        pad: int,
        *,
        reference: dict[str, tuple[float, float]],
        loss: str,
        beta: float,
    ) -> None:
        super().__init__(data, pad)
        self.reference = torch.tensor([reference[pair] for pair in self.ids], dtype=torch.float32)
        self.loss = getattr(losses, loss)
        self.beta = beta

    def items(self, scores: Scores, items: list[int]) -> Items:
        chosen, rejected = scores.logps.chunk(2)
        reference = self.reference[items].to(chosen.device)
        logps = losses.PairLogps(chosen, rejected, reference[:, 0], reference[:, 1])
        chosen_rewards, rejected_rewards = (reward.detach() for reward in logps.rewards(self.beta))
        return {
            "loss": self.loss(logps, self.beta),
            "rewards/chosen": chosen_rewards,
            "rewards/rejected": rejected_rewards,
            "rewards/margins": chosen_rewards - rejected_rewards,
            "rewards/accuracies": (chosen_rewards > rejected_rewards).float(),
            "logps/chosen": chosen.detach(),
            "logps/rejected": rejected.detach(),
        }

    def view(self, found: Items, contexts: Tensor | None, merge: str) -> View:
        merged = None if contexts is None else merge_contexts(contexts[:, 0], contexts[:, 1], merge)
        return View(found["loss"], found["rewards/margins"], found["logps/chosen"], merged)


def _mean(values: list[Any]) -> float:
    return sum(values) / len(values)


def read_tokens(tokens: Path, split: str) -> dict[str, list[Any]]:
    """Read one split of the tokenised data as columns.

    Raises:
        UserError: when it is not there or empty.
    """
    from datasets import load_from_disk

    folder = tokens / split
    if not folder.is_dir():
        raise UserError("no such tokenised split", where=str(folder), remedy="run the rule `tokenise` first")
    columns: dict[str, list[Any]] = load_from_disk(str(folder)).to_dict()
    if not columns["id"]:
        raise UserError("the split is empty", where=str(folder), remedy="see report.json beside it")
    return columns


def read_reference(folder: Path, split: str, ids: list[str]) -> dict[str, tuple[float, float]]:
    """Read the cached reference log-probs of a split and see that they are those of its pairs.

    Raises:
        UserError: naming a pair that is missing, foreign or there twice.
    """
    from pyarrow import parquet

    file = folder / f"{split}.parquet"
    table = parquet.read_table(file).to_pydict()
    cached = dict(zip(table["id"], zip(table["chosen"], table["rejected"], strict=True), strict=True))
    wrong = set(ids) ^ set(cached)
    if wrong or len(cached) != len(table["id"]):
        raise UserError(
            f"reference log-probs do not belong to these pairs ({len(ids)} pairs, {len(table['id'])} cached"
            + (f", differing at {min(wrong)})" if wrong else ", one is there twice)"),
            where=str(file),
            remedy="run the rule `compute_reference` again",
        )
    return cached
