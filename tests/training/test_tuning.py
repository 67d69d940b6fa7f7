"""What a job finds out at its start: the layout of rows, sizes of micro-batches, activation checkpointing."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sams.planning.memory import fake_processes
from sams.policy.attention import SEGMENTS
from sams.policy.blocks import Checkpointing
from sams.policy.model import build_model
from sams.policy.policy import Policy, Scores
from sams.policy.rows import pack_rows
from sams.runtime.errors import UserError
from sams.runtime.files import read_json
from sams.study.settings import Model
from sams.training import memory, tuning
from sams.training.distribution import Workers, shard
from sams.training.layout import choose_layout
from sams.training.tasks.pairs import PairTask
from sams.training.tuning import Tuning, tune
from tests import tiny
from tests.training.test_runs import run, weights

TASK = PairTask(tiny.pairs(64, seed=1))
OTHERS: dict[str, dict[str, Any]] = {
    # A bias by distance; no attention at all.
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
    assert "computes padded rows, which is slower (its attention cannot be replaced)" in caplog.text
    assert tuned.fallbacks == [
        record.message
        for record in caplog.records
        if (record.levelname, record.module) == ("WARNING", "tuning")
    ]


def test_a_leak_within_the_tolerance_of_bfloat16_is_noticed(
    workers: Workers,
) -> None:
    """A token of a packed row takes a hundredth of its neighbour's state, as of a convolution over the row."""
    settings = tiny.settings(precision="bfloat16")
    policy = policy_of(settings)
    policy.model.bfloat16()
    assert choose_layout(policy, TASK, workers, settings) == (SEGMENTS, [])
    embed = policy.model.base_model.embed_tokens

    def leak(_module: Any, _inputs: Any, states: Tensor) -> Tensor:
        return states + 0.01 * states.roll(1, dims=1) * (len(states) == 1)

    handle = embed.register_forward_hook(leak)
    packed, fallbacks = choose_layout(policy, TASK, workers, settings)
    handle.remove()
    assert packed is None
    assert "segments: tokens that a sequence does not see change its log-prob by" in fallbacks[0]


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
    clock, tried, scale = [0.0], [], 1e-3
    seconds_of_size = {1: 1.0, 2: 0.5, 4: 0.30, 8: 0.29, 16: 0.1}

    policy = policy_of(tiny.settings())
    policy.pack(SEGMENTS)
    monkeypatch.setattr(tuning.time, "perf_counter", lambda: clock[0])
    forward = policy.forward

    def slow(rows: Any, with_contexts: bool = False) -> Scores:
        size = len(rows.counts) // 2
        shape = tuple(rows.counts.tolist())
        planned = 0.0 if tried and tried[-1][0] == size else 0.1  # as for kernels that are planned per shape
        tried.append((size, shape))
        clock[0] += planned + scale * seconds_of_size[size] * rows.tokens
        return forward(rows, with_contexts)

    monkeypatch.setattr(policy, "forward", slow)
    assert tuning.fastest(policy, TASK, workers, 16, gradients=True) == 4
    assert [size for size, _ in tried] == [1, 1, 2, 2, 4, 4, 8, 8]
    assert len({shape for _, shape in tried}) == len(tried)
    assert tuning.fastest(policy, TASK, workers, 2, gradients=False) == 2
    # Passes of a second and more are timed once: planning does not count there.
    scale = 1.0
    tried.clear()
    assert tuning.fastest(policy, TASK, workers, 16, gradients=True) == 4
    assert [size for size, _ in tried] == [1, 1, 2, 4, 8]


@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
@pytest.mark.parametrize("kind", tiny.ARCHITECTURES)
def test_predicted_activations_are_those_of_a_larger_micro_batch(
    workers: Workers, kind: str, checkpointing: Checkpointing
) -> None:
    policy = policy_of(tiny.settings(kind))
    Tuning(SEGMENTS, 1, 1, checkpointing).apply(policy)
    per_token = memory.activation_bytes(policy, TASK, workers)
    kept, tokens = [], []
    for count in (2, 16):
        rows = pack_rows(TASK.sequences(list(range(count))))
        with memory.Allocated(workers.device) as allocated:
            scores = policy(rows)
        scores.logps.sum().backward()
        kept.append(allocated.bytes)
        tokens.append(rows.tokens)
    assert kept[1] - kept[0] == pytest.approx(per_token * (tokens[1] - tokens[0]), rel=0.1)


def test_activations_take_less_memory_the_more_is_recomputed(workers: Workers) -> None:
    kept = []
    for checkpointing in ("none", "selective", "full"):
        policy = policy_of(tiny.settings())
        Tuning(SEGMENTS, 1, 1, checkpointing).apply(policy)
        kept.append(memory.activation_bytes(policy, TASK, workers))
    assert kept[0] > 1.2 * kept[1] > 1.2 * 1.2 * kept[2]


def test_allocated_memory_is_counted_until_it_is_freed() -> None:
    with memory.Allocated(torch.device("cpu")) as allocated:
        one = torch.zeros(100)
        view = one.view(10, 10)
        two = torch.ones(50)
        del two
    assert allocated.bytes == 400 and len(view) == 10


