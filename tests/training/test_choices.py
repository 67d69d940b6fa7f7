"""Weights, labels and scales of beta that a selector answers, and what it is shown, in the training loop."""

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor
from torch.nn.functional import logsigmoid

from sams.losses.base import PairLogps
from sams.losses.table import LOSSES, build_loss
from sams.runtime.errors import UserError
from sams.scheduling.selection import Selection
from sams.scheduling.selectors.base import Choice, Selector, Setup, View
from sams.training.distribution import Workers
from sams.training.loop import Selecting, select
from sams.training.passes import Passes, accumulate_gradient
from sams.training.updates import Step
from tests.conftest import ROOT
from tests.training.test_passes import close, gradient, new_policy, preference_task, workers
from tests.training.test_runs import losses, run, weights

__all__ = ["workers"]

CHOSEN = [3, 1, 8, 14, 2, 9]
CHOICES = {
    "weights": Choice(torch.arange(6), weights=torch.tensor([2.0, 0.5, 1.0, 3.0, 0.25, 1.5])),
    "flips": Choice(torch.arange(6), labels=torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0, 1.0])),
    "soft labels": Choice(torch.arange(6), labels=torch.tensor([0.9, 0.1, 0.5, 0.8, 1.0, 0.0])),
    "scales": Choice(torch.arange(6), beta_scales=torch.tensor([1.0, 2.0, 0.5, 1.5, 3.0, 0.1])),
}
CHOICES["all"] = replace(
    CHOICES["weights"], labels=CHOICES["soft labels"].labels, beta_scales=CHOICES["scales"].beta_scales
)


def by_hand(task: Any, choice: Choice) -> Tensor:
    """The gradient from the model's own logits, one pair at a time, by the formulas of DPO and conservative DPO."""
    policy = new_policy()
    count = len(CHOSEN)
    weights, labels, scales = (
        torch.ones(count) if values is None else values
        for values in (choice.weights, choice.labels, choice.beta_scales)
    )
    total = torch.zeros(())
    for item, weight, label, scale in zip(CHOSEN, weights, labels, scales, strict=True):
        ratio = torch.zeros(())
        for completion, reference, sign in (
            (task.chosen[item], task.reference[item][0], 1),
            (task.rejected[item], task.reference[item][1], -1),
        ):
            prompt = task.prompts[item]
            ids = torch.tensor([[*prompt, *completion]])
            logps = policy.model(input_ids=ids).logits[0, :-1].log_softmax(dim=1)
            logp = logps.gather(1, ids[0, 1:, None])[len(prompt) - 1 :, 0].sum()
            ratio = ratio + sign * (logp - reference)
        margin = 0.1 * scale * ratio
        total = total - weight * (label * logsigmoid(margin) + (1 - label) * logsigmoid(-margin))
    (total / count).backward()
    return gradient(policy)


@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize("micro_batch", [2, 8])
def test_the_gradient_is_that_of_the_formula(workers: Workers, name: str, micro_batch: int) -> None:
    task, policy = preference_task(workers), new_policy()
    accumulate_gradient(policy, task, CHOSEN, workers, micro_batch, choice=CHOICES[name])
    expected = by_hand(task, CHOICES[name])
    assert close(gradient(policy), expected)
    plain = new_policy()
    accumulate_gradient(plain, task, CHOSEN, workers, micro_batch)
    assert not close(gradient(plain), expected)


