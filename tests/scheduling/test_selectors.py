"""Selectors: what they choose, and how SamS learns with a lag of one round."""

import math
import re
import shutil
import statistics
from collections.abc import Callable
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare, spearmanr
from torch import Tensor

from sams.runtime.errors import UserError
from sams.scheduling.rewards import batch_reward, reward, sample_reward
from sams.scheduling.scheduler import merge_contexts
from sams.scheduling.selection import Selection
from sams.scheduling.selectors.all import All
from sams.scheduling.selectors.base import Choice, Selector, Setup, View, top_k
from sams.scheduling.selectors.beta_dpo_filter import BetaDpoFilter
from sams.scheduling.selectors.low_margin import LowMargin
from sams.scheduling.selectors.oracle import Oracle
from sams.scheduling.selectors.random import Random
from sams.scheduling.selectors.reward import Reward
from sams.scheduling.selectors.sams import Sams
from sams.scheduling.selectors.table import SELECTORS as TABLE
from sams.scheduling.selectors.table import settings_of
from sams.scheduling.selectors.top_loss import TopLoss
from sams.scheduling.selectors.top_margin import TopMargin
from sams.study.settings import Scheduler as Settings
from tests.conftest import ROOT
from tests.scheduling.test_scheduler import LAYERS, WIDTH, saved, scheduler


