"""Blocks that are compiled as wholes, and recomputed: same values, one compilation for all batches, what is kept."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters
from torch.distributed.fsdp import FSDPModule
from torch.nn.attention import flex_attention
from torch.utils._python_dispatch import TorchDispatchMode

from sams.policy import compiling, logps
from sams.policy.attention import FLEX, SEGMENTS, VARLEN, block_mask
from sams.policy.blocks import Checkpointing, prepare_blocks
from sams.policy.output import Final
from sams.policy.policy import Policy
from sams.policy.rows import Item, pack_rows
from sams.training.distribution import Workers, local_part, reshard
from tests import tiny
from tests.policy import kernel  # noqa: F401  registers a CPU kernel
from tests.policy.models import ARCHITECTURES, items_of, policy_of

BATCHES = [items_of(count, seed) for count, seed in ((6, 4), (4, 5), (3, 6), (5, 7), (2, 8))]
"""No two with the same numbers of items or tokens."""


@pytest.fixture(autouse=True)
def no_earlier_compilation() -> None:
    torch._dynamo.reset()
    counters.clear()


def step(policy: Policy, items: list[Item]) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probs, contexts and gradient."""
    policy.zero_grad()
    scores = policy(pack_rows(items), with_contexts=True)
    (scores.logps * torch.linspace(-1, 1, len(scores.logps))).sum().backward()
    gradient = torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])
    assert scores.contexts is not None
    return scores.logps.detach(), scores.contexts, gradient


def assert_compiled_once(policy: Policy, plain: Policy, checkpointing: Checkpointing, backend: str) -> None:
    """Values are those of the plain blocks, and the first batch, with and without gradients, compiles for all."""
    counter = CompileCounterWithBackend(backend)
    prepare_blocks(policy.model, compiled=True, checkpointing=checkpointing, fullgraph=True, backend=counter)
    compiled = []
    for items in BATCHES:
        for found, expected in zip(step(policy, items), step(plain, items), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        with torch.no_grad():
            policy(pack_rows(items), with_contexts=True)
        compiled.append(counter.frame_count)
    assert 0 < compiled[0] <= 8 and compiled == compiled[:1] * len(BATCHES)
    assert not counters["graph_break"]


@pytest.mark.parametrize(
    "kind",
    [
        kind if kind in tiny.ARCHITECTURES else pytest.param(kind, marks=pytest.mark.slow)
        for kind in ARCHITECTURES
    ],
)
def test_a_block_is_one_graph_for_rows_of_any_length(kind: str) -> None:
    policy, plain = policy_of(kind), policy_of(kind)
    policy.pack(SEGMENTS)
    plain.pack(SEGMENTS)
    assert_compiled_once(policy, plain, "none", "eager")


@pytest.mark.parametrize(
    ("checkpointing", "packed"),
    [
        ("selective", VARLEN),
        pytest.param("full", VARLEN, marks=pytest.mark.slow),
        pytest.param("full", SEGMENTS, marks=pytest.mark.slow),
        pytest.param("selective", SEGMENTS, marks=pytest.mark.slow),
    ],
)
def test_recomputed_blocks_too(checkpointing: Checkpointing, packed: str) -> None:
    dtype = torch.bfloat16 if packed == VARLEN else torch.float32
    policy, plain = policy_of("llama", dtype), policy_of("llama", dtype)
    policy.pack(packed)
    plain.pack(packed)
    assert_compiled_once(policy, plain, checkpointing, "aot_eager")


def test_flexible_attention_is_part_of_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """With capped scores and windows; torch refuses gradients on CPUs, but has them."""
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *_: None)
    policy, plain = policy_of("gemma2"), policy_of("gemma2")
    policy.pack(FLEX)
    plain.pack(SEGMENTS)
    assert_compiled_once(policy, plain, "none", "eager")


@pytest.mark.slow
def test_block_masks_of_rows_of_any_length_are_compiled_once() -> None:
    counter = CompileCounterWithBackend("eager")
    compiled = compiling.compiled(block_mask, fullgraph=True, backend=counter)
    for count in (20, 12, 30):
        branches = pack_rows(items_of(count)).branches
        assert branches is not None
        found, expected = (make(branches.parts, 8) for make in (compiled, block_mask))
        assert torch.equal(found.to_dense(), expected.to_dense())
    assert counter.frame_count == 1


