"""Selector `sams` away from its defaults: random settings against Algorithm 1 in plain lines."""

from pathlib import Path
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sams.scheduling.networks import RANDOM_HEADS
from sams.scheduling.scheduler import Scheduler, context_width
from sams.scheduling.selection import Selection
from sams.scheduling.selectors.base import Choice, Setup, View
from sams.scheduling.selectors.sams import Sams
from sams.study.settings import Scheduler as Settings
from tests.reference_sams import Adam, batch_reward, exploit, residual_net
from tests.scheduling.test_scheduler import LAYERS, pool

POLICY_WIDTH, N, ROUNDS, SEED = 8, 12, 5, 3
SMALL = {"connector_width": 8, "encoder_width": 8, "encoder_layers": 1, "width": 16, "depth": 4, "block": 2}

some_settings = st.fixed_dictionaries(
    {
        "gamma": st.sampled_from([0.0, 0.2, 0.9, 1.0]),
        "delta": st.sampled_from([0.0, 0.1, 0.7, 1.0]),
        "exploration": st.sampled_from([0.0, 0.5, 3.0]),
        "uncertainty": st.sampled_from(["sum", "mean"]),
        "merge": st.sampled_from(["concat", "mean", "difference"]),
        "updates_per_round": st.integers(1, 3),
        "replay_sample": st.sampled_from([0, 3, 100]),
        "learning_rate": st.sampled_from([1e-3, 1e-2]),
        "weight_decay": st.sampled_from([0.0, 0.3]),
    }
)


def views(seed: int) -> list[View]:
    """Batches whose margins, log-probs and lengths order the pairs differently."""
    generator = torch.Generator().manual_seed(seed)
    return [
        View(
            losses=0.5 + torch.rand(N, generator=generator),
            margins=torch.randn(N, generator=generator),
            chosen_logps=-50 * torch.rand(N, generator=generator) - 1,
            contexts=torch.randn(N, 2, LAYERS, POLICY_WIDTH, generator=generator),
            chosen_tokens=torch.randint(1, 40, (N,), generator=generator).float(),
        )
        for _ in range(ROUNDS)
    ]


def merged(contexts: Tensor, how: str) -> Tensor:
    chosen, rejected = contexts.unbind(1)
    parts = {
        "concat": torch.cat([chosen, chosen - rejected], -1),
        "mean": (chosen + rejected) / 2,
        "difference": chosen - rejected,
    }
    return parts[how]


def scaled(values: Tensor) -> Tensor:
    values = values.double()
    return (values - values.min()) / (values.max() - values.min())


def expected_rounds(
    batches: list[View], k: int, given: dict[str, Any], weights: dict[str, Any], pretrained: bool
) -> list[tuple[list[int], dict[str, float]]]:
    """Choice and losses of each round, from the equations of the paper."""
    f_s, f_x = ({name: w.detach().clone() for name, w in net.items()} for net in weights.values())
    fits = [Adam(net, given["learning_rate"], given["weight_decay"]) for net in (f_s, f_x)]
    uniform, replay = (torch.Generator().manual_seed(seed) for seed in (SEED, 0))
    pending: tuple[float, list[Tensor]] | None = None
    kept: list[list[Tensor]] = []
    found = []
    for view in batches:
        assert view.contexts is not None and view.chosen_tokens is not None
        metrics = {}
        if pending is not None:
            before, (context, h, value, sample) = pending
            r_b = batch_reward(before, view.losses.double().mean().item())
            rewards = given["gamma"] * torch.sigmoid(torch.tensor(r_b).double())
            rewards = (rewards + (1 - given["gamma"]) * sample.sigmoid()).float()
            newest = [context, h, value, rewards]
            for _ in range(given["updates_per_round"]):
                drawn = torch.randperm(len(kept), generator=replay)[: given["replay_sample"]].tolist()
                old = [torch.stack([kept[arm][part].float() for arm in drawn]) for part in range(4) if drawn]
                context, h, value, target = (
                    torch.cat([new, *old[part : part + 1]]) for part, new in enumerate(newest)
                )
                losses = [
                    (exploit(f_s, context, RANDOM_HEADS, SMALL["block"])[0] - target).square().mean(),
                    (residual_net(f_x, h)[0] - (target - value)).square().mean(),
                ]
                for fit, loss in zip(fits, losses, strict=True):
                    fit.step(loss)
            kept += [[part[arm].half() for part in newest] for arm in range(k)]
            metrics = {"r_b": r_b, "exploitation": losses[0].item(), "exploration": losses[1].item()}
        contexts = merged(view.contexts, given["merge"])
        with torch.no_grad():
            value, h = exploit(f_s, contexts, RANDOM_HEADS, SMALL["block"])
            score = value + given["exploration"] * residual_net(f_x, h)[0]
        logps = view.chosen_logps / (view.chosen_tokens if given["uncertainty"] == "mean" else 1)
        sample = given["delta"] * scaled(view.margins) + (1 - given["delta"]) * (1 - scaled(logps))
        ranked = pretrained or pending is not None
        order = (-score).argsort(stable=True) if ranked else torch.randperm(N, generator=uniform)
        chosen = sorted(order[:k].tolist())
        pending = view.losses.double().mean().item(), [part[chosen] for part in (contexts, h, value, sample)]
        found.append((chosen, metrics))
    return found