def view(seed: int, n: int = 16, loss: float | None = None) -> View:
    generator = torch.Generator().manual_seed(seed)
    losses = torch.rand(n, generator=generator) if loss is None else torch.full((n,), loss)
    return View(
        losses,
        torch.randn(n, generator=generator),
        -50 * torch.rand(n, generator=generator),
        torch.randn(n, 2, LAYERS, WIDTH // 2, generator=generator),
        torch.rand(n, generator=generator) < 0.3,
    )


def with_margins(*margins: float) -> View:
    return View(torch.zeros(len(margins)), torch.tensor(margins), torch.zeros(len(margins)))


def pairs(n: int) -> View:
    """A batch that was not scored."""
    return View(numbers=torch.arange(n))


def with_flips(*flipped: int) -> View:
    zeros = torch.zeros(len(flipped))
    return View(zeros, zeros, zeros, flipped=torch.tensor(flipped, dtype=torch.bool))


def setup(folder: Path, **changes: Any) -> Setup:
    """Inputs of a training job, away from the defaults."""
    given = {
        "seed": 3,
        "selection": Selection(64, 5, (0.5, 0.25)),
        "scheduler": Settings(delta=0.9, uncertainty="mean", gamma=0.2, replay_rounds=3, replay_bytes=10**6),
        "weights": None,
        "train_encoder": False,
        "layers": LAYERS,
        "width": WIDTH,
        "device": torch.device("cpu"),
        "folder": folder,
        "rank": 1,
        "world": 2,
        "sum": lambda tensor: tensor,
    }
    return Setup(**given | changes)


class PerfectScheduler:
    """Knows what every arm is worth: the first number of its context."""

    settings = SimpleNamespace(merge="mean", delta=0.5, uncertainty="sum")
    trained_weights = 0

    def score(self, contexts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return contexts[:, 0, 0], contexts[:, 0, 0], contexts[:, :, 0]

    def learn(self, newest: Any) -> dict[str, float]:
        return {}


def perfect() -> Sams:
    return Sams(Setup(seed=0), PerfectScheduler(), gamma=0.5, trained=True)  # type: ignore[arg-type]


SELECTORS: dict[str, Callable[[], Selector]] = {
    "all": lambda: All(Setup()),
    "random": lambda: Random(Setup(seed=1)),
    "top_margin": lambda: TopMargin(Setup()),
    "low_margin": lambda: LowMargin(Setup()),
    "top_loss": lambda: TopLoss(Setup()),
    "reward": lambda: Reward(Setup(), delta=0.5),
    "beta_dpo_filter": lambda: BetaDpoFilter(Setup(seed=1)),
    "oracle": lambda: Oracle(Setup(seed=1)),
    "sams": perfect,
}


def inclusion(choose: Callable[[], Tensor], n: int, rounds: int) -> Tensor:
    """How often each of n pairs is chosen, as a share of the rounds."""
    counts = torch.zeros(n)
    for _ in range(rounds):
        counts[choose()] += 1
    return counts / rounds


# --- every selector -------------------------------------------------------------------------------


def values(n: int) -> st.SearchStrategy[list[float]]:
    # Few different values: ties are the rule.
    return st.lists(
        st.sampled_from([-1e4, -3.0, -0.5, 0.0, 0.1, 0.7, 2.0, 1e4]) | st.floats(-1e4, 1e4, width=32),
        min_size=n,
        max_size=n,
    )


@st.composite
def rounds(draw: st.DrawFn) -> list[tuple[View, int]]:
    """Three rounds of one batch size, each with its k; the last is full."""
    n = draw(st.integers(1, 12))
    shown = []
    for last in (False, False, True):
        losses, margins, logps, worth = (torch.tensor(draw(values(n))) for _ in range(4))
        flipped = torch.tensor(draw(st.lists(st.booleans(), min_size=n, max_size=n)))
        contexts = worth[:, None, None, None].expand(n, 2, 3, 4)
        k = n if last else draw(st.integers(1, n))
        shown.append((View(losses, margins, logps, contexts, flipped), k))
    return shown


def choose(selector: Selector, seen: View, n: int, k: int) -> torch.Tensor:
    """A selector's choice, accepted as the training loop does."""
    chosen = selector.choose(seen, k)
    selector.accept(Choice(chosen))
    return chosen


@pytest.mark.parametrize("name", SELECTORS)
@settings(max_examples=40, deadline=None)
@given(rounds())
def test_k_different_pairs_ascending_on_the_cpu(name: str, rounds: list[tuple[View, int]]) -> None:
    selector = SELECTORS[name]()
    for seen, k in rounds:
        n = len(seen.losses)
        selector.observe(seen)
        chosen = choose(selector, seen, n, k)
        assert chosen.dtype == torch.int64 and chosen.device.type == "cpu"
        assert chosen.tolist() == sorted(set(chosen.tolist()))
        assert len(chosen) == (n if name == "all" else k)
        assert chosen[0] >= 0 and chosen[-1] < n


@pytest.mark.parametrize("name", sorted(set(SELECTORS) - {"sams"}))
def test_a_restored_selector_chooses_as_the_first_does(name: str) -> None:
    first, second = SELECTORS[name](), SELECTORS[name]()
    for seed in range(3):
        first.observe(view(seed))
        choose(first, view(seed), 16, 8)
    second.load_state_dict(saved(first.state_dict()))
    for seed in range(3, 8):
        assert first.observe(view(seed)) == second.observe(view(seed))
        assert torch.equal(choose(first, view(seed), 16, 8), choose(second, view(seed), 16, 8))


@pytest.mark.parametrize("name", SELECTORS)
def test_the_global_random_numbers_are_left_alone(name: str) -> None:
    before = torch.get_rng_state()
    selector = SELECTORS[name]()
    selector.observe(view(0))
    choose(selector, view(0), 16, 8)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", sorted(set(SELECTORS) - {"all", "random"}))
def test_who_needs_a_view_says_so(name: str) -> None:
    assert SELECTORS[name]().needs_scores
    assert SELECTORS[name]().needs_contexts == (name == "sams")


# --- built from a run --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "by_hand"),
    [
        ("random", lambda: Random(Setup(seed=3))),
        ("oracle", lambda: Oracle(Setup(seed=3))),
        ("beta_dpo_filter", lambda: BetaDpoFilter(Setup(seed=3))),
        ("reward", lambda: Reward(Setup(), 0.9, "mean")),
    ],
)
def test_a_selector_is_built_from_seed_and_settings_of_the_run(
    name: str, by_hand: Callable[[], Selector], tmp_path: Path
) -> None:
    seen = replace(view(0, n=64), chosen_tokens=torch.arange(1, 65).float())
    built, expected = TABLE[name].load().build(setup(tmp_path)), by_hand()
    for selector in (built, expected):
        selector.observe(seen)
    assert built.choose(seen, 32).tolist() == expected.choose(seen, 32).tolist()


def test_sams_is_built_with_pool_seeds_and_weights_of_the_run(tmp_path: Path) -> None:
    given = setup(tmp_path)
    fresh = Sams.build(given)
    pool = fresh.scheduler.pool
    assert (pool.folder, pool.max_arms, pool.max_bytes) == (tmp_path, 3 * 32, 10**6)
    assert (pool.rank, pool.world, pool.exchange) == (1, 2, given.sum)
    assert (fresh.gamma, fresh.trained) == (0.2, False)
    seeded = torch.Generator().manual_seed(3).get_state()
    assert torch.equal(fresh.generator.get_state(), seeded) and torch.equal(
        pool.generator.get_state(), seeded
    )
    # Fewer rounds than the pool may remember: it has room for those of the run.
    short = Sams.build(setup(tmp_path, selection=Selection(64, 2, (0.5,))))
    assert short.scheduler.pool.max_arms == 2 * 32
    torch.save(fresh.scheduler.weights(), tmp_path / "scheduler.pt")
    assert Sams.build(setup(tmp_path, weights=tmp_path / "scheduler.pt", seed=4)).trained


# --- Top-K ----------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.integers(1, 12).flatmap(values), st.data())
def test_top_k_is_the_head_of_the_list_sorted_by_score_then_index(
    scores: list[float], data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, len(scores)))
    scores = torch.tensor(scores).tolist()  # as float32 holds them
    expected = sorted(sorted(range(len(scores)), key=lambda index: (-scores[index], index))[:k])
    assert top_k(torch.tensor(scores), k).tolist() == expected


