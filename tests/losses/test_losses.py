"""Losses, gradients and rewards against a hand form and TRL's own code, pair by pair; what each paper proves of
its loss; the limits.

Where TRL lacks a loss, one of TRL's is fed with the scores that turn it into that loss (TRL's CPO `ipo` on
summed log-ratios, say). The hand forms are written with probabilities, in Python's floats, with derivatives.
"""

import math
import re
from collections import defaultdict
from contextlib import nullcontext
from dataclasses import fields, replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from sams.losses.base import Loss, PairLogps
from sams.losses.table import LOSSES, build_loss
from tests.conftest import ROOT

BETA = 0.3
KL = 1.7
DRAWS = 50
SETTINGS: dict[str, dict[str, float]] = {
    "sigmoid": {},
    "cdpo": {"label_smoothing": 0.2},
    "robust": {"label_smoothing": 0.2},
    "ipo": {},
    "ipo_sum": {},
    "hinge": {},
    "slic-hf": {"delta": 2.5, "nll_weight": 0.7},
    "simpo": {"gamma_beta_ratio": 1.4},
    "kto": {"desirable_weight": 1.3, "undesirable_weight": 0.6},
    "orpo": {},
    "cpo": {"nll_weight": 0.7},
    "r-dpo": {"alpha": 0.04},
    "rrhf": {"nll_weight": 0.7},
}
REFERENCE_FREE = {"slic-hf", "simpo", "orpo", "cpo", "rrhf"}


def build(name: str, sft_weight: float = 0.0) -> Loss:
    return build_loss(name, beta=BETA, settings=SETTINGS[name], sft_weight=sft_weight)


def draw(name: str, dtype: torch.dtype = torch.float64) -> PairLogps:
    """Random pairs of 1 to 40 tokens; what the loss must not look at is None."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, 41, (2, DRAWS), generator=generator)
    logps = -tokens * (0.05 + 2 * torch.rand(2, DRAWS, generator=generator, dtype=torch.float64))
    reference = (logps + 4 * torch.randn(2, DRAWS, generator=generator, dtype=torch.float64)).to(dtype)
    free = name in REFERENCE_FREE
    return PairLogps(
        chosen=logps[0].to(dtype).requires_grad_(),
        rejected=logps[1].to(dtype).requires_grad_(),
        chosen_tokens=tokens[0],
        rejected_tokens=tokens[1],
        reference_chosen=None if free else reference[0],
        reference_rejected=None if free else reference[1],
        kl=torch.tensor(KL, dtype=dtype) if name == "kto" else None,
    )


def pair(chosen: float, rejected: float, tokens: tuple[int, int] = (1, 1)) -> PairLogps:
    """One pair in float32; the log-probs under the reference are -1, and KL is 0."""
    return PairLogps(
        torch.tensor([chosen], requires_grad=True),
        torch.tensor([rejected], requires_grad=True),
        torch.tensor(tokens[:1]),
        torch.tensor(tokens[1:]),
        torch.tensor([-1.0]),
        torch.tensor([-1.0]),
        torch.tensor(0.0),
    )


def swapped(logps: PairLogps) -> PairLogps:
    """The pairs with their labels flipped."""
    other = {"chosen": "rejected", "rejected": "chosen"}
    names = {name: "_".join(other.get(word, word) for word in name.split("_")) for name in vars(logps)}
    return PairLogps(**{name: getattr(logps, names[name]) for name in names})


def gradients(losses: Tensor, logps: PairLogps) -> Tensor:
    """Of each pair's loss in its chosen and its rejected log-prob: [2, n] float64."""
    return torch.stack(torch.autograd.grad(losses.sum(), (logps.chosen, logps.rejected))).double()


def assert_close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(found.double(), expected.double(), rtol=tolerance, atol=tolerance)


# Hand forms: loss, derivative in the chosen log-prob, derivative in the rejected one.
Form = tuple[float, float, float]


