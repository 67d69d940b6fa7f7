"""Baselines of the literature: their formulas by hand, and against autograd and the authors' definitions."""

import math
from dataclasses import replace
from statistics import NormalDist
from typing import Any

import pytest
import torch
from scipy.stats import rankdata
from torch import Tensor
from torch.nn.functional import logsigmoid

from sams.runtime.errors import UserError
from sams.scheduling.selection import Selection
from sams.scheduling.selectors.base import Choice, Selector, Setup, View, checked, top_k
from sams.scheduling.selectors.easy_to_hard import EasyToHard
from sams.scheduling.selectors.perplexity_difference import PerplexityDifference, fitted, threshold_of
from sams.scheduling.selectors.small_loss import SmallLoss
from sams.scheduling.selectors.table import SELECTORS as TABLE
from sams.scheduling.selectors.table import find, settings_of
from tests.scheduling.test_scheduler import saved
from tests.scheduling.test_selectors import SELECTORS
from tests.training.test_against_trl import BETA, Case, draw_pairs, models, trl_steps

SCORE = {"column": "score"}
BASELINES: list[tuple[str, dict[str, Any]]] = [
    ("reference_gap", {}),
    ("reference_gap", {"use": "weight", "length": "sum"}),
    ("reference_gap", {"use": "label", "temperature": 2.0}),
    ("small_loss", {"warmup_epochs": 1}),
    ("small_loss", {"warmup_epochs": 0, "momentum": 0.5}),
    ("uncertainty", {}),
    ("easy_to_hard", SCORE),
    ("rho_loss", SCORE),
    ("lossdiff_irm", SCORE),
    ("perplexity_difference", {}),
    ("perplexity_difference", {"use": "flip"}),
    ("perplexity_difference", {"use": "flip", "model": "policy", "threshold": 0.1}),
    ("dr_dpo", {}),
    ("wpo", {"normalise": True}),
    ("beta_dpo", {"level": "pair"}),
]
PAIRS = 40


def built(name: str, **settings: Any) -> Selector:
    """A selector as a training job builds it."""
    setup = Setup(seed=3, pairs=PAIRS, beta=0.1, selection=Selection(8, 10, (0.5,)))
    return find(name).load().build(setup, **settings_of(name, settings))


def drawn(seed: int, n: int = 8) -> View:
    """A view of n pairs of the data with random values."""
    generator = torch.Generator().manual_seed(seed)

    def values(scale: float = 1.0) -> Tensor:
        return scale * torch.randn(n, generator=generator)

    numbers = torch.randperm(PAIRS, generator=generator)[:n]
    return View(
        losses=values().abs(),
        margins=values(),
        chosen_logps=-values(20).abs(),
        rejected_logps=-values(20).abs(),
        reference_chosen=-values(20).abs(),
        reference_rejected=-values(20).abs(),
        chosen_tokens=torch.randint(1, 30, (n,), generator=generator),
        rejected_tokens=torch.randint(1, 30, (n,), generator=generator),
        ids=[f"pair-{number}" for number in numbers.tolist()],
        numbers=numbers,
        round=1 + seed,
        epoch=1 + seed // 3,
        columns={"score": values().double()},
    )


def without_scores(view: View) -> View:
    """The view as a selector without the scoring pass sees it."""
    nothing = torch.empty(0)
    return replace(view, losses=nothing, margins=nothing, chosen_logps=nothing, rejected_logps=nothing)


def answer(selector: Selector, view: View, k: int) -> Choice:
    """The answer of a selector in one round, as a training loop asks for it."""
    view = view if selector.needs_scores else without_scores(view)
    selector.observe(view)
    choice = checked(selector.choose(view, k), view.n, k)
    selector.accept(choice)
    return choice


def ratios(*gaps: float, length: int = 1) -> View:
    """A view whose reference prefers the rejected responses by these gaps, summed over the tokens."""
    gap = torch.tensor(gaps)
    return View(
        reference_chosen=-10 - gap,
        reference_rejected=torch.full_like(gap, -10.0),
        chosen_tokens=torch.full_like(gap, length),
        rejected_tokens=torch.full_like(gap, length),
        numbers=torch.arange(len(gaps)),
    )


# --- every baseline ---------------------------------------------------------------------------------


def test_every_selector_of_the_table_is_tested() -> None:
    tested = {name for name, _ in BASELINES} | set(SELECTORS) | {"selective"}  # `selective` is `all`
    assert tested == set(TABLE)