def test_top_k_keeps_the_order_of_equals_in_a_large_batch() -> None:
    # Without `stable`, torch keeps it in short lists only.
    scores = torch.zeros(64)
    scores[::3] = 1.0
    others = [index for index in range(64) if index % 3]
    assert top_k(scores, 40).tolist() == sorted([*range(0, 64, 3), *others[:18]])


def test_a_perfect_scorer_is_never_random() -> None:
    n, k = 64, 32
    generator = torch.Generator().manual_seed(0)
    good = torch.randperm(n, generator=generator) < k
    scores = torch.where(good, 0.53, 0.50)
    selector, contexts = perfect(), scores[:, None, None, None].expand(n, 2, 1, 1)
    zeros = torch.zeros(n)
    often = inclusion(lambda: selector.choose(View(zeros, zeros, zeros, contexts), k), n, rounds=100)
    assert often.tolist() == good.float().tolist()
    # The trap: sampling by soft-max at temperature 1 from these scores is a coin's toss for every pair.
    sampled = inclusion(lambda: torch.multinomial(scores.softmax(0), k, generator=generator), n, rounds=2000)
    assert sampled[good].mean() < 0.51
    assert (sampled - 0.5).abs().max() < 0.05


# --- one by one -----------------------------------------------------------------------------------


def test_all_chooses_everything() -> None:
    assert All(Setup()).choose(pairs(5), 5).tolist() == [0, 1, 2, 3, 4]


def test_random_chooses_evenly_and_by_seed() -> None:
    selector = Random(Setup(seed=1))
    often = inclusion(lambda: selector.choose(pairs(8), 4), 8, rounds=2000)
    assert (often - 0.5).abs().max() < 0.05
    assert (
        Random(Setup(seed=3)).choose(pairs(64), 32).tolist()
        == Random(Setup(seed=3)).choose(pairs(64), 32).tolist()
    )
    assert (
        Random(Setup(seed=3)).choose(pairs(64), 32).tolist()
        != Random(Setup(seed=4)).choose(pairs(64), 32).tolist()
    )


