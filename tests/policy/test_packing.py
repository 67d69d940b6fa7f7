"""Packed rows give the values and gradients of padded ones, for four architecture classes and every kernel."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import flex_attention
from torch.utils._python_dispatch import TorchDispatchMode

from sams.policy import attention
from sams.policy.attention import FLEX, SEGMENTS, VARLEN, causal_mask, kernels, varlen_attention
from sams.policy.policy import Policy, Scores
from sams.policy.rows import Item, pack_rows, pad_rows
from tests import tiny
from tests.policy import kernel
from tests.policy.models import items_of, policy_of

KINDS = list(tiny.ARCHITECTURES)
ITEMS = items_of(6)


def scores_and_gradient(policy: Policy, items: list[Item], packed: str | None) -> tuple[Scores, Tensor]:
    policy.pack(packed)
    policy.zero_grad()
    scores: Scores = policy(pack_rows(items) if packed else pad_rows(items), with_contexts=True)
    (scores.logps * torch.linspace(-1, 1, len(scores.logps))).sum().backward()
    return scores, torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])


def assert_equal(policy: Policy, items: list[Item], packed: str) -> None:
    expected, expected_gradient = scores_and_gradient(policy, items, None)
    found, gradient = scores_and_gradient(policy, items, packed)
    torch.testing.assert_close(found.logps, expected.logps, rtol=1e-6, atol=1e-5)
    assert torch.equal(found.tokens, expected.tokens)
    assert found.contexts is not None
    torch.testing.assert_close(found.contexts, expected.contexts, rtol=1e-4, atol=1e-5)
    assert expected_gradient.norm() > 1
    assert (gradient - expected_gradient).abs().max() <= 1e-5 * expected_gradient.abs().max()


@pytest.mark.parametrize("kind", KINDS)
def test_packed_pairs_equal_padded_ones(kind: str) -> None:
    assert_equal(policy_of(kind), ITEMS, SEGMENTS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("completions", [1, 3])
def test_items_may_have_any_number_of_completions(kind: str, completions: int) -> None:
    items: list[Item] = [(prompt, (list(answers) * 2)[:completions]) for prompt, answers in ITEMS]
    assert_equal(policy_of(kind), items, SEGMENTS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("packed", [SEGMENTS, FLEX])
def test_tokens_of_a_sibling_or_another_item_change_nothing(kind: str, packed: str) -> None:
    policy = policy_of(kind)
    policy.pack(packed)
    changed: list[Item] = [
        (prompt, [chosen, [9] * len(rejected)]) for prompt, (chosen, rejected) in ITEMS[:3]
    ]
    changed += [([8] * len(prompt), answers) for prompt, answers in ITEMS[3:]]
    with torch.no_grad():
        before, after = (policy(pack_rows(items)).logps.chunk(2)[0][:3] for items in (ITEMS, changed))
    assert torch.equal(before, after)


def test_the_last_token_of_a_branch_is_aligned_with_its_last_key() -> None:
    hidden = causal_mask(2, 4, None, torch.zeros(())) < 0
    assert hidden.tolist() == [[False, False, False, True], [False, False, False, False]]
    hidden = causal_mask(2, 4, 2, torch.zeros(())) < 0
    assert hidden.tolist() == [[True, False, False, True], [True, True, False, False]]


# --- FlexAttention --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_flexible_attention_gives_values_and_gradients_of_padded_rows(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Capped scores, windows and grouped heads are among the four; torch refuses gradients on CPUs, but has them."""
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *_: None)
    assert_equal(policy_of(kind), ITEMS, FLEX)


# --- variable-length attention ----------------------------------------------------------------------


@pytest.fixture(params=["2.11", "2.13"])
def release(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The arguments that the kernel has in a release of torch."""
    if request.param == "2.11":
        monkeypatch.setattr(attention, "varlen_attn", kernel.of_torch_2_11)
        monkeypatch.setattr(attention, "GROUPED", attention.takes_groups(kernel.of_torch_2_11))
    kernel.CALLS.clear()
    return str(request.param)


@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("kind", ["llama", "mistral", "gpt_neox"])
def test_varlen_attention_is_that_of_padded_rows_in_bfloat16(kind: str, autocast: bool, release: str) -> None:
    """Under autocast too, where rotary embeddings make queries and keys float32."""
    policy = policy_of(kind, torch.float32 if autocast else torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        expected, expected_gradient = scores_and_gradient(policy, ITEMS, None)
        found, gradient = scores_and_gradient(policy, ITEMS, VARLEN)
    assert [torch.bfloat16] * len(kernel.CALLS) == kernel.CALLS and len(kernel.CALLS) == 2
    assert ((found.logps - expected.logps).abs() / found.tokens).max() < 0.05
    assert (gradient.float() - expected_gradient.float()).norm() < 0.05 * expected_gradient.float().norm()


def test_float32_rows_are_refused_by_the_varlen_kernel() -> None:
    policy = policy_of("llama")
    policy.pack(VARLEN)
    with pytest.raises(RuntimeError, match="only support fp16 and bf16"):
        policy(pack_rows(ITEMS))


# --- which kernel, and which calls ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "precision", "capped", "expected"),
    [
        ("cuda", "bfloat16", False, [VARLEN, SEGMENTS]),
        ("cuda", "bfloat16", True, [FLEX, SEGMENTS]),
        ("cuda", "float32", False, [SEGMENTS]),
        ("cpu", "bfloat16", False, [SEGMENTS]),
    ],
)
def test_a_gpu_computes_16_bit_rows_in_one_call(
    device: str, precision: str, capped: bool, expected: list[str]
) -> None:
    assert kernels(device, precision, capped=capped) == expected


class Calls(TorchDispatchMode):
    """Counts the operations of `scaled_dot_product_attention`, by the shape of the queries."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: Counter[tuple[int, ...]] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "scaled_dot_product" in str(function) and "backward" not in str(function):
            self.shapes[tuple(args[0].shape)] += 1
        return function(*args, **(kwargs or {}))


def test_a_step_calls_sdpa_for_segments_only_and_never_cudnn() -> None:
    attention.disable_cudnn_attention()
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    policy = policy_of("llama", torch.bfloat16)
    counted = {}
    for packed in (SEGMENTS, VARLEN):
        with Calls() as calls:
            scores_and_gradient(policy, ITEMS, packed)
        counted[packed] = calls.shapes
    assert sum(counted[SEGMENTS].values()) == 2 * 2 * len(ITEMS), "two layers, two segments an item"
    # Every length is a shape of its own, for which cuDNN would build a plan.
    assert len(counted[SEGMENTS]) > 6
    assert not counted[VARLEN]


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"s_aux": torch.zeros(4)}, "s_aux"),
        ({"position_bias": torch.zeros(1)}, "position_bias"),
        ({"head_mask": torch.zeros(1), "dropout": 0.1}, "head_mask, dropout"),
        ({"attention_mask": torch.zeros(1)}, "attention_mask"),
        ({"is_causal": False}, "is_causal=False"),
        ({"softcap": 50.0}, "softcap"),
    ],
)
def test_arguments_that_would_change_the_attention_are_refused_by_name(
    given: dict[str, Any], named: str
) -> None:
    branches = pack_rows(ITEMS).branches
    assert branches is not None
    query = torch.zeros(1, 2, len(branches.parts[0]), 8)
    arguments = {"attention_mask": None, "branches": branches, "output_attentions": False} | given
    with pytest.raises(NotImplementedError, match=named):
        varlen_attention(torch.nn.Identity(), query, query, query, **arguments)
