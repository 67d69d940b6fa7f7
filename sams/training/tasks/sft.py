"""Supervised fine-tuning: the loss is the negative log-prob per response token."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from sams.data.tokens import lengths_of
from sams.policy.policy import Scores
from sams.policy.rows import Item
from sams.scheduling.selectors.base import Choice
from sams.training.tasks.base import Items, Task, mean


class SftTask(Task):
    """Prompts with one response each.

    Args:
        data: tokenised examples with columns id, prompt_ids, response_ids.
        response: column of the response (`chosen_ids` for preference pairs).
    """

    def __init__(self, data: Mapping[str, Sequence[Any]], *, response: str = "response_ids") -> None:
        self.ids = list(data["id"])
        self.prompts, self.responses = data["prompt_ids"], data[response]
        # The mean is over tokens, as everywhere in the field: the weight of an item is its number of tokens.
        self.weights = lengths_of(self.responses).tolist()
        self.lengths = (lengths_of(self.prompts) + lengths_of(self.responses)).tolist()
        self.packed_lengths = self.lengths

    def sequences(self, items: list[int]) -> list[Item]:
        return [(self.prompts[item], [self.responses[item]]) for item in items]

    def items(
        self, scores: Scores, items: list[int], kl: Tensor | None = None, choice: Choice | None = None
    ) -> Items:
        return {"loss": -scores.logps / scores.tokens, "logps/chosen": scores.logps.detach()}

    def traits(self, items: list[int]) -> dict[str, float]:
        return {"tokens": mean([self.lengths[item] for item in items])}