def test_margin_and_loss_choose_their_extremes_and_the_lower_index_of_equals() -> None:
    seen = with_margins(1.0, -2.0, 3.0, 1.0, -2.0)
    seen.losses = torch.tensor([0.5, 0.9, 0.9, 0.1, 0.9])
    assert TopMargin(Setup()).choose(seen, 2).tolist() == [0, 2]
    assert LowMargin(Setup()).choose(seen, 1).tolist() == [1]
    assert LowMargin(Setup()).choose(seen, 3).tolist() == [0, 1, 4]
    assert TopLoss(Setup()).choose(seen, 2).tolist() == [1, 2]


@pytest.mark.parametrize(
    ("delta", "k", "expected"),
    # By hand: g(margin) = 0, 1/2, 1, 1/4 and 1 - g(log-prob) = 0, 1, 1/3, 2/3.
    [(1.0, 1, [2]), (0.5, 1, [1]), (0.5, 2, [1, 2]), (0.0, 2, [1, 3])],
)
def test_reward_takes_the_top_k_by_eq_7(delta: float, k: int, expected: list[int]) -> None:
    seen = View(
        torch.zeros(4), torch.tensor([0.0, 2.0, 4.0, 1.0]), torch.tensor([-10.0, -40.0, -20.0, -30.0])
    )
    assert Reward(Setup(), delta).choose(seen, k).tolist() == expected


def test_reward_takes_the_log_prob_per_token_where_told() -> None:
    logps, tokens = torch.tensor([-10.0, -20.0]), torch.tensor([1, 20])
    seen = View(torch.zeros(2), torch.zeros(2), logps, chosen_tokens=tokens)
    assert Reward(Setup(), 0.5).choose(seen, 1).tolist() == [1]
    assert Reward(Setup(), 0.5, "mean").choose(seen, 1).tolist() == [0]


def test_reward_does_not_rank_by_margins_that_are_rounding() -> None:
    logps = torch.tensor([-10.0, -20.0, -30.0])
    seen = View(torch.zeros(3), torch.tensor([0.02, 0.01, 0.0]), logps, margin_rounding=0.05)
    # Only the uncertainty is left: the least likely first.
    assert Reward(Setup(), 0.9).choose(seen, 1).tolist() == [2]
    seen.margin_rounding = 0.01
    assert Reward(Setup(), 0.9).choose(seen, 1).tolist() == [0]


def test_sams_is_not_rewarded_for_margins_that_are_rounding() -> None:
    seen = view(0)
    seen.margin_rounding = 2 * float(seen.margins.max() - seen.margins.min())
    selector = Sams(Setup(seed=0), scheduler(), gamma=0.5, trained=False)
    selector.choose(seen, 8)
    assert selector.scored is not None
    delta = selector.scheduler.settings.delta
    expected = sample_reward(torch.zeros(16), seen.chosen_logps, delta)
    torch.testing.assert_close(selector.scored.samples, expected.to(selector.scored.samples.dtype))


def test_the_share_of_the_margins_that_is_rounding_by_hand() -> None:
    def share(rounding: float, *margins: float) -> float:
        seen = View(torch.zeros(len(margins)), torch.tensor(margins), torch.zeros(len(margins)))
        seen.margin_rounding = rounding
        return float(seen.rounding_share())

    assert share(0.5, -1.0, 3.0, 0.0) == 0.125
    assert share(8.0, -1.0, 3.0) == share(0.5, 2.0, 2.0) == 1.0
    assert share(0.0, -1.0, 3.0) == share(0.0, 2.0, 2.0) == 0.0


def test_reward_of_equal_pairs_goes_by_index() -> None:
    # Round 1: all margins are 0, and here the log-probs are equal too.
    assert Reward(Setup(), 0.5).choose(with_margins(0.0, 0.0, 0.0, 0.0), 2).tolist() == [0, 1]


# --- oracle ---------------------------------------------------------------------------------------


