"""Simulated memory, compared with the kernel's count of a real step, and with formulas if sharded."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from benchmarks.traffic import CountTraffic, expected
from sams.planning.memory import Passes, Simulation
from sams.planning.models import build, sizes_of
from sams.policy.blocks import blocks
from sams.study.architectures import config_of
from sams.study.settings import Lora, Model
from tests.conftest import ROOT

# 5.3 million weights.
SMALL = {
    "model_type": "llama",
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "intermediate_size": 688,
    "vocab_size": 4096,
}
TINY = SMALL | {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128}
LENGTH = 256


def settings(config: dict[str, object], **others: object) -> Model:
    return Model.model_validate({"architecture": config, "tokenizer": "words", **others})


@pytest.mark.slow  # two processes that measure their memory
def test_the_prediction_is_within_ten_percent_of_the_peak_of_a_real_step() -> None:
    passes = [Passes(2), Passes(4, checkpointing="full")]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.planning.measured",
            json.dumps(SMALL),
            json.dumps([vars(one) for one in passes]),
            str(LENGTH),
        ],
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"},
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    simulation = Simulation(SMALL, settings(SMALL), 1, False, LENGTH)
    for one, measured in zip(passes, json.loads(done.stdout.splitlines()[-1]), strict=True):
        # The prediction holds weights and two moments besides what the step takes.
        predicted = simulation.peak(one) - 3 * measured["weights"]
        assert predicted == pytest.approx(measured["above"], rel=0.1)


@pytest.mark.slow
def test_sharded_state_is_a_share_and_added_up_gradients_are_whole() -> None:
    simulation = Simulation(TINY, settings(TINY, precision="bfloat16"), 8, True, LENGTH)
    weights = 4 * sizes_of(TINY).total
    one, four = simulation.peak(Passes(1)), simulation.peak(Passes(1, micro_batches=4))
    assert one > 4 * weights / 8
    # Those of a micro-batch that is not the last wait in float32, on every process.
    assert four - one == pytest.approx(weights, rel=0.25)
    assert simulation.peak(Passes(1, micro_batches=2)) == four
    # Exchanged in every micro-batch, a share of them waits.
    assert simulation.peak(Passes(1, micro_batches=4, sync_each=True)) == pytest.approx(one, rel=0.02)


@pytest.mark.slow
def test_weights_in_bfloat16_are_a_copy_of_masters_unless_they_are_frozen() -> None:
    low, high = (
        Simulation(SMALL, settings(SMALL, precision=precision), 1, False, 16)
        for precision in ("bfloat16", "float32")
    )
    weights = sizes_of(SMALL).total
    one = Passes(1)
    # The state of a step with hardly any activations: masters, gradient and moments; and the copy.
    assert high.peak(one) == pytest.approx(16 * weights, rel=0.1)
    assert 2 * weights < low.peak(one) - high.peak(one) < 4.5 * weights  # and those of a group on their way
    assert low.peak(Passes(1, trained=False)) == pytest.approx(2 * weights, rel=0.2)
    adapted = replace(low, lora=Lora(r=2))
    assert adapted.peak(one) == pytest.approx(2 * weights, rel=0.3)


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [False, True])
def test_the_more_is_recomputed_the_less_memory_a_step_takes(sharded: bool) -> None:
    simulation = Simulation(SMALL, settings(SMALL, precision="bfloat16"), 8, sharded, LENGTH)
    none, selective, full = (
        simulation.peak(Passes(2, checkpointing=mode)) for mode in ("none", "selective", "full")
    )
    assert none > selective > full


@pytest.mark.parametrize("kind", ["gemma2", "gpt_neox"])
@pytest.mark.parametrize("packing", [True, False])
def test_other_architectures_and_padded_rows_unsharded_in_bfloat16(kind: str, packing: bool) -> None:
    config = {**TINY, "model_type": kind, "head_dim": 8, "num_attention_heads": 8}
    model = settings(config, precision="bfloat16", attention="eager", packing=packing)
    simulation = Simulation(config, model, 2, False, 64)
    trained, scored = simulation.peak(Passes(2)), simulation.peak(Passes(2, trained=False))
    weights = 4 * sizes_of(config).total
    assert trained > scored + 2 * weights > 3 * weights


@pytest.mark.slow  # 8 billion weights: 25 s
def test_llama_8b_takes_on_8_processes_what_it_is_known_to() -> None:
    model = Model(path="meta-llama/Meta-Llama-3-8B-Instruct", precision="bfloat16")
    config = config_of(model)
    simulation = Simulation(config, model, 8, True, 1024)
    checkpointed = simulation.peak(Passes(1, checkpointing="full")) / 2**30
    assert checkpointed == pytest.approx(20.3, abs=0.2)  # an independent simulation of the same setting
    added_up = simulation.peak(Passes(1, micro_batches=4, checkpointing="full")) / 2**30
    assert checkpointed + 4 * sizes_of(config).total / 2**30 * 7 / 8 < added_up < 60
    exchanged = simulation.peak(Passes(1, micro_batches=4, checkpointing="full", sync_each=True)) / 2**30
    assert exchanged == pytest.approx(20.8, abs=0.2)


@pytest.mark.parametrize("replicas", [1, 2])
def test_traffic_of_a_step_is_what_sharding_costs_by_hand(replicas: int) -> None:
    simulation = Simulation(TINY, settings(TINY, precision="bfloat16"), 8, True, LENGTH, replicas)
    policy = build(TINY, "sdpa")
    total = sum(weight.numel() for weight in policy.parameters())
    inner = sum(weight.numel() for weight in blocks(policy.model).parameters())
    hand = expected(inner, total - inner, processes=8 // replicas, replicas=replicas, compute=torch.bfloat16)
    trained, scored = CountTraffic(), CountTraffic()
    simulation.peak(Passes(1, checkpointing="full"), trained)
    assert trained.traffic.sent == hand.sent
    simulation.peak(Passes(1, trained=False), scored)
    shards = 8 // replicas
    assert scored.traffic.sent == {"all_gather": 2 * total * (shards - 1) / shards}


def test_replicas_of_fewer_shards_hold_more() -> None:
    one, two = (
        Simulation(TINY, settings(TINY, precision="bfloat16"), 8, True, 16, replicas).peak(Passes(1))
        for replicas in (1, 2)
    )
    state = 16 * sizes_of(TINY).total
    assert two - one == pytest.approx(state / 4 - state / 8, rel=0.25)