@pytest.mark.parametrize("name", LOSSES)
def test_a_flipped_label_is_the_loss_of_the_swapped_pair(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    values = {
        side: -20 * torch.rand(5, generator=generator)
        for side in ("chosen", "rejected", "reference_chosen", "reference_rejected")
    }
    tokens = torch.tensor([3.0, 9.0, 4.0, 7.0, 5.0])
    logps = PairLogps(**values, chosen_tokens=tokens, rejected_tokens=tokens.flip(0), kl=torch.tensor(0.3))
    other = PairLogps(
        chosen=logps.rejected,
        rejected=logps.chosen,
        chosen_tokens=logps.rejected_tokens,
        rejected_tokens=logps.chosen_tokens,
        reference_chosen=logps.reference_rejected,
        reference_rejected=logps.reference_chosen,
        kl=logps.kl,
    )
    loss = build_loss(name, beta=0.2, settings={}, sft_weight=0.1)
    assert torch.equal(loss(logps.swapped()), loss(other)) and not torch.equal(loss(logps), loss(other))
    twice = build_loss(name, beta=0.4, settings={}, sft_weight=0.1)
    torch.testing.assert_close(loss.scaled(torch.full((5,), 2.0))(logps), twice(logps))


class Curious(Selector):
    """Keeps what it is shown, chooses the first k, and weighs them."""

    needs_scores = False
    needs_counts = True

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.views: list[View] = []

    def choose(self, view: View, k: int) -> Choice:
        self.views.append(view)
        return Choice(torch.arange(k), weights=torch.full((k,), 2.0))


def passes_for(workers: Workers) -> Passes:
    watched: Any = SimpleNamespace(tally=None)
    return Passes(new_policy(), workers, SimpleNamespace(scoring_micro_batch=4), watched)  # type: ignore[arg-type]


def test_a_selector_sees_rounds_epochs_counts_ids_and_columns(workers: Workers) -> None:
    task = preference_task(workers)
    task.columns = {"score": torch.arange(16, dtype=torch.float64) / 2}
    selector = Curious(Setup())
    selecting = Selecting(selector, task, Selection(4, 6, (0.5,)), per_epoch=2)
    for number, batch in enumerate([[3, 1, 8, 2], [5, 0, 4, 7], [2, 3, 9, 5]], start=1):
        step = Step(number, batch, None, chosen=[])
        select(selecting, passes_for(workers), step)
        assert step.seen == {}, "no scoring pass for a selector that needs none"
        assert step.chosen == [0, 1] and step.choice is not None
        step.trained = step.chosen_items
        selecting.count(step)
    last = selector.views[-1]
    assert (last.round, last.epoch, last.n) == (3, 2, 4)
    assert [view.epoch for view in selector.views] == [1, 1, 2]
    assert last.numbers.tolist() == [2, 3, 9, 5] and last.ids == [task.ids[item] for item in (2, 3, 9, 5)]
    assert last.seen is not None and last.seen.tolist() == [1, 1, 0, 1]
    assert last.trained is not None and last.trained.tolist() == [0, 1, 0, 1]
    assert last.columns["score"].tolist() == [1.0, 1.5, 4.5, 2.5]
    assert len(last.losses) == 0 and last.reference_chosen is not None and task.reference is not None
    assert last.reference_chosen.tolist() == task.reference[[2, 3, 9, 5], 0].tolist()
    assert last.rejected_tokens is not None
    assert last.rejected_tokens.tolist() == [task.rejected_tokens[item] for item in (2, 3, 9, 5)]


def test_a_wrong_answer_names_selector_and_step(workers: Workers) -> None:
    class Wrong(Curious):
        def choose(self, view: View, k: int) -> Choice:
            return Choice(torch.arange(k + 1))

    task = preference_task(workers)
    selecting = Selecting(Wrong(Setup()), task, Selection(4, 6, (0.5,)), per_epoch=2)
    with pytest.raises(UserError, match="selector Wrong, step 5: the answer has 3 pairs"):
        select(selecting, passes_for(workers), Step(5, [3, 1, 8, 2], None, chosen=[]))


OWN = """
import torch

from sams.scheduling.selectors.base import Choice, Selector, top_k


class Rising(Selector):
    '''Margins averaged by pair over the epochs, the lowest first; soft labels for pairs seen before.'''

    needs_counts = True

    def __init__(self, setup, softness: float = 0.25):
        super().__init__(setup)
        self.softness = softness
        self.averages = torch.zeros(setup.pairs)

    def observe(self, view):
        self.averages[view.numbers] = (self.averages[view.numbers] * view.seen + view.margins) / (view.seen + 1)
        return {"selector/seen": view.seen.double().mean(), "selector/average": self.averages.mean()}

    def choose(self, view, k):
        chosen = top_k(-self.averages[view.numbers], k)
        labels = 1 - self.softness * (view.seen[chosen] > 0).float()
        return Choice(chosen, labels=labels)

    def state_dict(self):
        return super().state_dict() | {"averages": self.averages}

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.averages = state["averages"]
"""


@pytest.fixture
def rising(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "rising.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    yield "rising:Rising"
    sys.modules.pop("rising", None)


@pytest.mark.parametrize(
    "own",
    [
        {"selector": "dr_dpo", "ratio": 1.0, "selector_settings": {"beta_prime": 0.05}},
        {"selector": "perplexity_difference", "selector_settings": {"use": "flip", "threshold": 0.0}},
    ],
    ids=lambda own: own["selector"],
)
def test_two_processes_weigh_and_flip_as_one_does(
    prepared: dict[str, Path], tmp_path: Path, own: dict[str, Any]
) -> None:
    run(prepared, tmp_path / "one", **own)
    run(prepared, tmp_path / "two", processes=2, **own)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-5)
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    torch.testing.assert_close(two, one, rtol=0, atol=1e-4)
    run(prepared, tmp_path / "plain", **{**own, "selector": "all", "ratio": 1.0, "selector_settings": {}})
    assert losses(tmp_path / "plain") != pytest.approx(losses(tmp_path / "one"), abs=1e-5)


def test_the_selector_of_the_documentation_trains(
    prepared: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (ROOT / "docs" / "own_selector.md").read_text()
    code = text.partition("```python\n")[2].partition("```")[0]
    (tmp_path / "my_selector.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    settings = text.partition("  dpo-average:\n")[2].partition("```")[0]
    own = yaml.safe_load(settings)
    assert own["selector"] == "my_selector:AverageMargin" and own["selector_settings"]["doubt"] > 0
    try:
        run(prepared, tmp_path / "out", epochs=2, max_steps=None, **own)
    finally:
        sys.modules.pop("my_selector", None)
    lines = [json.loads(line) for line in (tmp_path / "out" / "train.jsonl").read_text().splitlines()]
    assert len(lines) == 8 and all("selector/average" in line for line in lines)
    assert {line["selected/share"] for line in lines} == {0.5}


def test_a_selector_of_ones_own_trains_and_resumes_bitwise(
    prepared: dict[str, Path], tmp_path: Path, rising: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {
        "selector": rising,
        "selector_settings": {"softness": 0.5},
        "epochs": 3,
        "max_steps": None,
        "batch_size": 32,
        "micro_batch_size": 8,
    }
    run(prepared, tmp_path / "straight", **own)
    found = losses(tmp_path / "straight")
    assert len(found) >= 3
    with pytest.MonkeyPatch.context() as patch:
        ended = []

        def stop(self: Any, policy: Any, optimiser: Any, loop: Any, save: Any = None) -> None:
            original(self, policy, optimiser, loop)
            self.wait()
            if loop["step"] == 2:
                ended.append(loop)
                raise KeyboardInterrupt

        from sams.training.checkpoints import Checkpoints

        original = Checkpoints.save
        patch.setattr(Checkpoints, "save", stop)
        with pytest.raises(KeyboardInterrupt):
            run(prepared, tmp_path / "resumed", **own)
    assert ended and set(ended[0]["counts"]) == {"seen", "trained"}
    run(prepared, tmp_path / "resumed", **own)
    assert losses(tmp_path / "resumed") == found
    straight, resumed = weights(tmp_path / "straight"), weights(tmp_path / "resumed")
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)