@given(st.lists(st.booleans(), min_size=1, max_size=12), st.integers(0, 9), st.data())
def test_oracle_takes_no_flipped_pair_while_clean_ones_last(
    flipped: list[bool], seed: int, data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, len(flipped)))
    chosen = Oracle(Setup(seed=seed)).choose(with_flips(*flipped), k)
    clean = flipped.count(False)
    assert sum(flipped[index] for index in chosen) == max(0, k - clean)


def test_oracle_draws_evenly_among_the_clean_and_then_among_the_flipped() -> None:
    selector = Oracle(Setup(seed=1))
    few = inclusion(lambda: selector.choose(with_flips(1, 0, 0, 1, 0, 0), 2), 6, rounds=2000)
    assert (few - torch.tensor([0.0, 0.5, 0.5, 0.0, 0.5, 0.5])).abs().max() < 0.05
    many = inclusion(lambda: selector.choose(with_flips(1, 0, 1, 1, 0, 1), 4), 6, rounds=2000)
    assert (many - torch.tensor([0.5, 1.0, 0.5, 0.5, 1.0, 0.5])).abs().max() < 0.05


def test_oracle_refuses_data_without_flags_and_says_what_to_do() -> None:
    with pytest.raises(UserError, match=r"preference\.selector: .*flipped.*; .*another selector"):
        Oracle(Setup(seed=1)).choose(with_margins(0.0, 1.0), 1)


# --- beta-DPO's filter ----------------------------------------------------------------------------

MARGINS = [-1.0, 0.2, 0.5, 1.5, 3.0]


def filter_at(mean: float, deviation: float) -> BetaDpoFilter:
    selector = BetaDpoFilter(Setup(seed=1))
    selector.mean, selector.deviation = mean, deviation
    return selector


def densities(mean: float, deviation: float) -> list[float]:
    """p(M_i) of MARGINS, scaled to a sum of 1."""
    weights = [statistics.NormalDist(mean, deviation).pdf(margin) for margin in MARGINS]
    return [weight / sum(weights) for weight in weights]


def test_filter_follows_mean_and_deviation_with_momentum() -> None:
    first, second = [1.0, 2.0, 6.0], [-4.0, 0.0, 1.0]
    selector = BetaDpoFilter(Setup(seed=1))
    selector.observe(with_margins(*first))
    metrics = selector.observe(with_margins(*second))
    mean = 0.9 * 0.1 * statistics.mean(first) + 0.1 * statistics.mean(second)
    deviation = 0.9 * 0.1 * statistics.pstdev(first) + 0.1 * statistics.pstdev(second)
    assert selector.mean == pytest.approx(mean, abs=1e-12)
    assert selector.deviation == pytest.approx(deviation, abs=1e-12)
    assert metrics == {"selector/margin_mean": selector.mean, "selector/margin_deviation": selector.deviation}


def test_filter_draws_one_pair_by_the_density_of_its_margin() -> None:
    selector, draws = filter_at(0.6, 0.8), 4000
    often = inclusion(lambda: selector.choose(with_margins(*MARGINS), 1), 5, draws)
    expected = [draws * p for p in densities(0.6, 0.8)]
    assert chisquare((often * draws).round().tolist(), expected).pvalue > 1e-3


def test_filter_draws_several_without_replacement() -> None:
    selector, draws = filter_at(0.6, 0.8), 4000
    p = densities(0.6, 0.8)
    expected = torch.zeros(5)
    for a, b, c in permutations(range(5), 3):
        expected[[a, b, c]] += p[a] * p[b] / (1 - p[a]) * p[c] / (1 - p[a] - p[b])
    often = inclusion(lambda: selector.choose(with_margins(*MARGINS), 3), 5, draws)
    assert expected.sum() == pytest.approx(3.0, abs=1e-5)
    assert (often - expected).abs().max() < 0.03  # four standard errors


def test_filter_orders_pairs_whose_weights_underflow() -> None:
    seen = with_margins(9.0, 5.0, -3.0, 7.0, -4.0)
    assert all(math.exp(-((margin / 0.01) ** 2) / 2) == 0.0 for margin in seen.margins.tolist())
    assert filter_at(0.0, 0.01).choose(seen, 3).tolist() == [1, 2, 4]


