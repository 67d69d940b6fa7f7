"""The replay pool: what the scheduler has seen of past arms, in half precision and bounded memory."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

HALF = torch.float16


@dataclass
class Arms:
    """k arms that were trained on, as the scheduler needs them to learn from.

    Attributes:
        contexts: [k, layers, width] merged contexts at scoring time.
        hidden: [k, h] block-averaged activations of f_S at scoring time.
        values: [k] f_S at scoring time.
        rewards: [k] rewards (Eq. 8), known one round later.
    """

    contexts: Tensor
    hidden: Tensor
    values: Tensor
    rewards: Tensor

    def tensors(self) -> tuple[Tensor, ...]:
        """The four tensors, in order."""
        return self.contexts, self.hidden, self.values, self.rewards


class ReplayPool:
    """A bounded set of past arms; when full, a newcomer takes the place of an arm drawn at random.

    Memory is allocated as it fills and never exceeds `capacity` arms, which is the smaller of what
    `max_arms` and `max_bytes` allow.
    """

    def __init__(self, max_arms: int, max_bytes: int, generator: torch.Generator) -> None:
        self.max_arms = max_arms
        self.max_bytes = max_bytes
        self.generator = generator
        self.kept: list[tuple[Tensor, ...]] = []

    def __len__(self) -> int:
        return len(self.kept)

    def capacity(self, arms: Arms) -> int:
        """Most arms of this size that the pool keeps."""
        size = sum(tensor[0].numel() * HALF.itemsize for tensor in arms.tensors())
        return max(1, min(self.max_arms, self.max_bytes // size))

    def add(self, arms: Arms) -> None:
        """Keep k more arms."""
        capacity = self.capacity(arms)
        for arm in zip(*(tensor.to("cpu", HALF).clone() for tensor in arms.tensors()), strict=True):
            if len(self.kept) < capacity:
                self.kept.append(arm)
            else:
                place = int(torch.randint(len(self.kept), (), generator=self.generator))
                self.kept[place] = arm

    def sample(self, count: int) -> Arms | None:
        """Draw at most `count` different arms, in float32 on the CPU; None while the pool is empty."""
        if not self.kept or count == 0:
            return None
        order = torch.randperm(len(self.kept), generator=self.generator)[:count]
        drawn = [self.kept[int(place)] for place in order]
        return Arms(*(torch.stack(column).float() for column in zip(*drawn, strict=True)))

    def state_dict(self) -> dict[str, Any]:
        """The pool's arms, stacked; empty while there are none."""
        if not self.kept:
            return {"columns": []}
        return {"columns": [torch.stack(column) for column in zip(*self.kept, strict=True)]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put the arms of `state_dict` back."""
        self.kept = list(zip(*state["columns"], strict=True)) if state["columns"] else []
