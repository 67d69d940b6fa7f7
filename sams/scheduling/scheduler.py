"""The scheduler: a contextual bandit that learns which pairs to train on (SamS Algorithm 1)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sams.scheduling.networks import Exploitation, Exploration
from sams.scheduling.pool import Arms, ReplayPool

if TYPE_CHECKING:
    from sams.study.settings import Scheduler as Settings


def merge_contexts(contexts: Tensor, how: str) -> Tensor:
    """Merge the contexts of an arm's responses: [n, responses, layers, d] -> [n, layers, d or 2 d].

    `mean` makes contexts independent of flipped labels; `concat` keeps the chosen response and the difference.
    Pretraining has the chosen response only: the difference is 0.
    """
    chosen = contexts[:, 0]
    rejected = contexts[:, 1] if contexts.shape[1] == 2 else None
    if rejected is None:
        return torch.cat([chosen, torch.zeros_like(chosen)], dim=2) if how == "concat" else chosen
    if how == "mean":
        return (chosen + rejected) / 2
    if how == "difference":
        return chosen - rejected
    return torch.cat([chosen, chosen - rejected], dim=2)


def context_width(policy_width: int, how: str) -> int:
    """Return the width of contexts merged by `how`."""
    return 2 * policy_width if how == "concat" else policy_width


class Scheduler:
    """The nets f_S and f_S', their persistent Adam optimisers, and the replay pool.

    Args:
        settings: sizes and learning settings.
        layers: blocks of the policy.
        width: width of the merged contexts.
        seed: seed of the initial weights.
        device: device of the nets.
        train_encoder: True while pretraining; the encoder is frozen in preference training.
        pool: the replay pool.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        layers: int,
        width: int,
        seed: int,
        device: torch.device,
        train_encoder: bool,
        pool: ReplayPool,
    ) -> None:
        self.settings = settings
        self.device = device
        # Weights are drawn from a forked generator: the scheduler must not change the policy's random numbers.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.exploitation = Exploitation(settings, layers, width).to(device)
            self.exploration = Exploration(settings, self.exploitation.hidden_width).to(device)
        self.exploitation.encoder.requires_grad_(train_encoder)
        self.optimisers = [
            torch.optim.Adam(
                [parameter for parameter in net.parameters() if parameter.requires_grad],
                lr=settings.learning_rate,
                weight_decay=settings.weight_decay,
                fused=device.type == "cuda",
            )
            for net in (self.exploitation, self.exploration)
        ]
        self.pool = pool

    def score(self, contexts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Score arms.

        Args:
            contexts: [n, layers, width].

        Returns:
            scores f_S + lambda * f_S' [n], values f_S [n], h [n, hidden_width]; all without gradients.
        """
        with torch.no_grad():
            values, hidden = self.exploitation(contexts)
            scores = values + self.settings.exploration * self.exploration(hidden)
        return scores, values, hidden

    def learn(self, newest: Arms) -> dict[str, float | Tensor]:
        """Fit f_S to the rewards (Eq. 10) and f_S' to the error of f_S at scoring time (Eq. 11).

        Each of `updates_per_round` fits uses the newest arms and `replay_sample` arms from the pool; then the newest
        arms join the pool.
        """
        for _ in range(self.settings.updates_per_round):
            replayed = self.pool.sample(self.settings.replay_sample)
            batch = [tensor.to(self.device) for tensor in newest.tensors()]
            if replayed is not None:
                batch = [
                    torch.cat([new, old.to(self.device)])
                    for new, old in zip(batch, replayed.tensors(), strict=True)
                ]
            contexts, hidden, values, rewards = batch
            losses = [
                (self.exploitation(contexts)[0] - rewards).square().mean(),
                (self.exploration(hidden) - (rewards - values)).square().mean(),
            ]
            for optimiser, loss in zip(self.optimisers, losses, strict=True):
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
        self.pool.add(newest)
        return {
            "scheduler/exploitation_loss": losses[0].detach(),
            "scheduler/exploration_loss": losses[1].detach(),
            "scheduler/pool": float(len(self.pool)),
        }

    @property
    def trained_weights(self) -> int:
        """Number of weights with gradient and moments, without a frozen encoder."""
        groups = (group["params"] for optimiser in self.optimisers for group in optimiser.param_groups)
        return sum(parameter.numel() for group in groups for parameter in group)

    def weights(self) -> dict[str, Any]:
        """Weights of the nets, which preference training gets from pretraining."""
        return {"exploitation": self.exploitation.state_dict(), "exploration": self.exploration.state_dict()}

    def load_weights(self, weights: dict[str, Any]) -> None:
        """Load the weights of a pretrained scheduler."""
        self.exploitation.load_state_dict(weights["exploitation"])
        self.exploration.load_state_dict(weights["exploration"])

    def state_dict(self) -> dict[str, Any]:
        """State for a resumed run: weights, Adam moments, the pool. A collective call, because of the pool."""
        return {
            **self.weights(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "pool": self.pool.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self.load_weights(state)
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.pool.load_state_dict(state["pool"])
