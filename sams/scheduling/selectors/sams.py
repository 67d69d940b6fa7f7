"""Selector `sams`: Top-K by the scheduler's score, which learns with a lag of one step (SamS Algorithm 1)."""

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from sams.scheduling.calibration import rank_correlation
from sams.scheduling.pool import Arms, ReplayPool
from sams.scheduling.rewards import batch_reward, reward, sample_reward
from sams.scheduling.scheduler import Scheduler, context_width, merge_contexts
from sams.scheduling.selectors.base import Choice, Selector, Setup, View, top_k


@dataclass
class Scored:
    """Scored arms, kept until their batch-level reward is known.

    Attributes:
        loss: mean loss of the batch before the update.
        contexts: [arms, layers, width], merged.
        hidden: [arms, hidden_width], input of f_S'.
        values: [arms] values f_S.
        scores: [arms] f_S + lambda f_S'.
        samples: [arms] sample-level rewards (Eq. 7).

    All tensors are on the CPU, except the contexts of a round whose choice is open: they stay on their device.
    """

    loss: float
    contexts: Tensor
    hidden: Tensor
    values: Tensor
    scores: Tensor
    samples: Tensor

    def take(self, choice: Tensor) -> "Scored":
        """Return the arms at these indices, on the CPU."""
        arms = {name: value[choice].cpu() for name, value in vars(self).items() if name != "loss"}
        return Scored(self.loss, **arms)


class Sams(Selector):
    """Top-K of the scheduler's scores over the global batch.

    Args:
        setup: its seed is that of the uniform choice of round 1.
        scheduler: networks and replay pool.
        gamma: weight of the batch-level reward (Eq. 8).
        trained: whether the scheduler comes from pretraining; without it, the choice of round 1 is uniform.
    """

    needs_contexts = True

    @classmethod
    def build(cls, setup: Setup, **_: Any) -> Self:
        settings = setup.scheduler
        assert settings is not None and setup.selection is not None
        scheduler = Scheduler(
            settings,
            layers=setup.layers,
            width=context_width(setup.width, settings.merge),
            seed=setup.seed,
            device=setup.device,
            train_encoder=setup.train_encoder,
            pool=ReplayPool(
                setup.folder,
                max_arms=min(settings.replay_rounds, setup.selection.rounds) * setup.selection.largest,
                max_bytes=settings.replay_bytes,
                generator=torch.Generator().manual_seed(setup.seed),
                rank=setup.rank,
                world=setup.world,
                exchange=setup.sum,
            ),
        )
        if setup.weights is not None:
            scheduler.load_weights(torch.load(setup.weights, map_location="cpu", weights_only=True))
        return cls(setup, scheduler, gamma=settings.gamma, trained=setup.weights is not None)

    def __init__(self, setup: Setup, scheduler: Scheduler, *, gamma: float, trained: bool) -> None:
        super().__init__(setup)
        self.scheduler = scheduler
        self.trained_weights = scheduler.trained_weights
        self.gamma = gamma
        self.trained = trained
        self.scored: Scored | None = None
        """All n arms of this round, between `choose` and `accept`."""
        self.pending: Scored | None = None
        """The k arms of the last choice, which wait for their batch-level reward."""
        self.agreement = 0.0
        """Rank correlation of the last round's scores with Eq. 7, over all n arms."""

    def observe(self, view: View) -> dict[str, float | Tensor]:
        """Reward the arms of the last round, whose B is now known (Eq. 6), and fit both nets to them."""
        if self.pending is None:
            return {}
        last, self.pending = self.pending, None
        batch = batch_reward(last.loss, view.losses.double().mean().item())
        rewards = reward(batch, last.samples, self.gamma).float()
        metrics = self.scheduler.learn(Arms(last.contexts, last.hidden, last.values, rewards))
        self.trained = True
        return {
            **metrics,
            "scheduler/batch_reward": batch,
            "scheduler/reward": rewards.mean(),
            "scheduler/estimate_error": (last.values - rewards).abs().mean(),
            "scheduler/estimate_bias": (last.scores - rewards).mean(),
            "scheduler/rank_correlation": rank_correlation(last.scores, rewards),
            "scheduler/rank_correlation_all": self.agreement,
        }

    def choose(self, view: View, k: int) -> Tensor:
        """Top-K of the scores, ties by index; uniform in round 1 of an untrained scheduler."""
        assert view.contexts is not None
        settings = self.scheduler.settings
        contexts = merge_contexts(view.contexts, settings.merge)
        scored = self.scheduler.score(contexts)
        # One copy from the device.
        together = torch.cat([part.reshape(view.n, -1) for part in scored], dim=1).cpu()
        scores, values, hidden = together[:, 0], together[:, 1], together[:, 2:]
        samples = sample_reward(
            view.margins, view.confidence(settings.uncertainty), settings.delta, view.margin_rounding
        )
        self.agreement = rank_correlation(scores, samples)
        loss = view.losses.double().mean().item()
        self.scored = Scored(loss, contexts, hidden, values, scores, samples)
        return top_k(scores, k) if self.trained else self.draw(view.n, k)

    def accept(self, choice: Choice) -> None:
        """Keep the arms that are trained on: the scheduler learns from these."""
        assert self.scored is not None
        self.pending, self.scored = self.scored.take(choice.indices), None

    def draw(self, n: int, k: int) -> Tensor:
        """Return a uniform choice, for the round before the scheduler has learned."""
        return torch.randperm(n, generator=self.generator)[:k].sort().values

    def state_dict(self) -> dict[str, Any]:
        return {
            **super().state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "trained": self.trained,
            "pending": vars(self.pending) if self.pending else None,
            "agreement": self.agreement,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.scheduler.load_state_dict(state["scheduler"])
        self.trained = state["trained"]
        self.agreement = state["agreement"]
        self.pending = Scored(**state["pending"]) if state["pending"] else None