def test_filter_is_uniform_while_all_margins_are_equal() -> None:
    for margin in (0.0, 0.1):  # 0 is round 1, where policy and reference agree
        selector, seen = BetaDpoFilter(Setup(seed=1)), with_margins(*[margin] * 48)
        selector.observe(seen)
        often = inclusion(lambda selector=selector, seen=seen: selector.choose(seen, 24), 48, rounds=2000)
        assert (often - 0.5).abs().max() < 0.06


def test_filter_does_not_depend_on_the_unit_of_the_margins() -> None:
    plain, scaled = BetaDpoFilter(Setup(seed=1)), BetaDpoFilter(Setup(seed=1))
    for seed in range(5):
        seen, in_other_unit = view(seed), view(seed)
        in_other_unit.margins = seen.margins / 64
        plain.observe(seen)
        scaled.observe(in_other_unit)
        assert torch.equal(plain.choose(seen, 8), scaled.choose(in_other_unit, 8))


# --- SamS -----------------------------------------------------------------------------------------


def test_sams_takes_the_top_k_of_its_scores() -> None:
    selector = Sams(Setup(seed=0), scheduler(), gamma=0.5, trained=True)
    for seed in range(5):
        seen = view(seed)
        assert seen.contexts is not None
        selector.observe(seen)
        scores = selector.scheduler.score(merge_contexts(seen.contexts, "concat"))[0].tolist()
        chosen = choose(selector, seen, 16, 4).tolist()
        assert {scores[index] for index in chosen} == set(sorted(scores)[-4:])


def test_sams_breaks_ties_by_index() -> None:
    selector = Sams(Setup(seed=0), scheduler(), gamma=0.5, trained=True)
    seen = view(0)
    assert seen.contexts is not None
    seen.contexts[:] = seen.contexts[0].clone()
    assert choose(selector, seen, 16, 4).tolist() == [0, 1, 2, 3]


def test_an_untrained_scheduler_leaves_round_one_to_chance() -> None:
    chosen = {
        tuple(Sams(Setup(seed=seed), scheduler(), gamma=0.5, trained=False).choose(view(0), 8).tolist())
        for seed in range(5)
    }
    assert len(chosen) == 5


def test_rewards_are_those_of_the_previous_round() -> None:
    selector = Sams(Setup(seed=0), scheduler(replay_sample=0), gamma=0.5, trained=True)
    first, second = view(1, loss=0.7), view(2, loss=0.6)
    assert selector.observe(first) == {}
    chosen = choose(selector, first, 16, 8)
    metrics = selector.observe(second)
    kept = selector.scheduler.pool.sample(8)
    assert kept is not None
    expected = reward(
        batch_reward(0.7, 0.6), sample_reward(first.margins, first.chosen_logps, 0.5)[chosen], gamma=0.5
    )
    assert metrics["scheduler/batch_reward"] == pytest.approx(batch_reward(0.7, 0.6), abs=1e-6)
    torch.testing.assert_close(kept.rewards.sort().values, expected.float().sort().values, rtol=0, atol=1e-3)


def test_a_round_reports_how_well_the_last_scores_agree_with_the_rewards() -> None:
    selector = Sams(Setup(seed=0), scheduler(exploration=3.0), gamma=0.25, trained=True)
    first, second = view(1), view(2)
    assert first.contexts is not None
    scores, values, _ = selector.scheduler.score(merge_contexts(first.contexts, "concat"))
    chosen = choose(selector, first, 16, 8)
    metrics = selector.observe(second)
    samples = sample_reward(first.margins, first.chosen_logps, 0.5)
    r_b = batch_reward(first.losses.mean().item(), second.losses.mean().item())
    rewards = reward(r_b, samples[chosen], gamma=0.25)
    expected = {
        "reward": rewards.mean().item(),
        "estimate_error": (values[chosen] - rewards).abs().mean().item(),
        "estimate_bias": (scores[chosen] - rewards).mean().item(),
        "rank_correlation": spearmanr(scores[chosen], rewards).statistic,
        "rank_correlation_all": spearmanr(scores, samples).statistic,
    }
    found = {name: float(metrics[f"scheduler/{name}"]) for name in expected}
    assert found == pytest.approx(expected, abs=1e-6)


