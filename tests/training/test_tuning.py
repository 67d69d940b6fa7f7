"""What a job finds out at its start: the layout of rows, sizes of micro-batches, activation checkpointing."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from sams.planning.memory import fake_processes
from sams.policy.attention import SEGMENTS
from sams.policy.model import build_model
from sams.policy.policy import Policy, Scores
from sams.policy.rows import pack_rows
from sams.runtime.errors import UserError
from sams.runtime.files import read_json
from sams.study.settings import Model
from sams.training import tuning
from sams.training.distribution import Workers, shard
from sams.training.layout import choose_layout
from sams.training.tasks.pairs import PairTask
from sams.training.tuning import Tuning, tune
from tests import tiny
from tests.training.test_runs import run, weights

TASK = PairTask(tiny.pairs(64, seed=1))
OTHERS: dict[str, dict[str, Any]] = {
    # Positions from the mask; a bias by distance; no attention at all.
    "opt": {"num_attention_heads": 4, "ffn_dim": 64, "word_embed_proj_dim": 32, "num_hidden_layers": 2},
    "bloom": {"n_head": 4, "n_layer": 2},
    "mamba": {"state_size": 4, "num_hidden_layers": 2},
}


@pytest.fixture(scope="module")
def workers() -> Workers:
    return Workers(device="cpu", strategy="ddp", precision="float32", threads=1, timeout_minutes=1)


def policy_of(settings: Model) -> Policy:
    model = build_model(settings, tiny.tokenizer(), seed=0)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return Policy(model)


def found(workers: Workers, settings: Model, **overrides: Any) -> tuple[Tuning, Policy]:
    policy = policy_of(settings)
    sizes = {"micro_batch": "auto", "scoring_micro_batch": "auto", "items": 8, "scored_items": 16}
    return tune(policy, TASK, workers, settings, **(sizes | overrides)), policy


@pytest.mark.parametrize("kind", tiny.ARCHITECTURES)
def test_rows_are_packed_where_the_model_agrees(workers: Workers, kind: str) -> None:
    settings = tiny.settings(kind)
    assert choose_layout(policy_of(settings), TASK, workers, settings) == (SEGMENTS, [])


@pytest.mark.parametrize("kind", OTHERS)
def test_a_model_that_cannot_pack_is_told_of_and_computes_padded_rows(
    workers: Workers, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    architecture = {"model_type": kind, "hidden_size": 32} | OTHERS[kind]
    settings = tiny.settings(architecture=architecture, attention="eager")
    with caplog.at_level(logging.INFO):
        tuned, policy = found(workers, settings, micro_batch=2, scoring_micro_batch=2)
    assert tuned.packed is None and policy.packed is None
    assert "computes padded rows, which is slower (segments: " in caplog.text
    assert tuned.fallbacks == [
        record.message
        for record in caplog.records
        if (record.levelname, record.module) == ("WARNING", "layout")
    ]


def test_packing_can_be_switched_off(workers: Workers) -> None:
    tuned, _ = found(workers, tiny.settings(packing=False), micro_batch=2, scoring_micro_batch=3)
    assert tuned == Tuning(None, 2, 3, "none")


def test_sizes_are_found_within_a_process_share_and_leave_no_gradient(workers: Workers) -> None:
    tuned, policy = found(workers, tiny.settings())
    assert 1 <= tuned.micro_batch <= 8
    assert 1 <= tuned.scoring_micro_batch <= 16
    assert all(parameter.grad is None for parameter in policy.parameters())


def test_the_smallest_size_that_is_as_fast_is_chosen_and_no_larger_than_the_next_is_tried(
    workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, tried = [0.0], []
    seconds_of_size = {1: 1.0, 2: 0.5, 4: 0.30, 8: 0.29, 16: 0.1}

    policy = policy_of(tiny.settings())
    policy.pack(SEGMENTS)
    monkeypatch.setattr(tuning.time, "perf_counter", lambda: clock[0])
    forward = policy.forward

    def slow(rows: Any, with_contexts: bool = False) -> Scores:
        size = len(rows.counts) // 2
        shape = tuple(rows.counts.tolist())
        planned = (
            0.0 if tried and tried[-1][0] == size else 100.0
        )  # as for kernels that are planned per shape
        tried.append((size, shape))
        clock[0] += planned + seconds_of_size[size] * rows.tokens
        return forward(rows, with_contexts)

    monkeypatch.setattr(policy, "forward", slow)
    assert tuning.fastest(policy, TASK, workers, 16, gradients=True) == 4
    assert [size for size, _ in tried] == [1, 1, 2, 2, 4, 4, 8, 8]
    assert len({shape for _, shape in tried}) == len(tried)
    assert tuning.fastest(policy, TASK, workers, 2, gradients=False) == 2


@pytest.mark.parametrize("kind", tiny.ARCHITECTURES)
def test_predicted_activations_are_those_of_a_larger_micro_batch(workers: Workers, kind: str) -> None:
    policy = policy_of(tiny.settings(kind))
    policy.pack(SEGMENTS)
    per_token = tuning.activation_bytes(policy, TASK, workers)
    rows = pack_rows(TASK.sequences(list(range(16))))
    with tuning.saved_bytes() as kept:
        policy(rows)
    assert sum(kept.values()) == pytest.approx(per_token * rows.tokens, rel=0.1)


def test_memory_bounds_the_micro_batch_and_calls_for_checkpointing(
    workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny.settings(activation_checkpointing="auto")
    policy = policy_of(settings)
    policy.pack(SEGMENTS)
    longest = max(TASK.packed_lengths) * tuning.activation_bytes(policy, TASK, workers)
    states = tuning.ADAM_BYTES * tuning.local_weights(policy)

    def free(room: float) -> None:
        monkeypatch.setattr(tuning, "free_bytes", lambda device: int(states + room / tuning.MEMORY_SHARE))

    free(3.1 * longest)
    tuned, policy = found(workers, settings)
    assert (tuned.checkpointing, tuned.micro_batch <= 4) == ("none", True)
    free(0.95 * longest)
    tuned, policy = found(workers, settings)
    assert tuned.checkpointing == "full"
    free(0.01 * longest)
    with pytest.raises(UserError, match=r"activation_checkpointing: .*longest item take.*available"):
        found(workers, settings)


def test_whole_gradients_that_wait_under_fsdp2_are_counted() -> None:
    policy = policy_of(tiny.settings())
    weights = sum(parameter.numel() for parameter in policy.parameters())
    assert tuning.waiting_bytes(policy) == 0
    with fake_processes(4) as mesh:
        shard(policy, mesh, "float32")
        assert tuning.waiting_bytes(policy) == 4 * weights
        assert tuning.local_weights(policy) < weights / 3


def test_what_is_trained_beside_the_policy_leaves_less_room(
    workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = policy_of(tiny.settings())
    policy.pack(SEGMENTS)
    weights = tuning.local_weights(policy)
    monkeypatch.setattr(tuning, "free_bytes", lambda device: 3 * tuning.ADAM_BYTES * weights)
    alone, together = (tuning.fit(policy, TASK, workers, False, other)[1] for other in (0, weights))
    assert together == pytest.approx(alone / 2, abs=1)


def test_a_found_size_is_kept_in_the_result_and_a_resumed_run_takes_it_over(
    prepared: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"micro_batch_size": "auto", "scoring_micro_batch_size": "auto", "checkpoint_every": 2}
    monkeypatch.setattr("sams.training.tuning.fastest", lambda *_, **__: 3)
    run(prepared, tmp_path / "whole", **sizes)
    expected = {
        "packed": SEGMENTS,
        "micro_batch": 3,
        "scoring_micro_batch": 3,
        "checkpointing": "none",
        "compiled": False,
        "fallbacks": [],
    }
    assert read_json(tmp_path / "whole" / "recipe.json")["tuning"] == expected

    def interrupted() -> Any:
        return lambda: True

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr("sams.training.loop.note_stop_requests", interrupted)
        run(prepared, tmp_path / "parts", **sizes)
    monkeypatch.setattr("sams.training.tuning.fastest", lambda *_, **__: 1)
    run(prepared, tmp_path / "parts", **sizes)
    assert read_json(tmp_path / "parts" / "recipe.json")["tuning"] == expected
    resumed, whole = weights(tmp_path / "parts"), weights(tmp_path / "whole")
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())