@pytest.mark.slow
def test_kernels_that_inductor_writes_give_the_same() -> None:
    policy, plain = (policy_of("llama", num_hidden_layers=1) for _ in range(2))
    policy.pack(SEGMENTS)
    plain.pack(SEGMENTS)
    policy.prepare(compiled=True, checkpointing="none")
    for items in BATCHES[:2]:
        for found, expected in zip(step(policy, items), step(plain, items), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert counters["stats"]["unique_graphs"] >= 2


class Operations(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names[str(function)] += 1
        return function(*args, **(kwargs or {}))


def test_selective_checkpointing_keeps_matrix_products_and_attention() -> None:
    """The backward pass has two products for each of the forward pass, and recomputes the rest."""
    counted = {}
    kinds: tuple[Checkpointing, ...] = ("none", "full", "selective")
    for checkpointing in kinds:
        policy = policy_of("llama")
        policy.pack(SEGMENTS)
        policy.prepare(compiled=False, checkpointing=checkpointing)
        logps = policy(pack_rows(BATCHES[0])).logps.sum()
        with Operations() as operations:
            logps.backward()
        counted[checkpointing] = operations.names
    attend = "aten._scaled_dot_product_flash_attention_for_cpu.default"
    products, rest = "aten.mm.default", "aten.rsqrt.default"
    blocks = 2 * 6  # the last product of a block is not needed again
    assert [counted[kind][rest] for kind in kinds] == [0, 4, 4]
    assert [counted[kind][products] - counted["none"][products] for kind in kinds] == [0, blocks, 0]
    assert [counted[kind][attend] > 0 for kind in kinds] == [False, True, False]


def test_a_later_call_replaces_an_earlier_one_and_hooks_stay_outside() -> None:
    policy, plain = policy_of("llama"), policy_of("llama")
    policy.pack(SEGMENTS)
    plain.pack(SEGMENTS)
    calls = []
    for block in policy.model.base_model.layers:
        block.register_forward_hook(lambda *_: calls.append(1))
    policy.prepare(compiled=False, checkpointing="full")
    step(policy, BATCHES[0])
    assert len(calls) == 2, "not again in the backward pass"
    policy.prepare(compiled=False, checkpointing="none")
    for found, expected in zip(step(policy, BATCHES[0]), step(plain, BATCHES[0]), strict=True):
        assert torch.equal(found, expected)
    assert len(calls) == 4


def test_log_probs_are_compiled_once_for_any_number_of_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(logps._chunk_logps, dynamic=True, backend=counter)
    monkeypatch.setattr(logps, "_compiled_chunk_logps", lambda: compiled)
    monkeypatch.setattr(logps, "LOGP_CHUNK", 8)
    counts = []
    for tokens in (7, 6, 8, 12, 20, 16, 5):
        states, targets = torch.randn(tokens, 4, requires_grad=True), torch.randint(11, (tokens,))
        found = logps.token_logps(torch.nn.Linear(4, 11), states, targets, final=Final(11), compiled=True)
        found.sum().backward()
        counts.append(counter.frame_count)
    assert counts == [2] * len(counts), "with and without gradients"


def test_blocks_whose_weights_fsdp2_casts_are_compiled_once() -> None:
    """As a job in bfloat16 has them: float32 masters, in shards of size 1."""
    workers = Workers(device="cpu", strategy="ddp", precision="bfloat16", threads=1, timeout_minutes=1)
    policy, plain = policy_of("llama"), policy_of("llama", torch.bfloat16)
    assert isinstance(workers.wrap(policy), FSDPModule)
    for each in (policy, plain):
        each.pack(SEGMENTS)
    counter = CompileCounterWithBackend("eager")
    prepare_blocks(policy.model, compiled=True, checkpointing="full", fullgraph=True, backend=counter)
    compiled = []
    for items in BATCHES[:3]:
        for each in (policy, plain):
            each.zero_grad()
            each(pack_rows(items)).logps.mean().backward()
        reshard(policy)
        found, expected = (
            torch.cat([local_part(weight.grad).flatten().float() for weight in each.parameters()])  # type: ignore[arg-type]
            for each in (policy, plain)
        )
        assert (found - expected).norm() < 0.05 * expected.norm()
        compiled.append(counter.frame_count)
    assert compiled == [compiled[0]] * 3 and compiled[0] > 0
