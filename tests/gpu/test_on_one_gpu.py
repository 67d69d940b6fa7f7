"""What only a GPU can show: torchrun with NCCL, bfloat16, FSDP2, fused attention, compiled blocks, generation."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch.profiler import ProfilerActivity, profile

from sams.policy.attention import FLEX, SEGMENTS, VARLEN, disable_cudnn_attention
from sams.policy.policy import Policy
from sams.policy.rows import Item, pack_rows, pad_rows
from tests.conftest import ROOT
from tests.gpu.small import ITEMS, capped_model, model

GPU = torch.device("cuda")
MODELS = {"llama": model, "gemma2": capped_model}
FUSED = {"llama": VARLEN, "gemma2": FLEX}


def losses(strategy: str, device: str, precision: str) -> list[float]:
    """Of five steps under torchrun with one process."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
    command += ["-m", "tests.gpu.steps", strategy, device, precision]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["device"].startswith(device)
    return list(found["losses"])


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_steps_in_bfloat16_follow_those_of_a_cpu_in_float32(strategy: str) -> None:
    expected = losses("ddp", "cpu", "float32")
    found = losses(strategy, "cuda", "bfloat16")
    assert expected[-1] < 0.9 * expected[0], "the steps learn something"
    assert found == pytest.approx(expected, rel=0.05, abs=0.05)


def pass_over(policy: Policy, packed: str | None, items: list[Item] = ITEMS) -> tuple[Tensor, Tensor]:
    """Log-probs per token, and the gradient of their sum; both float32 and on the CPU."""
    policy.pack(packed)
    policy.zero_grad()
    rows = (pad_rows(items) if packed is None else pack_rows(items)).to(policy.model.device)
    scores = policy(rows, with_contexts=True)
    logps = scores.logps / scores.tokens
    logps.sum().backward()
    gradients = [weight.grad for weight in policy.parameters() if weight.grad is not None]
    gradient = torch.cat([gradient.flatten().float().cpu() for gradient in gradients])
    return logps.detach().cpu(), gradient


@pytest.mark.parametrize("kind", MODELS)
def test_packed_rows_in_bfloat16_are_as_near_to_float32_as_padded_ones(kind: str) -> None:
    expected, gradient = pass_over(Policy(MODELS[kind]()), None)
    policy = Policy(MODELS[kind]().to(GPU, torch.bfloat16))
    errors = {}
    for layout in (None, SEGMENTS, FUSED[kind]):
        logps, found = pass_over(policy, layout)
        errors[layout] = (logps - expected).abs().max(), (found - gradient).norm() / gradient.norm()
    for layout in (SEGMENTS, FUSED[kind]):
        assert errors[layout][0] < 0.01 + 1.5 * errors[None][0]
        assert errors[layout][1] < 0.02 + 1.5 * errors[None][1] < 0.3


@pytest.mark.parametrize("kind", MODELS)
def test_no_token_changes_a_sequence_that_does_not_see_it_in_the_fused_kernel(kind: str) -> None:
    policy = Policy(MODELS[kind]().to(GPU, torch.bfloat16))
    policy.pack(FUSED[kind])
    (prompt, (chosen, rejected)), *others = ITEMS
    changed: list[Item] = [(prompt, [[9] * len(chosen), rejected])]
    changed += [([8] * len(prompt), [[7] * len(part) for part in parts]) for prompt, parts in others]
    with torch.no_grad():
        before, after = (policy(pack_rows(items).to(GPU)).logps[len(ITEMS)] for items in (ITEMS, changed))
    assert torch.equal(before, after)


@pytest.mark.parametrize("kind", MODELS)
def test_compiled_blocks_give_the_same_and_are_compiled_for_all_batches(kind: str) -> None:
    plain, compiled = (Policy(MODELS[kind]().to(GPU, torch.bfloat16)) for _ in range(2))
    compiled.prepare(compiled=True, checkpointing="selective")
    batches = [ITEMS, ITEMS[1:], [*ITEMS, *ITEMS[1:]], [*ITEMS[:2], *ITEMS]]
    expected = [pass_over(plain, FUSED[kind], items) for items in batches]
    counters.clear()
    graphs = []
    for items, (logps, gradient) in zip(batches, expected, strict=True):
        found, other = pass_over(compiled, FUSED[kind], items)
        assert (found - logps).abs().max() < 0.03
        assert (other - gradient).norm() < 0.1 * gradient.norm()
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] > 0 and graphs[-1] == graphs[1], graphs
    assert not counters["graph_break"]


@pytest.mark.parametrize("layout", [None, SEGMENTS, VARLEN])
def test_no_kernel_of_cudnn_computes_attention(layout: str | None) -> None:
    disable_cudnn_attention()
    policy = Policy(model().to(GPU, torch.bfloat16))
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        pass_over(policy, layout)
        torch.cuda.synchronize()
    names = [event.key for event in profiled.key_averages()]
    assert names and not [name for name in names if "cudnn" in name.lower()]


def test_greedy_answers_of_a_padded_batch_are_those_of_prompts_alone() -> None:
    pytest.importorskip("pydantic", reason="decode settings are typed with pydantic")
    from sams.generation.engines import TransformersEngine
    from sams.study.settings import Decoding

    with tempfile.TemporaryDirectory() as folder:
        model().save_pretrained(folder)
        engine = TransformersEngine(Path(folder), "float32", Decoding(max_new_tokens=16), [2])
    assert engine.device == "cuda"
    prompts = [list(prompt) for prompt, _ in ITEMS]
    together = engine.generate(prompts, 0.0, 0)
    assert [engine.generate([prompt], 0.0, 0)[0] for prompt in prompts] == together
    assert all(0 < len(answer) <= 16 for answer in together)


def test_a_job_in_bfloat16_chooses_the_fused_kernel() -> None:
    pytest.importorskip("pydantic", reason="settings are typed with pydantic")
    from sams.study.settings import Model
    from sams.training.distribution import Workers
    from sams.training.layout import choose_layout
    from sams.training.tasks.pairs import PairTask

    columns: dict[str, list[Any]] = {
        "id": ["a", "b", "c"],
        "prompt_ids": [prompt for prompt, _ in ITEMS],
        "chosen_ids": [parts[0] for _, parts in ITEMS],
        "rejected_ids": [parts[1] for _, parts in ITEMS],
        "flipped": [None] * 3,
    }
    workers = Workers(device="cuda", strategy="ddp", precision="bfloat16", threads=1, timeout_minutes=1)
    settings = Model(path="any", precision="bfloat16")
    for kind, build in MODELS.items():
        policy = Policy(build().to(GPU, torch.bfloat16))
        assert choose_layout(policy, PairTask(columns), workers, settings) == (FUSED[kind], [])