@pytest.mark.parametrize(("name", "settings"), BASELINES)
def test_k_pairs_the_global_random_numbers_and_a_restored_state(name: str, settings: dict[str, Any]) -> None:
    before = torch.get_rng_state()
    first, second = built(name, **settings), built(name, **settings)
    for seed in range(3):
        assert len(answer(first, drawn(seed), k=4).indices) == 4
    second.load_state_dict(saved(first.state_dict()))
    for seed, k in [(3, 3), (4, 8), (5, 1), (6, 4)]:
        one, other = answer(first, drawn(seed), k), answer(second, drawn(seed), k)
        assert len(one.indices) == k
        for part, same in zip(vars(one).values(), vars(other).values(), strict=True):
            assert part is same is None or torch.equal(part, same)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("name", "settings"), BASELINES)
def test_no_value_is_so_large_that_an_answer_is_refused(name: str, settings: dict[str, Any]) -> None:
    selector, view = built(name, **settings), drawn(0)
    for part in ("losses", "margins", "chosen_logps", "rejected_logps", "reference_chosen"):
        setattr(view, part, 1e4 * getattr(view, part))
    answer(selector, view, k=8)


@pytest.mark.parametrize(
    ("name", "settings", "change", "message"),
    [
        (
            "rho_loss",
            SCORE,
            {"columns": {}},
            "column 'score': the selector reads it, and the data does not have it; ",
        ),
        ("easy_to_hard", SCORE, {"columns": {"score": ["1", "b"]}}, "column 'score': '1' is not a number; "),
        (
            "lossdiff_irm",
            SCORE,
            {"columns": {"score": [1.0, None]}},
            "column 'score': None is not a number; ",
        ),
        (
            "rho_loss",
            SCORE,
            {"columns": {"score": torch.tensor([0.1, math.nan])}},
            "column 'score': the value is nan for pair b; ",
        ),
        ("reference_gap", {}, {}, "selector: .* under the reference, and there is none; "),
        ("perplexity_difference", {}, {}, "selector: .* under the reference, and there is none; "),
        ("wpo", {}, {}, "selector: .* per token, and this loss has sums only; "),
    ],
)
def test_what_is_missing_is_named_in_one_line(
    name: str, settings: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    view = View(losses=torch.ones(2), margins=torch.ones(2), ids=["a", "b"], numbers=torch.arange(2))
    with pytest.raises(UserError, match=f"^{message}"):
        built(name, **settings).choose(replace(view, **change), 1)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("rho_loss", {}, "selector rho_loss: .*'column' is required"),
        ("dr_dpo", {"beta_prime": 0}, "'beta_prime': .* greater than 0"),
        ("small_loss", {"momentum": 1.0}, "'momentum': .* less than 1"),
        (
            "reference_gap",
            {"use": "drop"},
            "'use': .* 'filter', 'weight' or 'label'.* 'drop'",
        ),
    ],
)
def test_a_wrong_setting_is_named_in_one_line(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        settings_of(name, settings)


# --- the reference's own preference -----------------------------------------------------------------


def test_reference_gap_keeps_pairs_with_whose_label_the_reference_agrees() -> None:
    view = ratios(2.0, -1.0, 0.5, -3.0)
    assert answer(built("reference_gap"), view, 2).indices.tolist() == [1, 3]
    # Summed, pair 0 has the smallest gap; per token, pair 1: -4/8 against -2/2.
    long = replace(
        ratios(-4.0, -2.0), chosen_tokens=torch.tensor([8, 2]), rejected_tokens=torch.tensor([8, 2])
    )
    long.reference_chosen, long.reference_rejected = torch.tensor([-4.0, -2.0]), torch.tensor([-8.0, -4.0])
    assert answer(built("reference_gap", length="sum"), long, 1).indices.tolist() == [0]
    assert answer(built("reference_gap", length="mean"), long, 1).indices.tolist() == [1]


def test_reference_gap_as_label_is_the_preference_of_the_reference_between_both() -> None:
    view = ratios(2.0, -1.0, 0.5, -3.0)
    choice = answer(built("reference_gap", use="label", length="sum"), view, 4)
    assert choice.labels is not None and choice.weights is None
    assert view.reference_chosen is not None and view.reference_rejected is not None
    likely = view.reference_chosen.double().exp()
    expected = likely / (likely + view.reference_rejected.double().exp())
    torch.testing.assert_close(choice.labels.double(), expected, rtol=0, atol=1e-7)


def test_reference_gap_as_weight_has_a_mean_of_one_over_the_chosen() -> None:
    # sigmoid(log 3 / 1) = 3/4 and sigmoid(-log 3) = 1/4, at twice the temperature for twice the gap.
    view = ratios(-2 * math.log(3), 2 * math.log(3), 50.0)
    choice = answer(built("reference_gap", use="weight", length="sum", temperature=2.0), view, 2)
    assert choice.indices.tolist() == [0, 1] and choice.weights is not None
    assert choice.weights.tolist() == pytest.approx([1.5, 0.5], abs=1e-6)


def test_a_pair_is_ranked_right_where_its_loss_is_at_most_that_of_the_gap() -> None:
    """The statement of arXiv 2405.19534 that the gap is taken from."""
    view, beta = drawn(1, n=32), 0.3
    assert view.reference_chosen is not None and view.reference_rejected is not None
    gap = view.reference_rejected - view.reference_chosen
    loss = -logsigmoid(beta * (view.chosen_logps - view.rejected_logps + gap))
    right = view.chosen_logps >= view.rejected_logps
    assert torch.equal(right, loss <= -logsigmoid(beta * gap)) and 0 < right.sum() < 32


# --- perplexity difference ----------------------------------------------------------------------------


def test_perplexity_difference_by_the_definition_of_perplexity() -> None:
    view = drawn(2)
    assert view.chosen_tokens is not None and view.rejected_tokens is not None
    perplexity = [
        [math.exp(-logp / tokens) for logp, tokens in zip(logps.tolist(), lengths.tolist(), strict=True)]
        for logps, lengths in (
            (view.chosen_logps, view.chosen_tokens),
            (view.rejected_logps, view.rejected_tokens),
        )
    ]
    expected = [math.log(chosen / rejected) for chosen, rejected in zip(*perplexity, strict=True)]
    selector = built("perplexity_difference", use="flip", model="policy", threshold=0.2)
    assert isinstance(selector, PerplexityDifference)
    assert selector.differences(view).tolist() == pytest.approx(expected, abs=1e-6)
    choice = answer(selector, view, 8)
    assert choice.labels is not None
    assert choice.labels.tolist() == [float(value <= 0.2) for value in expected]
    lowest = built("perplexity_difference", model="policy")
    assert answer(lowest, view, 3).indices.tolist() == top_k(-torch.tensor(expected), 3).tolist()


def test_perplexity_difference_leaves_out_the_unclear_pairs() -> None:
    # The gaps are differences of one token each; farthest from 0.5 are -2.0, 1.4 and -0.1.
    view = ratios(-2.0, 0.6, 1.4, -0.1)
    choice = answer(built("perplexity_difference", use="flip", threshold=0.5), view, 3)
    assert choice.indices.tolist() == [0, 2, 3]
    assert choice.labels is not None and choice.labels.tolist() == [1.0, 0.0, 1.0]


def test_the_mixture_finds_share_and_threshold_of_flipped_labels() -> None:
    generator = torch.Generator().manual_seed(0)
    clean = 0.4 * torch.randn(4096, generator=generator).double() - 0.8
    values = torch.where(torch.rand(4096, generator=generator) < 0.3, -clean, clean)
    mixture = (0.75, 0.0, 0.0)
    for _ in range(10):
        mixture = fitted(values, mixture)
    assert mixture == pytest.approx((0.7, 0.8, 0.4), abs=0.03)
    likely, other = (NormalDist(sign * mixture[1], mixture[2]).pdf(threshold_of(mixture)) for sign in (-1, 1))
    assert mixture[0] * likely == pytest.approx((1 - mixture[0]) * other, rel=1e-6)


def test_nothing_is_flipped_where_the_reference_sees_no_difference() -> None:
    selector = built("perplexity_difference", use="flip")
    choice = answer(selector, ratios(0.0, 0.0, 0.0), 2)
    assert choice.labels is not None and choice.labels.tolist() == [1.0, 1.0]


# --- margins and losses -------------------------------------------------------------------------------


def margins(numbers: list[int], values: list[float], epoch: int = 2) -> View:
    return View(
        losses=torch.zeros(len(values)),
        margins=torch.tensor(values),
        numbers=torch.tensor(numbers),
        epoch=epoch,
    )


@pytest.mark.parametrize(
    ("momentum", "averages", "chosen"),
    # Pair 5 has margins 1, 4, 1; pair 7 has 3, 0; pair 0 has 1.9.
    [(None, {5: 2.0, 7: 1.5, 0: 1.9}, [0, 2]), (0.9, {5: 1.27, 7: 2.7, 0: 1.9}, [1, 2])],
)
def test_small_loss_averages_the_margins_of_each_pair(
    momentum: float | None, averages: dict[int, float], chosen: list[int]
) -> None:
    selector = built("small_loss", momentum=momentum)
    assert isinstance(selector, SmallLoss)
    selector.observe(margins([5, 7], [1.0, 3.0], epoch=1))
    selector.observe(margins([5], [4.0], epoch=1))
    last = margins([5, 7, 0], [1.0, 0.0, 1.9])
    assert answer(selector, last, 2).indices.tolist() == chosen
    assert {number: selector.average[number].item() for number in averages} == pytest.approx(averages)
    assert selector.average.sum().item() == pytest.approx(sum(averages.values()))


def test_small_loss_draws_evenly_until_it_is_warm(caplog: pytest.LogCaptureFixture) -> None:
    built("small_loss", warmup_epochs=1)  # 80 pairs are seen, of 40
    assert not caplog.messages
    selector, counts = built("small_loss", warmup_epochs=2), torch.zeros(3)
    assert caplog.messages == [
        "selector small_loss: all epochs are warm-up (warmup_epochs), pairs are drawn at random"
    ]
    for _ in range(600):
        counts[answer(selector, margins([0, 1, 2], [9.0, 0.0, 5.0]), 1).indices] += 1
    assert (counts / 600 - 1 / 3).abs().max() < 0.08
    assert answer(selector, margins([0, 1, 2], [9.0, 0.0, 5.0], epoch=3), 1).indices.tolist() == [0]


def test_uncertainty_takes_margins_nearest_to_zero() -> None:
    assert answer(
        built("uncertainty"), margins([0, 1, 2, 3], [-0.1, 2.0, 0.3, -4.0]), 2
    ).indices.tolist() == [0, 2]


def test_rho_loss_leaves_out_what_is_learned_and_what_cannot_be() -> None:
    # Learned, wrong label, learnable: reducible losses 0.05, 0.1 and 0.6.
    view = View(losses=torch.tensor([0.1, 2.0, 0.9]), columns={"score": torch.tensor([0.05, 1.9, 0.3])})
    assert answer(built("rho_loss", **SCORE), view, 1).indices.tolist() == [2]
    assert answer(built("rho_loss", **SCORE), view, 2).indices.tolist() == [1, 2]


def test_lossdiff_irm_is_the_narrowest_intersection_of_two_middle_intervals() -> None:
    selector = built("lossdiff_irm", **SCORE)
    for seed in range(20):
        view = drawn(seed, n=21)
        ranks = [rankdata(view.losses.double() - view.columns["score"]) - 11, rankdata(view.margins) - 11]
        chosen = answer(selector, view, 8).indices.tolist()
        inside: list[int] = []
        for width in range(11):  # intervals of ranks around the middle one
            narrower, inside = inside, [i for i in range(21) if all(abs(rank[i]) <= width for rank in ranks)]
            if len(inside) >= 8:
                break
        assert set(narrower) <= set(chosen) <= set(inside)


# --- curriculum -----------------------------------------------------------------------------------------


def test_easy_to_hard_opens_the_batch_by_the_square_root_of_its_competence() -> None:
    selector = built("easy_to_hard", **SCORE, start=0.0, length=0.9)
    assert isinstance(selector, EasyToHard)
    # T is 9 of 10 rounds: sqrt(1/9), sqrt(4/9), 1.
    assert [selector.competence(t) for t in (1, 4, 9, 10)] == pytest.approx([1 / 3, 2 / 3, 1, 1])
    difficulty = torch.tensor([5.0, 1.0, 4.0, 2.0, 3.0, 0.0])
    for descending, easy in [(False, {1, 3, 5, 4}), (True, {0, 2, 4, 3})]:
        selector = built("easy_to_hard", **SCORE, start=0.0, length=0.9, descending=descending)
        view = View(numbers=torch.arange(6), round=4, columns={"score": difficulty})
        seen = {index for _ in range(50) for index in answer(selector, view, 2).indices.tolist()}
        assert seen == easy
        # Fewer than k are never open.
        assert set(answer(selector, replace(view, round=1), 5).indices.tolist()) > easy
    assert built("easy_to_hard", **SCORE).observe(view)["selector/competence"] == pytest.approx(
        math.sqrt(0.4 * 0.99 + 0.01)
    )


# --- weights and betas ----------------------------------------------------------------------------------


@pytest.mark.parametrize("beta_prime", [0.3, 1.0, 5.0])
def test_dr_dpo_has_the_gradient_of_the_published_objective(beta_prime: float) -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(8, 5, generator=generator, dtype=torch.float64)
    parameters = torch.randn(5, generator=generator, dtype=torch.float64, requires_grad=True)
    losses = -logsigmoid(features @ parameters)
    published = -beta_prime * torch.log(torch.mean(torch.exp(-losses / beta_prime)))
    (expected,) = torch.autograd.grad(published, parameters, retain_graph=True)
    choice = answer(built("dr_dpo", beta_prime=beta_prime), View(losses=losses.detach()), 8)
    assert choice.weights is not None and choice.indices.tolist() == list(range(8))
    (found,) = torch.autograd.grad((choice.weights * losses).mean(), parameters)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-7)  # weights are float32


