"""Preference pairs without a loss: their log-probs alone, as the reference stage stores them."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sams.data.tokens import KEPT, lengths_of
from sams.policy.policy import Scores
from sams.policy.rows import Item
from sams.scheduling.selectors.base import Choice
from sams.training.tasks.base import Items, Scored, mean


class PairTask(Scored):
    """Preference pairs: the log-probs of both responses.

    Args:
        data: tokenised pairs with columns id, prompt_ids, chosen_ids, rejected_ids, flipped, and those that the
            data keeps for selectors.
    """

    def __init__(self, data: Mapping[str, Sequence[Any]]) -> None:
        self.ids = list(data["id"])
        self.flipped: Sequence[bool | None] = data["flipped"]
        self.columns = {
            name.removeprefix(KEPT): torch.tensor(values)
            for name, values in data.items()
            if name.startswith(KEPT)
        }
        self.prompts, self.chosen, self.rejected = (
            data[name] for name in ("prompt_ids", "chosen_ids", "rejected_ids")
        )
        prompts, chosen, rejected = map(lengths_of, (self.prompts, self.chosen, self.rejected))
        self.chosen_tokens: list[int] = chosen.tolist()
        self.rejected_tokens: list[int] = rejected.tolist()
        self.packed_lengths = (prompts + chosen + rejected).tolist()
        self.lengths = (2 * prompts + chosen + rejected).tolist()
        self.weights = [1] * len(self.ids)

    def sequences(self, items: list[int]) -> list[Item]:
        return [(self.prompts[item], [self.chosen[item], self.rejected[item]]) for item in items]

    def items(
        self, scores: Scores, items: list[int], kl: Tensor | None = None, choice: Choice | None = None
    ) -> Items:
        chosen, rejected = scores.logps.chunk(2)
        return {"logps/chosen": chosen.detach(), "logps/rejected": rejected.detach()}

    def traits(self, items: list[int]) -> dict[str, float]:
        traits = {"tokens": mean([self.lengths[item] for item in items])}
        flipped = [self.flipped[item] for item in items]
        if None not in flipped:
            traits["flipped_share"] = mean([float(bool(flip)) for flip in flipped])
        return traits


class MismatchedTask(Scored):
    """Prompts with the completion of another pair, for KTO's KL term; one sequence each.

    Args:
        data: tokenised pairs with columns id, prompt_ids, mismatched_ids.
    """

    def __init__(self, data: Mapping[str, Sequence[Any]]) -> None:
        self.ids = list(data["id"])
        self.prompts, self.completions = data["prompt_ids"], data["mismatched_ids"]
        self.lengths = (lengths_of(self.prompts) + lengths_of(self.completions)).tolist()
        self.packed_lengths = self.lengths

    def sequences(self, items: list[int]) -> list[Item]:
        return [(self.prompts[item], [self.completions[item]]) for item in items]

    def items(
        self, scores: Scores, items: list[int], kl: Tensor | None = None, choice: Choice | None = None
    ) -> Items:
        return {"logps/mismatched": scores.logps.detach()}
