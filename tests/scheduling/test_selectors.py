"""Selectors: what they choose, and how SamS learns with a lag of one round."""

import pytest
import torch

from sams.scheduling.rewards import batch_reward, reward, sample_reward
from sams.scheduling.selectors import All, Random, Sams, View
from tests.scheduling.test_scheduler import LAYERS, WIDTH, saved, scheduler


def view(seed: int, n: int = 16, loss: float | None = None) -> View:
    generator = torch.Generator().manual_seed(seed)
    losses = torch.rand(n, generator=generator) if loss is None else torch.full((n,), loss)
    return View(
        losses,
        torch.randn(n, generator=generator),
        -50 * torch.rand(n, generator=generator),
        torch.randn(n, LAYERS, WIDTH, generator=generator),
    )


def test_all_chooses_everything() -> None:
    assert All().choose(None, 5, 5).tolist() == [0, 1, 2, 3, 4]


def test_random_chooses_k_without_repeats_evenly_and_by_seed() -> None:
    selector = Random(seed=1)
    counts = torch.zeros(8)
    for _ in range(2000):
        chosen = selector.choose(None, 8, 4)
        assert chosen.tolist() == sorted(set(chosen.tolist()))
        counts[chosen] += 1
    assert (counts / 2000 - 0.5).abs().max() < 0.05
    assert Random(3).choose(None, 64, 32).tolist() == Random(3).choose(None, 64, 32).tolist()


def test_random_continues_from_its_state() -> None:
    first = Random(seed=1)
    first.choose(None, 8, 4)
    second = Random(seed=9)
    second.load_state_dict(first.state_dict())
    assert first.choose(None, 8, 4).tolist() == second.choose(None, 8, 4).tolist()


def test_sams_takes_the_top_k_of_its_scores() -> None:
    selector = Sams(scheduler(), gamma=0.5, seed=0, trained=True)
    seen = view(0)
    assert seen.contexts is not None
    scores = selector.scheduler.score(seen.contexts)[0]
    # Sampling by soft-max at temperature 1 would include the best scorer barely more often than any other.
    for _ in range(5):
        selector.observe(seen)
        assert (
            selector.choose(seen, 16, 1).item() == selector.scheduler.score(seen.contexts)[0].argmax().item()
        )
    assert len(scores) == 16


def test_sams_breaks_ties_by_index() -> None:
    selector = Sams(scheduler(), gamma=0.5, seed=0, trained=True)
    seen = view(0)
    assert seen.contexts is not None
    seen.contexts[:] = seen.contexts[0].clone()
    assert selector.choose(seen, 16, 4).tolist() == [0, 1, 2, 3]


def test_an_untrained_scheduler_leaves_round_one_to_chance() -> None:
    chosen = {
        tuple(Sams(scheduler(), gamma=0.5, seed=seed, trained=False).choose(view(0), 16, 8).tolist())
        for seed in range(5)
    }
    assert len(chosen) == 5


def test_rewards_are_those_of_the_previous_round() -> None:
    selector = Sams(scheduler(replay_sample=0), gamma=0.5, seed=0, trained=True)
    first, second = view(1, loss=0.7), view(2, loss=0.6)
    assert selector.observe(first) == {}
    chosen = selector.choose(first, 16, 8)
    metrics = selector.observe(second)
    kept = selector.scheduler.pool.sample(8)
    assert kept is not None
    expected = reward(
        batch_reward(0.7, 0.6), sample_reward(first.margins, first.chosen_logps, 0.5)[chosen], gamma=0.5
    )
    assert metrics["scheduler/batch_reward"] == pytest.approx(batch_reward(0.7, 0.6), abs=1e-6)
    torch.testing.assert_close(kept.rewards.sort().values, expected.float().sort().values, rtol=0, atol=1e-3)


def test_there_is_one_batch_reward_per_round() -> None:
    selector = Sams(scheduler(), gamma=0.5, seed=0, trained=True)
    selector.choose(view(1), 16, 8)
    assert selector.observe(view(2)) != {}
    assert selector.observe(view(3)) == {}


def test_sams_continues_from_its_state_bit_by_bit() -> None:
    first = Sams(scheduler(), gamma=0.5, seed=0, trained=False)
    for seed in range(3):
        first.observe(view(seed))
        first.choose(view(seed), 16, 8)
    second = Sams(scheduler(), gamma=0.5, seed=5, trained=False)
    second.load_state_dict(saved(first.state_dict()))
    for seed in range(3, 8):
        assert first.observe(view(seed)) == second.observe(view(seed))
        assert torch.equal(first.choose(view(seed), 16, 8), second.choose(view(seed), 16, 8))
