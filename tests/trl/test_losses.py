"""Losses of single and of weighted pairs, against TRL's loss of batches of one pair."""

from typing import Any

import datasets
import pytest
import torch
from torch import Tensor

from sams.runtime.errors import UserError
from sams.trl.losses import COUPLED, arguments_of, changed, pair_values, weighted_loss
from sams.trl.scoring import reference_of
from tests.trl import small
from tests.trl.test_trainer import LOSSES

PAIRS = 5
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    datasets.disable_progress_bars()
    made = small.trainer(tmp_path_factory.mktemp("losses"), small.pairs(PAIRS), selector="random")
    made.model.train()
    return made


def rows(trainer: Any, numbers: list[int], swapped: bool = False) -> dict[str, Tensor]:
    """Return a padded batch of these pairs, with their responses swapped if so."""
    features = [dict(trainer.train_dataset[number]) for number in numbers]
    for pair in features if swapped else []:
        pair["chosen_ids"], pair["rejected_ids"] = pair["rejected_ids"], pair["chosen_ids"]
    found: dict[str, Tensor] = trainer.data_collator(features)
    return found


def alone(trainer: Any, number: int, swapped: bool = False) -> Tensor:
    """Return TRL's loss of a batch of this pair."""
    found: Tensor = trainer._compute_loss(trainer.model, rows(trainer, [number], swapped), False)
    return found


def scored(trainer: Any) -> tuple[dict[str, Tensor], Any]:
    """Return all pairs with their reference, and the outputs of the policy."""
    inputs = rows(trainer, [*range(PAIRS)])
    inputs |= reference_of(trainer, inputs)
    with torch.no_grad():
        return inputs, trainer.model(**arguments_of(trainer, inputs))


SETTINGS: list[dict[str, Any]] = [
    *({"loss_types": [loss]} for loss in LOSSES),
    {"loss_types": ["sigmoid", "apo_zero"], "loss_weights": [0.7, 0.3]},
    {"loss_types": ["ipo"], "ld_alpha": 0.5},
    {"loss_types": ["hinge"], "use_weighting": False, "f_divergence_type": "js_divergence"},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: " ".join(map(str, settings.values())))
def test_the_loss_of_a_pair_is_that_of_a_batch_of_it(trainer: Any, settings: dict[str, Any]) -> None:
    others = {"loss_weights": [1.0], "label_smoothing": 0.1} | settings
    before = dict(trainer._metrics["train"]), trainer._total_train_tokens
    with changed(trainer, **others):
        inputs, outputs = scored(trainer)
        found = pair_values(trainer, inputs, outputs)
        assert (dict(trainer._metrics["train"]), trainer._total_train_tokens) == before
        with torch.no_grad():
            expected = torch.stack([alone(trainer, number) for number in range(PAIRS)])
            mean = trainer._compute_loss(trainer.model, inputs, False)
        trainer._metrics["train"].clear()
        trainer._total_train_tokens = before[1]
    torch.testing.assert_close(found.loss, expected)
    assert found.loss.unique().numel() > 1
    if settings["loss_types"][0] not in COUPLED:
        torch.testing.assert_close(found.loss.mean(), mean)


def test_values_of_pairs_are_those_of_the_logits(trainer: Any) -> None:
    inputs, outputs = scored(trainer)
    found = pair_values(trainer, inputs, outputs)
    sums = {}
    for name, model in (("policy", trainer.model), ("reference", trainer.ref_model)):
        with torch.no_grad():
            logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
        logps = logits[:, :-1].log_softmax(-1).gather(2, inputs["input_ids"][:, 1:, None])[..., 0]
        sums[name] = (logps * inputs["completion_mask"][:, 1:]).sum(1).chunk(2)
    rewards = [0.3 * (own - other) for own, other in zip(sums["policy"], sums["reference"], strict=True)]
    torch.testing.assert_close(found.chosen_logps, sums["policy"][0])
    torch.testing.assert_close(found.rejected_logps, sums["policy"][1])
    torch.testing.assert_close(found.chosen_rewards, rewards[0])
    torch.testing.assert_close(found.rejected_rewards, rewards[1])
    torch.testing.assert_close(found.margins, rewards[0] - rewards[1])


@pytest.mark.parametrize("loss", ["sigmoid", "ipo", "sppo_hard"])
def test_weights_labels_and_betas_of_pairs(trainer: Any, loss: str) -> None:
    """The mean over pairs of weight times (label times the loss + (1 - label) times that of the swapped pair)."""
    weights = torch.tensor([1.0, 0.0, 2.0, 0.5, 1.5])
    labels = torch.tensor([1.0, 0.5, 0.0, 0.8, 1.0])
    scales = torch.tensor([1.0, 1.0, 3.0, 0.5, 2.0])

    def gradient(value: Tensor) -> Tensor:
        trainer.model.zero_grad()
        value.backward()
        return torch.cat([part.grad.flatten() for part in trainer.model.parameters()])

    with changed(trainer, loss_types=[loss]):
        expected = torch.zeros(())
        for number in range(PAIRS):
            with changed(trainer, beta=trainer.beta * scales[number].item()):
                of_pair = labels[number] * alone(trainer, number)
                of_pair = of_pair + (1 - labels[number]) * alone(trainer, number, swapped=True)
            expected = expected + weights[number] * of_pair / PAIRS
        inputs = rows(trainer, [*range(PAIRS)])
        inputs |= reference_of(trainer, inputs)
        trainer._metrics["train"].clear()
        found, values = weighted_loss(
            trainer,
            inputs,
            lambda **arguments: trainer.model(**arguments),
            weights=weights,
            labels=labels,
            beta_scales=scales,
        )
        assert len(trainer._metrics["train"]["rewards/margins"]) == 1, "metrics are logged once"
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(gradient(found), gradient(expected), rtol=1e-4, atol=1e-6)
    assert len(values) == 5


def test_a_loss_that_is_no_mean_over_pairs_has_no_weights(trainer: Any) -> None:
    inputs, _ = scored(trainer)
    with (
        changed(trainer, loss_types=["aot"]),
        pytest.raises(UserError, match="`aot` is not a mean over pairs"),
    ):
        weighted_loss(trainer, inputs, trainer.model, weights=torch.ones(PAIRS))