def sigma(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def logistic(margin: float, chosen_slope: float = BETA, rejected_slope: float = BETA) -> Form:
    wrong = 1 - sigma(margin)
    return math.log(1 + math.exp(-margin)), -wrong * chosen_slope, wrong * rejected_slope


def two_labels(margin: float, label: float, opposite: float) -> Form:
    p = sigma(margin)
    slope = BETA * (opposite * p - label * (1 - p))
    return -label * math.log(p) - opposite * math.log(1 - p), slope, -slope


def square(difference: float, chosen_tokens: float = 1, rejected_tokens: float = 1) -> Form:
    off = difference - 0.5 / BETA
    return off * off, 2 * off / chosen_tokens, -2 * off / rejected_tokens


def hinge(short: float, chosen_slope: float, rejected_slope: float) -> Form:
    return (short, -chosen_slope, rejected_slope) if short > 0 else (0.0, 0.0, 0.0)


def two_halves(chosen: float, rejected: float, desirable_weight: float, undesirable_weight: float) -> Form:
    p, q = sigma(BETA * (chosen - KL)), sigma(BETA * (KL - rejected))
    loss = (desirable_weight * (1 - p) + undesirable_weight * (1 - q)) / 2
    return loss, -desirable_weight * p * (1 - p) * BETA / 2, undesirable_weight * q * (1 - q) * BETA / 2


def odds_ratio(w: float, v: float, n: float, m: float) -> Form:
    p, q = math.exp(w / n), math.exp(v / m)
    ratio = (p / (1 - p)) / (q / (1 - q))
    slope = BETA / (1 + ratio)
    return -w / n + BETA * math.log(1 + 1 / ratio), -1 / n - slope / (1 - p) / n, slope / (1 - q) / m


def hand(name: str, w: float, v: float, n: float, m: float, rw: float = 0.0, rv: float = 0.0) -> Form:
    """Log-probs of the chosen and the rejected response, their tokens, log-probs under the reference."""
    given = SETTINGS[name]
    gap = (w - rw) - (v - rv)
    flips = given.get("label_smoothing", 0.0)
    loss, chosen, rejected = {
        "sigmoid": lambda: logistic(BETA * gap),
        "cdpo": lambda: two_labels(BETA * gap, 1 - flips, flips),
        "robust": lambda: two_labels(BETA * gap, (1 - flips) / (1 - 2 * flips), -flips / (1 - 2 * flips)),
        "ipo": lambda: square((w - rw) / n - (v - rv) / m, n, m),
        "ipo_sum": lambda: square(gap),
        "hinge": lambda: hinge(1 - BETA * gap, BETA, BETA),
        "slic-hf": lambda: hinge(given["delta"] - (w - v), 1, 1),
        "simpo": lambda: logistic(BETA * (w / n - v / m - given["gamma_beta_ratio"]), BETA / n, BETA / m),
        "kto": lambda: two_halves(w - rw, v - rv, **given),
        "orpo": lambda: odds_ratio(w, v, n, m),
        "cpo": lambda: logistic(BETA * (w - v)),
        "r-dpo": lambda: logistic(BETA * gap + given["alpha"] * (n - m)),
        "rrhf": lambda: hinge(v / m - w / n, 1 / n, 1 / m),
    }[name]()
    likelihood = given.get("nll_weight", 0.0) / (n if name == "cpo" else 1)
    return loss - likelihood * w, chosen - likelihood, rejected


# TRL's own code on one pair: loss, reward of the chosen response, reward of the rejected one. Its trainers are
# imported late, for that takes seconds.
Found = tuple[Tensor, float, float]


def trl_self(attributes: dict[str, Any]) -> Any:
    """What the loss methods of TRL look at in their trainer, whatever its class."""
    common = {
        "accelerator": SimpleNamespace(device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x),
        "model": SimpleNamespace(training=False),
        "beta": BETA,
        "label_smoothing": 0.0,
        "aux_loss_enabled": False,
        "_metrics": {"eval": defaultdict(list)},
        "_total_train_tokens": 0,
    }
    return SimpleNamespace(**common | attributes)


def trl_loss(owner: str, one: PairLogps, **attributes: Any) -> Found:
    """DPOTrainer or KTOTrainer, whose model spreads a log-prob over the response's tokens after one of prompt."""
    import trl

    assert one.reference_chosen is not None and one.reference_rejected is not None
    tokens = torch.cat([one.chosen_tokens, one.rejected_tokens])
    mask = (torch.arange(int(tokens.max()) + 1) <= tokens[:, None]).long()
    mask[:, 0] = 0
    log_probs = mask[:, 1:] * (torch.cat([one.chosen, one.rejected]) / tokens)[:, None]
    zeros = torch.zeros_like(log_probs)
    found = SimpleNamespace(log_probs=log_probs, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())
    inputs = {"input_ids": mask, "attention_mask": torch.ones_like(mask), "completion_mask": mask}
    if owner == "DPOTrainer":
        inputs |= {"ref_chosen_logps": one.reference_chosen, "ref_rejected_logps": one.reference_rejected}
        attributes |= {"use_weighting": False, "ld_alpha": None, "f_divergence_type": "reverse_kl"}
    else:
        inputs["ref_logps"] = torch.cat([one.reference_chosen, one.reference_rejected])
        inputs |= {"ref_KL_logps": torch.zeros(1), "label": torch.tensor([True, False])}
        mismatched = torch.tensor([KL], dtype=torch.float64)
        attributes |= {"loss_type": "kto", "calculate_KL": True, "_compute_kl_logps": lambda *_: mismatched}
    trainer = trl_self(attributes | {"precompute_ref_logps": True})
    loss = getattr(trl, owner)._compute_loss(trainer, lambda **_: found, inputs, False)
    metrics = trainer._metrics["eval"]
    return loss, metrics["rewards/chosen"][0], metrics["rewards/rejected"][0]


def trl_cpo(
    kind: str, chosen: Tensor, rejected: Tensor, nll: Tensor | float = 0.0, **attributes: Any
) -> Found:
    """CPOTrainer (ORPOTrainer for kind `orpo`), whose forward finds these scores of a pair."""
    from trl.experimental.cpo import CPOTrainer
    from trl.experimental.orpo import ORPOTrainer

    trainer = trl_self({"loss_type": kind, "cpo_alpha": 1.0, "alpha": 0.0} | attributes)
    trainer.cpo_loss = partial(CPOTrainer.cpo_loss, trainer)
    trainer.odds_ratio_loss = partial(ORPOTrainer.odds_ratio_loss, trainer)
    logits = torch.zeros(1)
    trainer.concatenated_forward = lambda *_: (chosen, rejected, logits, logits, torch.as_tensor(nll).mean())
    owner = ORPOTrainer if kind == "orpo" else CPOTrainer
    loss, metrics = owner.get_batch_loss_metrics(trainer, None, {})
    return loss, metrics["rewards/chosen"], metrics["rewards/rejected"]


def trl(name: str, one: PairLogps) -> Found:
    given = SETTINGS[name]
    w, v, n, m = one.chosen, one.rejected, one.chosen_tokens, one.rejected_tokens
    if name in ("sigmoid", "hinge", "ipo", "robust"):
        return trl_loss("DPOTrainer", one, loss_types=[name], loss_weights=[1.0], **given)
    if name == "kto":
        return trl_loss("KTOTrainer", one, **given)
    if name == "simpo":
        return trl_cpo("simpo", w / n, v / m, simpo_gamma=given["gamma_beta_ratio"] * BETA)
    if name == "orpo":
        return trl_cpo("orpo", w / n, v / m, -w / n)
    if name == "cpo":
        return trl_cpo("sigmoid", w, v, -w / n, cpo_alpha=given["nll_weight"])
    if name == "slic-hf":
        delta, weight = given["delta"], given["nll_weight"]
        loss, *_ = trl_cpo("hinge", w, v, -w, beta=1 / delta, cpo_alpha=weight / delta)
        return delta * loss, math.nan, math.nan
    if name == "rrhf":
        return trl_cpo("hinge", w / n + 1, v / m, -w, beta=1.0, cpo_alpha=given["nll_weight"])
    assert one.reference_chosen is not None and one.reference_rejected is not None
    w, v = w - one.reference_chosen, v - one.reference_rejected
    if name == "r-dpo":
        per_token = given["alpha"] / BETA
        return trl_cpo("sigmoid", w + per_token * n.double(), v + per_token * m.double())
    return trl_cpo({"cdpo": "sigmoid", "ipo_sum": "ipo"}[name], w, v, **given)


def each_pair(logps: PairLogps) -> list[PairLogps]:
    def part(value: Any, place: int) -> Any:
        return value if value is None or value.ndim == 0 else value[place : place + 1]

    return [
        PairLogps(**{name: part(value, place) for name, value in vars(logps).items()})
        for place in range(DRAWS)
    ]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_gradient_equal_the_hand_form(name: str, dtype: torch.dtype, tolerance: float) -> None:
    logps = draw(name, dtype)
    columns = [value.tolist() for value in vars(logps).values() if value is not None and value.ndim]
    loss, *slopes = torch.tensor(
        [hand(name, *row) for row in zip(*columns, strict=True)], dtype=torch.float64
    ).T
    losses = build(name)(logps)
    assert losses.dtype == dtype
    assert_close(losses, loss, tolerance)
    off = gradients(losses, logps) - torch.stack(slopes)
    assert off.abs().max() <= tolerance * torch.stack(slopes).abs().max()


@pytest.mark.parametrize("name", LOSSES)
def test_loss_gradient_and_rewards_equal_trl(name: str) -> None:
    logps = draw(name)
    tolerance = 1e-5 if name == "orpo" else 1e-10  # TRL's ORPO computes in float32
    expected, chosen, rejected = zip(*(trl(name, one) for one in each_pair(logps)), strict=True)
    losses = build(name)(logps)
    assert_close(losses, torch.stack(expected), tolerance)
    off = gradients(losses, logps) - gradients(torch.stack(expected), logps)
    assert off.abs().max() <= tolerance * gradients(build(name)(logps), logps).abs().max()

    if name in ("slic-hf", "rrhf", "r-dpo"):
        return  # the scores TRL was given are not theirs
    found = torch.stack(build(name).rewards(logps)).detach()
    if name == "ipo":  # per token, as the loss sees them; TRL reports the sums
        found = found * torch.stack([logps.chosen_tokens, logps.rejected_tokens])
    assert_close(found, torch.tensor([chosen, rejected]), 1e-5)


def test_rewards_that_trl_does_not_report() -> None:
    logps = draw("r-dpo")
    assert logps.reference_chosen is not None
    assert_close(build("slic-hf").rewards(logps)[0], BETA * logps.chosen, 1e-10)
    assert_close(build("rrhf").rewards(logps)[1], BETA * logps.rejected / logps.rejected_tokens, 1e-10)
    assert_close(build("r-dpo").rewards(logps)[0], BETA * (logps.chosen - logps.reference_chosen), 1e-10)


@pytest.mark.parametrize("name", LOSSES)
def test_the_sft_term_is_the_chosen_nll_per_token(name: str) -> None:
    logps = draw(name)
    added = build(name, sft_weight=0.4)(logps) - build(name)(logps)
    assert_close(added, 0.4 * -logps.chosen / logps.chosen_tokens, 1e-10)


def test_the_sft_term_equals_trl() -> None:
    logps, both = draw("sigmoid"), {"loss_types": ["sigmoid", "sft"], "loss_weights": [1.0, 0.4]}
    expected = [trl_loss("DPOTrainer", one, **both)[0] for one in each_pair(logps)]
    assert_close(build("sigmoid", sft_weight=0.4)(logps), torch.stack(expected), 1e-10)


@pytest.mark.parametrize("name", ["sigmoid", "cdpo", "robust"])
def test_loss_is_log_2_where_policy_and_reference_agree(name: str) -> None:
    logps = draw(name)
    logps = replace(logps, reference_chosen=logps.chosen, reference_rejected=logps.rejected)
    assert_close(build(name)(logps), torch.full((DRAWS,), math.log(2), dtype=torch.float64), 1e-12)


def test_robust_is_dpo_under_clean_labels_on_average_over_flips() -> None:
    logps, loss = draw("robust"), build("robust")
    assert_close(0.8 * loss(logps) + 0.2 * loss(swapped(logps)), build("sigmoid")(logps), 1e-10)


def test_cdpo_is_lowest_where_the_policy_doubts_the_label_as_much_as_it_is_flipped() -> None:
    margin = math.log(0.8 / 0.2)
    logps = pair(-1 + margin / BETA, -1.0)
    assert gradients(build("cdpo")(logps), logps).abs().max() < 1e-7


def test_r_dpo_is_lowest_at_the_best_policy_for_reward_less_alpha_per_token() -> None:
    """Under E[r - alpha |y|] - beta KL the log-ratios differ by (difference of r - alpha |y|) / beta."""
    tokens, better = (30, 10), 0.9
    logps = pair(-1 + (better - 0.04 * (30 - 10)) / BETA, -1.0, tokens)
    loss = build("r-dpo")
    expected = sigma(better) * loss(logps) + sigma(-better) * loss(swapped(logps))
    assert gradients(expected, logps).abs().max() < 1e-7


@pytest.mark.parametrize(
    "logps", [(-1e4, -1.0), (-1.0, -1e4), (1e4, -1.0), (-1.0, 1e4), (0.0, 0.0), (-1e4, 0.0)]
)
@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_gradients_are_finite_far_out(name: str, logps: tuple[float, float]) -> None:
    one = pair(*logps)
    losses = build(name, sft_weight=1.0)(one)
    assert losses.dtype == torch.float32
    assert losses.isfinite().all()
    assert gradients(losses, one).isfinite().all()


@pytest.mark.parametrize("logps", [(-1e-6, -1e-3), (-1e-3, -1e-6), (-1e-6, -30.0), (-30.0, -1e-6)])
def test_orpo_keeps_its_digits_where_a_response_is_all_but_certain(logps: tuple[float, float]) -> None:
    one = pair(*logps)
    loss, *slopes = hand("orpo", one.chosen.item(), one.rejected.item(), 1, 1)
    losses = build("orpo")(one)
    assert losses.item() == pytest.approx(loss, rel=1e-5)
    assert gradients(losses, one).flatten().tolist() == pytest.approx(slopes, rel=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_only_losses_that_say_so_look_at_a_reference_or_the_kl_term(name: str) -> None:
    needs_reference, needs_kl = LOSSES[name].needs_reference, LOSSES[name].needs_kl
    bare = replace(pair(-3.0, -5.0), reference_chosen=None, reference_rejected=None)
    with pytest.raises(AssertionError) if needs_reference else nullcontext():
        build(name)(bare)
    with pytest.raises(AssertionError) if needs_reference else nullcontext():
        build(name).rewards(bare)
    with pytest.raises(AssertionError) if needs_kl else nullcontext():
        build(name)(replace(pair(-3.0, -5.0), kl=None))


@pytest.mark.parametrize("name", LOSSES)
def test_the_table_says_what_the_class_says(name: str) -> None:
    entry = LOSSES[name]
    loss = entry.load()
    assert (loss.needs_reference, loss.needs_kl) == (entry.needs_reference, entry.needs_kl)
    defaults = {
        field.name: field.default for field in fields(loss) if field.name not in ("beta", "sft_weight")
    }
    assert defaults == {key: default for key, (default, _) in entry.settings.items()}
    assert loss.__module__ == entry.module


@pytest.mark.parametrize(
    ("name", "setting", "value", "named"),
    [
        ("sigmoid", "beta", 0.0, "above 0"),
        ("ipo", "beta", -0.1, "above 0"),
        ("simpo", "beta", math.nan, "above 0"),
        ("hinge", "beta", math.inf, "above 0"),
        ("sigmoid", "sft_weight", -0.1, "at least 0"),
        ("cdpo", "label_smoothing", 0.5, r"in \[0, 0.5\)"),
        ("cdpo", "label_smoothing", -0.1, r"in \[0, 0.5\)"),
        ("robust", "label_smoothing", 0.5, r"in \[0, 0.5\)"),
        ("slic-hf", "delta", -1.0, "at least 0"),
        ("slic-hf", "nll_weight", -1.0, "at least 0"),
        ("simpo", "gamma_beta_ratio", -0.5, "at least 0"),
        ("kto", "desirable_weight", 0.0, "above 0"),
        ("kto", "undesirable_weight", -1.0, "above 0"),
        ("cpo", "nll_weight", math.inf, "at least 0"),
        ("r-dpo", "alpha", -0.01, "at least 0"),
        ("rrhf", "nll_weight", math.nan, "at least 0"),
    ],
)
def test_a_setting_out_of_range_is_refused(name: str, setting: str, value: float, named: str) -> None:
    with pytest.raises(ValueError, match=f"^`{setting}` must be {named}, not {value}$"):
        if setting in ("beta", "sft_weight"):
            build_loss(name, **{"beta": 0.1, "sft_weight": 0.0, setting: value}, settings={})  # type: ignore[arg-type]
        else:
            build_loss(name, beta=0.1, settings={setting: value}, sft_weight=0.0)


def test_unknown_names_and_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'simop' \(there are sigmoid, .*, rrhf\); did you mean simpo\?"):
        build_loss("simop", beta=0.1, settings={}, sft_weight=0)
    with pytest.raises(ValueError, match=r"'kto' has no setting 'alpha'; it has desirable_weight, undes"):
        build_loss("kto", beta=0.1, settings={"alpha": 1}, sft_weight=0)
    with pytest.raises(ValueError, match="'sigmoid' has no setting 'beta'; it has none"):
        build_loss("sigmoid", beta=0.1, settings={"beta": 1}, sft_weight=0)


def test_the_page_lists_every_loss_with_its_settings() -> None:
    page = (ROOT / "docs" / "losses.md").read_text(encoding="utf-8")
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line[:3] == "| `"
    ]
    assert [row[0].strip("`") for row in rows] == list(LOSSES)
    for name, _, settings, _ in rows:
        found = {key: float(default) for key, default in re.findall(r"`(\w+)` \(([\d.]+)\)", settings)}
        assert found == {key: default for key, (default, _) in LOSSES[name.strip("`")].settings.items()}
    free = re.search(r"^((?:`[\w-]+`(?:, | and )?)+) have no reference", page, re.MULTILINE)
    assert free is not None
    assert set(re.findall(r"`([\w-]+)`", free[1])) == REFERENCE_FREE