def test_wpo_weights_by_the_mean_probability_of_both_responses() -> None:
    # Tokens of probability 1/2 and 1/4: (1/2) (1/4) = 1/8; and 1 and 1/2, whatever the lengths.
    view = View(
        losses=torch.zeros(2),
        chosen_logps=torch.tensor([3 * math.log(0.5), 0.0]),
        rejected_logps=torch.tensor([2 * math.log(0.25), 7 * math.log(0.5)]),
        chosen_tokens=torch.tensor([3, 1]),
        rejected_tokens=torch.tensor([2, 7]),
    )
    plain, scaled = (
        answer(built("wpo", normalise=normalise), view, 2).weights for normalise in (False, True)
    )
    assert plain is not None and plain.tolist() == pytest.approx([1 / 8, 1 / 2])
    assert scaled is not None and scaled.tolist() == pytest.approx([2 / 5, 8 / 5])


def test_wpo_differs_from_trl_by_the_alignment_alone() -> None:
    """The loss of a step of TRL's DPOTrainer with `use_weighting`."""
    case = Case("sigmoid", "DPOTrainer", {"loss_type": ["sigmoid"], "use_weighting": True, "max_steps": 1})
    steps = trl_steps(case, draw_pairs(case))
    n = len(steps.sequences[0]) // 2
    logps, aligned = torch.zeros(2, 2, n), torch.zeros(2, n)  # [policy and reference, sides, n]
    for one, model in enumerate(models()):
        for row, (prompt, response) in enumerate(steps.sequences[0]):
            with torch.no_grad():
                logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
            every = logits.log_softmax(-1)
            logps[one, row // n, row % n] = every.gather(-1, torch.tensor(response)[:, None]).sum()
            if one == 0:
                aligned[row // n, row % n] = torch.logsumexp(2 * every, dim=-1).mean()
    tokens = torch.tensor([len(response) for _, response in steps.sequences[0]]).view(2, n)
    view = View(
        losses=torch.zeros(n),
        chosen_logps=logps[0, 0],
        rejected_logps=logps[0, 1],
        chosen_tokens=tokens[0],
        rejected_tokens=tokens[1],
    )
    weights = answer(built("wpo"), view, n).weights
    losses = -logsigmoid(BETA * ((logps[0, 0] - logps[1, 0]) - (logps[0, 1] - logps[1, 1])))
    assert weights is not None
    expected = (weights / aligned.sum(dim=0).exp() * losses).mean().item()
    assert steps.losses[0] == pytest.approx(expected, rel=1e-5)


def test_beta_dpo_follows_the_authors_code() -> None:
    """Their lines of `preference_loss` and `update_and_sync_tensor_mean`, with the filter off, over two batches."""
    beta, a, gap_mean = 0.1, 0.6, 0.0
    selector, by_pair = built("beta_dpo"), built("beta_dpo", level="pair")
    for gaps in ([3.0, -1.0, 8.0], [2.0, 40.0, -30.0]):
        gap = torch.tensor(gaps, dtype=torch.float64)
        gap_mean = 0.9 * gap_mean + 0.1 * gap.mean().item()
        used = (beta * (1 + a * (gap.mean() - gap_mean))).clamp(min=1e-3)
        each = (beta * (1 + a * (gap - gap_mean))).clamp(min=1e-3)
        scales, of_pairs = (
            answer(one, margins([0, 1, 2], (beta * gap).tolist()), 3).beta_scales
            for one in (selector, by_pair)
        )
        assert scales is not None and of_pairs is not None
        torch.testing.assert_close(beta * scales.double(), used.expand(3), rtol=1e-6, atol=0)
        torch.testing.assert_close(beta * of_pairs.double(), each, rtol=1e-6, atol=0)


def test_beta_dpo_filters_as_its_filter_does_and_takes_beta_from_the_kept() -> None:
    both = built("beta_dpo"), built("beta_dpo_filter")
    for seed in range(4):
        view = drawn(seed)
        choice, filtered = (answer(selector, view, 4) for selector in both)
        assert torch.equal(choice.indices, filtered.indices)
        assert choice.beta_scales is not None
        kept = view.margins[choice.indices].double().mean().item() - both[0].mean  # type: ignore[attr-defined]
        assert choice.beta_scales[0].item() == pytest.approx(max(1 + 0.6 * kept / 0.1, 0.01), rel=1e-5)