def test_memory_decides_what_is_recomputed_and_how_large_a_micro_batch_is(
    workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny.settings(activation_checkpointing="auto")
    policy = policy_of(settings)
    per_token = {}
    for mode in ("none", "selective", "full"):
        Tuning(SEGMENTS, 1, 1, mode).apply(policy)
        per_token[mode] = memory.activation_bytes(policy, TASK, workers)
    for mode in ("selective", "full"):  # and all activations of one of the two blocks
        per_token[mode] += (per_token["none"] - per_token[mode]) / 2
    longest = max(TASK.packed_lengths)
    states = memory.ADAM_BYTES * memory.local_weights(policy)

    def free(tokens: float, mode: str) -> None:
        room = tokens * longest * per_token[mode] / memory.MEMORY_SHARE
        monkeypatch.setattr(tuning, "free_bytes", lambda device: int(states + room))

    free(3.1, "none")
    tuned, policy = found(workers, settings)
    assert (tuned.checkpointing, tuned.micro_batch <= 4) == ("none", True)
    for mode in ("selective", "full"):
        free(1.05, mode)
        tuned, policy = found(workers, settings)
        assert tuned.checkpointing == mode
    # Two of the longest are to fit if the setting is two; none of the ways saves enough, and the last is taken.
    free(1.05, "none")
    tuned, policy = found(workers, settings, micro_batch=2)
    assert tuned.checkpointing in ("selective", "full") and tuned.micro_batch == 2
    free(0.5, "full")
    with pytest.raises(UserError, match=r"activation_checkpointing: .*longest item take.*available"):
        found(workers, settings)


def test_gradients_are_exchanged_in_every_micro_batch_before_anything_is_recomputed(
    workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = policy_of(tiny.settings())
    per_token = memory.activation_bytes(policy, TASK, workers)
    waiting, longest = 10**9, max(TASK.packed_lengths)
    monkeypatch.setattr(tuning, "kept_bytes", lambda policy, *, each: 0 if each else waiting)
    tuned = Tuning(None, 1, 1, "none")

    def fit(room: float, syncs: list[bool]) -> tuple[str, bool]:
        states = memory.ADAM_BYTES * memory.local_weights(policy)
        monkeypatch.setattr(tuning, "free_bytes", lambda device: int(states + room / memory.MEMORY_SHARE))
        tuning.fit(policy, TASK, workers, tuned, modes=("none", "selective", "full"), syncs=syncs)
        return tuned.checkpointing, tuned.sync_each_micro_batch

    assert fit(waiting + 20 * longest * per_token, [False, True]) == ("none", False)
    assert fit(20 * longest * per_token, [False, True]) == ("none", True)
    with pytest.raises(UserError, match="longest item"):
        fit(20 * longest * per_token, [False])


def test_gradients_that_wait_unsharded_under_fsdp2_are_counted() -> None:
    policy = policy_of(tiny.settings())
    weights = sum(parameter.numel() for parameter in policy.parameters())
    assert memory.kept_bytes(policy, each=False) == 0
    with fake_processes(4) as mesh:
        shard(policy, mesh, "float32")
        assert memory.kept_bytes(policy, each=False) == 4 * weights
        assert memory.kept_bytes(policy, each=True) == 0
        assert memory.local_weights(policy) < weights / 3


def test_other_weights_that_are_trained_leave_less_room(
    workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = policy_of(tiny.settings())
    policy.pack(SEGMENTS)
    weights = memory.local_weights(policy)
    monkeypatch.setattr(tuning, "free_bytes", lambda device: 3 * memory.ADAM_BYTES * weights)
    tuned = Tuning(SEGMENTS, 1, 1, "none")
    alone, together = (
        tuning.fit(policy, TASK, workers, tuned, modes=("none",), syncs=(False,), other_weights=other)
        for other in (0, weights)
    )
    assert together == pytest.approx(alone / 2, abs=1)


@pytest.mark.parametrize(
    ("setting", "device", "passes", "expected"),
    [
        (True, "cpu", 1, True),
        (False, "cuda", 9999, False),
        ("auto", "cpu", 9999, False),
        ("auto", "cuda", 299, False),
        ("auto", "cuda", 300, True),
    ],
)
def test_auto_compiles_long_jobs_on_gpus(setting: Any, device: str, passes: int, expected: bool) -> None:
    assert tuning.pays_to_compile(setting, torch.device(device), passes) is expected


@pytest.mark.parametrize("setting", ["auto", True])
def test_a_machine_without_a_compiler_computes_uncompiled_blocks_with_a_warning(
    workers: Workers, setting: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tuning, "pays_to_compile", lambda *_: True)
    torch._dynamo.reset()
    settings = tiny.settings(compile=setting)
    with torch._inductor.config.patch({"cpp.cxx": ("/no/such/compiler",)}):
        if setting is True:
            with pytest.raises(UserError, match="cannot be compiled"):
                found(workers, settings, micro_batch=2, scoring_micro_batch=2)
            return
        tuned, policy = found(workers, settings, micro_batch=2, scoring_micro_batch=2)
    assert not tuned.compiled
    [sentence] = tuned.fallbacks
    assert sentence.startswith("blocks are not compiled, which is slower (")
    assert ("tuning", "WARNING", sentence) in [(r.module, r.levelname, r.message) for r in caplog.records]
    assert policy(pack_rows(TASK.sequences([0, 1]))).logps.isfinite().all()


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
        "sync_each_micro_batch": False,
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
