"""Losses and selectors that a study names, from its settings to the object that trains."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from sams.losses import table as losses
from sams.losses.base import PairLogps
from sams.scheduling.selection import Selection
from sams.scheduling.selectors import table as selectors
from sams.scheduling.selectors.base import Selector, View, checked
from sams.scheduling.selectors.sams import Sams
from sams.study.recipes import PreferenceRecipe, recipe_of
from sams.study.settings import Scheduler
from sams.training.selector import build_selector, save_scheduler
from tests.study.test_config import tiny_study

SIZES = Scheduler(connector_width=8, encoder_width=8, width=8, depth=3, block=4)


def build(name: str, tmp_path: Path, **more: Any) -> Selector:
    config = LlamaConfig(
        vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=1
    )
    settings = SIZES if selectors.SELECTORS[name].reads_scheduler else None
    return build_selector(
        name,
        settings,
        Selection(4, 2, (0.5,)),
        task=SimpleNamespace(ids=list("abcd"), columns={"score": None}),
        model=LlamaForCausalLM(config),
        job=job(tmp_path),
        **more,
    )


def job(tmp_path: Path) -> Any:
    workers = SimpleNamespace(
        device=torch.device("cpu"),
        rank=0,
        world=1,
        is_main=True,
        sum_on_cpu=lambda tensor: tensor,
        broadcast=lambda tensor: tensor,
    )
    return SimpleNamespace(
        recipe={"seed": 3}, workers=workers, checkpoints=SimpleNamespace(folder=tmp_path / "checkpoints")
    )


def view() -> View:
    return View(
        losses=torch.tensor([0.1, 0.4, 0.3, 0.2]),
        margins=torch.tensor([4.0, 1.0, 2.0, 3.0]),
        chosen_logps=torch.tensor([-1.0, -2.0, -3.0, -4.0]),
        contexts=torch.ones(4, 2, 2, 8),
        flipped=torch.tensor([True, False, False, True]),
        chosen_tokens=torch.tensor([2.0, 3.0, 4.0, 5.0]),
        rejected_tokens=torch.tensor([3.0, 3.0, 2.0, 5.0]),
        rejected_logps=torch.tensor([-2.0, -3.0, -1.0, -4.0]),
        reference_chosen=torch.tensor([-1.5, -2.0, -3.5, -4.0]),
        reference_rejected=torch.tensor([-2.0, -3.5, -1.0, -4.5]),
        ids=list("abcd"),
        numbers=torch.tensor([2, 0, 3, 1]),
        seen=torch.zeros(4, dtype=torch.int64),
        trained=torch.zeros(4, dtype=torch.int64),
        columns={"score": torch.tensor([0.3, 0.1, 0.2, 0.4], dtype=torch.float64)},
    )


@pytest.mark.parametrize("name", selectors.SELECTORS)
def test_every_selector_is_built_the_same_way(name: str, tmp_path: Path) -> None:
    entry = selectors.SELECTORS[name]
    selector = build(name, tmp_path, own={"column": "score"} if entry.needs_settings else {})
    seen = view()
    selector.observe(seen)
    k = 4 if entry.full_batch or entry.crossfitted else 2
    assert len(checked(selector.choose(seen, k), 4, k).indices) == k
    assert bool(selector.trained_weights) == selectors.SELECTORS[name].trains_scheduler


def test_a_pretrained_scheduler_is_saved_and_loaded(tmp_path: Path) -> None:
    pretrained = build("sams", tmp_path, train_encoder=True)
    assert isinstance(pretrained, Sams) and not pretrained.trained
    for weight in pretrained.scheduler.exploitation.parameters():
        torch.nn.init.constant_(weight, 0.25)
    save_scheduler(pretrained, tmp_path / "weights", job(tmp_path))
    selector = build("sams", tmp_path, pretrained=tmp_path / "weights")
    assert isinstance(selector, Sams) and selector.trained
    assert all((weight == 0.25).all() for weight in selector.scheduler.exploitation.parameters())
    assert selector.trained_weights < pretrained.trained_weights, "the encoder is frozen after pretraining"


LOSS = """
from dataclasses import dataclass

from torch import Tensor

from sams.losses.base import PairLogps, PairLoss


@dataclass(frozen=True, kw_only=True)
class Squared(PairLoss):
    needs_reference = False
    target: float = 2.0

    def preference(self, logps: PairLogps) -> Tensor:
        return (self.difference(logps) - self.target) ** 2
"""
SELECTOR = """
from torch import Tensor

from sams.scheduling.selectors.base import Selector, View, top_k


class MiddleMargin(Selector):
    def choose(self, view: View, k: int) -> Tensor:
        return top_k(-(view.margins - view.margins.median()).abs(), k)
"""


def test_a_loss_and_a_selector_are_one_file_and_one_line_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "squared.py").write_text(LOSS)
    (tmp_path / "middle.py").write_text(SELECTOR)
    monkeypatch.syspath_prepend(tmp_path)
    entry = losses.Entry(
        "squared:Squared", needs_reference=False, settings={"target": (2.0, losses.POSITIVE)}
    )
    monkeypatch.setitem(losses.LOSSES, "squared", entry)
    monkeypatch.setitem(selectors.SELECTORS, "middle_margin", selectors.Entry("middle:MiddleMargin"))
    try:
        own = {"selector": "middle_margin", "ratio": 0.5, "loss": "squared", "loss_settings": {"target": 3.0}}
        recipe = recipe_of(
            tiny_study(**{"method_settings__dpo-random50": own}), "train_preference", method="dpo-random50"
        )
        assert not {"squared", "middle"} & set(sys.modules), "the settings import neither"
        assert isinstance(recipe, PreferenceRecipe) and not recipe.training.needs_reference
        training = recipe.training
        loss = losses.build_loss(
            training.loss, beta=training.beta, settings=training.loss_settings, sft_weight=0.0
        )
        tokens = torch.ones(1)
        assert loss(PairLogps(torch.tensor([-1.0]), torch.tensor([-2.0]), tokens, tokens)).tolist() == [4.0]
        chosen = build(training.selector, tmp_path).choose(view(), 2)
        assert chosen.tolist() == [1, 2]
    finally:
        sys.modules.pop("squared", None)
        sys.modules.pop("middle", None)