@settings(max_examples=25, deadline=None)
@given(some_settings, st.integers(0, 10**6), st.integers(1, N), st.booleans())
def test_every_setting_acts_as_the_equations_say(
    given: dict[str, Any], seed: int, k: int, pretrained: bool
) -> None:
    scheduler = Scheduler(
        Settings.model_validate({**given, **SMALL}),
        layers=LAYERS,
        width=context_width(POLICY_WIDTH, given["merge"]),
        seed=seed,
        device=torch.device("cpu"),
        train_encoder=False,
        pool=pool(),
    )
    selector = Sams(Setup(seed=SEED), scheduler, gamma=given["gamma"], trained=pretrained)
    batches = views(seed)
    weights = {name: dict(net) for name, net in scheduler.weights().items()}
    for view, (chosen, expected) in zip(
        batches, expected_rounds(batches, k, given, weights, pretrained), strict=True
    ):
        metrics = selector.observe(view)
        choice = selector.choose(view, k)
        selector.accept(Choice(choice))
        assert choice.tolist() == chosen
        names = ("batch_reward", "exploitation_loss", "exploration_loss")
        for name, value in zip(names, expected.values(), strict=False):
            assert abs(metrics[f"scheduler/{name}"] - value) < 1e-5


def test_both_pretrained_networks_are_loaded(tmp_path: Path) -> None:
    given = Settings.model_validate(SMALL | {"exploration": 3.0})

    def build(seed: int, weights: Path | None) -> Sams:
        return Sams.build(
            Setup(
                seed=seed,
                selection=Selection(batch_size=N, rounds=ROUNDS, ratios=(0.5,)),
                scheduler=given,
                weights=weights,
                train_encoder=False,
                layers=LAYERS,
                width=POLICY_WIDTH,
                device=torch.device("cpu"),
                folder=tmp_path / f"pool{seed}{weights is None}",
                rank=0,
                world=1,
                sum=lambda tensor: tensor,
            )
        )

    pretrained = build(1, None).scheduler
    torch.save(pretrained.weights(), tmp_path / "scheduler.pt")
    contexts = merged(views(0)[0].contexts, given.merge)
    [scores, *_], [fresh, *_] = pretrained.score(contexts), build(2, None).scheduler.score(contexts)
    loaded = build(2, tmp_path / "scheduler.pt")
    assert torch.equal(loaded.scheduler.score(contexts)[0], scores) and not torch.equal(fresh, scores)
    assert torch.equal(
        torch.cat([w.flatten() for w in loaded.scheduler.exploration.state_dict().values()]),
        torch.cat([w.flatten() for w in pretrained.exploration.state_dict().values()]),
    )