def test_there_is_one_batch_reward_per_round() -> None:
    selector = Sams(Setup(seed=0), scheduler(), gamma=0.5, trained=True)
    choose(selector, view(1), 16, 8)
    assert selector.observe(view(2)) != {}
    assert selector.observe(view(3)) == {}


def test_sams_learns_from_full_rounds_too() -> None:
    selector = Sams(Setup(seed=0), scheduler(), gamma=0.5, trained=False)
    for seed, k in enumerate([16, 8, 16, 4]):
        selector.observe(view(seed))
        assert len(choose(selector, view(seed), 16, k)) == k
    assert selector.observe(view(9))["scheduler/pool"] == 16 + 8 + 16 + 4


def test_sams_continues_from_its_state_bit_by_bit() -> None:
    first = Sams(Setup(seed=0), scheduler(), gamma=0.5, trained=False)
    for seed in range(3):
        first.observe(view(seed))
        choose(first, view(seed), 16, 8)
    state = saved(first.state_dict())
    second = Sams(Setup(seed=5), scheduler(), gamma=0.5, trained=False)
    shutil.copytree(first.scheduler.pool.folder, second.scheduler.pool.folder, dirs_exist_ok=True)
    second.load_state_dict(state)
    for seed in range(3, 8):
        assert first.observe(view(seed)) == second.observe(view(seed))
        assert torch.equal(choose(first, view(seed), 16, 8), choose(second, view(seed), 16, 8))


def test_sams_that_has_not_chosen_yet_can_be_saved_and_restored() -> None:
    state = saved(Sams(Setup(seed=0), scheduler(), gamma=0.5, trained=False).state_dict())
    second = Sams(Setup(seed=0), scheduler(), gamma=0.5, trained=False)
    second.load_state_dict(state)
    assert second.pending is None and second.observe(view(0)) == {}


def test_sams_learns_from_the_arms_that_all_processes_agreed_on() -> None:
    """A process whose own scores would choose otherwise stores rank 0's arms."""
    agreed = torch.tensor([0, 2])
    selector = Sams(Setup(seed=0), scheduler(), gamma=0.5, trained=True)
    generator = torch.Generator().manual_seed(0)
    losses, margins, logps = (torch.randn(4, generator=generator) for _ in range(3))
    contexts = torch.randn(4, 2, 3, 8, generator=generator)
    own = selector.choose(View(losses, margins, logps, contexts), 2)
    assert own.tolist() != agreed.tolist()
    selector.accept(Choice(agreed))
    assert selector.pending is not None
    torch.testing.assert_close(selector.pending.contexts[:, :, :8], contexts[agreed, 0])


@pytest.mark.parametrize("name", TABLE)
def test_the_table_says_what_the_class_says(name: str) -> None:
    selector = TABLE[name].load()
    assert selector.needs_scores == TABLE[name].needs_scores
    assert selector.needs_reference == TABLE[name].needs_reference
    assert selector.__module__ == TABLE[name].module
    if TABLE[name].needs_settings:
        with pytest.raises(UserError, match="is required"):
            settings_of(name, {})
    else:
        settings_of(name, {})


def test_the_page_lists_every_selector() -> None:
    page = (ROOT / "docs" / "selectors.md").read_text(encoding="utf-8")
    table = page.partition("| name |")[2].partition("\n\n")[0]
    assert re.findall(r"^\| `(\w+)` ", table, re.MULTILINE) == list(TABLE)
    unseen = re.search(r"^((?:`\w+`(?:, | and )?)+) need no scoring pass", page, re.MULTILINE)
    assert unseen is not None
    assert set(re.findall(r"`(\w+)`", unseen[1])) == {name for name in TABLE if not TABLE[name].needs_scores}
