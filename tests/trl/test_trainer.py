"""`ScheduledDPOTrainer` against TRL's own trainer, and against steps by hand."""

from itertools import chain
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from peft import LoraConfig
from trl import DPOTrainer

from sams.trl.schedule import split
from tests.trl import small
from tests.trl.runs import LORA, by_hand, run

LOSSES = (
    *("sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot"),
    *("aot_unpaired", "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm"),
)
TOGETHER = {"loss_type": [*LOSSES], "label_smoothing": 0.1}
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


@pytest.fixture(scope="module")
def data() -> datasets.Dataset:
    datasets.disable_progress_bars()
    return small.pairs(24)


def assert_all_is_plain(folder: Path, data: datasets.Dataset, **settings: Any) -> None:
    plain = small.trainer(folder, data, max_steps=2, **settings)
    ours = small.trainer(folder, data, max_steps=2, selector="all", packing="false", **settings)
    before = small.weights(plain.model)
    plain.train()
    ours.train()
    assert torch.equal(small.weights(ours.model), small.weights(plain.model))
    assert not torch.equal(small.weights(plain.model), before)
    timed = {"train_runtime", "train_samples_per_second", "train_steps_per_second"}
    for theirs, own in zip(plain.state.log_history, ours.state.log_history, strict=True):
        assert {key: own[key] for key in own.keys() - timed} == {
            key: theirs[key] for key in theirs.keys() - timed
        }


@pytest.mark.parametrize("cached", [False, True], ids=["reference on-line", "reference cached"])
def test_selector_all_is_the_trainer_of_trl(tmp_path: Path, data: datasets.Dataset, cached: bool) -> None:
    """Bit by bit, with the sum of TRL's fifteen losses; the logs are equal too."""
    assert_all_is_plain(tmp_path, data, precompute_ref_log_probs=cached, **TOGETHER)


@pytest.mark.slow
@pytest.mark.parametrize("cached", [False, True], ids=["on-line", "cached"])
@pytest.mark.parametrize("loss", LOSSES)
def test_selector_all_is_the_trainer_of_trl_for_each_loss(
    tmp_path: Path, data: datasets.Dataset, loss: str, cached: bool
) -> None:
    smoothing = 0.1 if loss == "exo_pair" else 0.0
    assert_all_is_plain(
        tmp_path, data, loss_type=[loss], label_smoothing=smoothing, precompute_ref_log_probs=cached
    )


@pytest.mark.parametrize(
    ("selector", "settings"),
    [
        ("random", {}),
        ("top_margin", {"precompute_ref_log_probs": True}),
        ("top_margin", {}),
        ("top_margin", {"scoring_batch_size": 8}),
        ("random", {"lora": True}),
        (
            "sams",
            {"lora": True, "precompute_ref_log_probs": True, "gradient_checkpointing": True, "bf16": True},
        ),
    ],
    ids=["unscored", "cached", "on-line", "other scoring batches", "LoRA", "LoRA, checkpointing, bf16"],
)
def test_scheduled_is_plain_on_the_chosen_rows(
    tmp_path: Path, data: datasets.Dataset, selector: str, settings: dict[str, Any]
) -> None:
    """TRL's trainer, given the rows in the order of the choices, ends with the same weights."""
    cached, lora = settings.get("precompute_ref_log_probs", False), settings.get("lora", False)
    rest = {key: value for key, value in settings.items() if key not in ("lora", "scoring_batch_size")}
    size = {"scoring_batch_size": settings.get("scoring_batch_size")}

    def adapters() -> dict[str, Any]:
        return {"ref_model": None, "peft_config": LoraConfig(**LORA)} if lora else {}

    ours = run(
        tmp_path,
        data,
        selector=selector,
        packing="false",
        num_train_epochs=2,
        arguments=adapters(),
        **rest,
        **size,
    )
    assert [len(rows) for rows in ours.rows] == [4] * 6

    class Given(DPOTrainer):  # type: ignore[misc]
        def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
            known = ours.train_dataset.select_columns(["ref_chosen_logps", "ref_rejected_logps"])
            return datasets.concatenate_datasets([dataset, known.select([*chain(*ours.rows)])], axis=1)

    plain = small.trainer(
        tmp_path,
        data.select([*chain(*ours.rows)]),
        kind=Given,
        arguments=adapters(),
        gradient_accumulation_steps=1,
        num_train_epochs=1,
        train_sampling_strategy="sequential",
        **rest,
    )
    before = small.weights(plain.model)
    plain.train()
    assert not torch.equal(small.weights(plain.model), before)
    difference = (small.weights(ours.model) - small.weights(plain.model)).abs().max().item()
    # Scored on-line, the reference is computed in batches of other rows, with other padding.
    assert difference == 0 if cached or selector == "random" else difference < 1e-6


@pytest.mark.parametrize(
    ("count", "size", "accumulation", "ratio", "expected"),
    [
        (18, 3, 2, 0.5, [3, 3, 3]),
        (16, 1, 8, 0.25, [2, 2]),
        (18, 4, 2, 0.6, [5, 5, 1]),
        pytest.param(70, 4, 4, 0.5, [8, 8, 8, 8, 3] * 2, marks=pytest.mark.slow),
    ],
    ids=["odd", "below the micro-batches", "last batch", "70 rows, 2 epochs"],
)
def test_any_number_of_pairs(
    tmp_path: Path, count: int, size: int, accumulation: int, ratio: float, expected: list[int]
) -> None:
    """The update is that of the mean over the chosen pairs, whatever micro-batches they make."""
    data = small.pairs(count)
    epochs = 1 if count < 70 else 2
    settings: dict[str, Any] = {
        "optim": "sgd",
        "learning_rate": 0.3,
    }  # Adam's updates are signs of rounding too
    ours = run(
        tmp_path,
        data,
        **settings,
        selector="random",
        selection_ratio=ratio,
        packing="false",
        per_device_train_batch_size=size,
        gradient_accumulation_steps=accumulation,
        num_train_epochs=epochs,
    )
    assert [len(rows) for rows in ours.rows] == expected
    assert sorted(chain(*ours.candidates)) == sorted([*range(count)] * epochs)
    expected_weights = by_hand(tmp_path, data, ours.rows, **settings)
    assert (small.weights(ours.model) - expected_weights).abs().max() < 1e-6
    assert ours.schedule is not None and ours.schedule.trained_pairs == sum(expected)


def test_empty_micro_batches_come_first() -> None:
    assert split(5, 4, 4) == [0, 0, 1, 4]
    assert split(8, 4, 2) == [4, 4]
    assert split(1, 4, 3) == [0, 0, 1]
