"""Packed rows give the values and gradients of padded ones, for four architecture classes."""

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from sams.policy.model import build_model, checkpoint_activations, compile_blocks
from sams.policy.packing import SEGMENTS, VARLEN, Branches
from sams.policy.policy import Policy, Scores
from sams.policy.rows import Item, pack_rows, pad_rows
from tests import tiny

KINDS = list(tiny.ARCHITECTURES)
PAIRS = tiny.pairs(6, seed=4)
ITEMS: list[Item] = [
    (prompt, [chosen, rejected])
    for prompt, chosen, rejected in zip(
        PAIRS["prompt_ids"], PAIRS["chosen_ids"], PAIRS["rejected_ids"], strict=True
    )
]


def policy_of(kind: str) -> Policy:
    model = build_model(tiny.settings(kind), tiny.tokenizer(), seed=0)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        # Attention of fresh weights is nearly uniform and would hide a wrong mask.
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return Policy(model)


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


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_packed_pairs_equal_padded_ones(kind: str, checkpointing: bool) -> None:
    policy = policy_of(kind)
    if checkpointing:
        checkpoint_activations(policy.model)
    assert_equal(policy, ITEMS, SEGMENTS)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_compiled_model_gives_the_same(kind: str) -> None:
    plain, compiled = policy_of(kind), policy_of(kind)
    compile_blocks(compiled.model)
    checkpoint_activations(compiled.model)
    counters.clear()
    for items in (ITEMS, ITEMS[:4], ITEMS[:3]):
        expected, expected_gradient = scores_and_gradient(plain, items, SEGMENTS)
        found, gradient = scores_and_gradient(compiled, items, SEGMENTS)
        torch.testing.assert_close(found.logps, expected.logps, rtol=1e-6, atol=1e-5)
        assert (gradient - expected_gradient).abs().max() <= 1e-5 * expected_gradient.abs().max()
    # It was compiled, whole, and once for all lengths.
    assert 2 <= counters["stats"]["unique_graphs"] <= 4
    assert not counters["graph_break"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("completions", [1, 3])
def test_items_may_have_any_number_of_completions(kind: str, completions: int) -> None:
    items: list[Item] = [(prompt, (list(answers) * 2)[:completions]) for prompt, answers in ITEMS]
    assert_equal(policy_of(kind), items, SEGMENTS)


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_sibling_or_another_item_holds_changes_nothing(kind: str) -> None:
    policy = policy_of(kind)
    policy.pack(SEGMENTS)
    changed: list[Item] = [
        (prompt, [chosen, [9] * len(rejected)]) for prompt, (chosen, rejected) in ITEMS[:3]
    ]
    changed += [([8] * len(prompt), answers) for prompt, answers in ITEMS[3:]]
    before, after = (policy(pack_rows(items)).logps.chunk(2)[0][:3] for items in (ITEMS, changed))
    assert torch.equal(before, after)


def by_segment(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_ends: Tensor,
    key_ends: Tensor,
    most_queries: int,
    most_keys: int,
    *,
    scale: float | None,
    window_size: tuple[int, int],
    enable_gqa: bool,
) -> Tensor:
    """torch's variable-length attention as its documentation has it, which itself runs on GPUs only."""
    left, right = window_size
    assert right == 0
    outputs = []
    for segment in range(len(query_ends) - 1):
        q = query[query_ends[segment] : query_ends[segment + 1]].transpose(0, 1)
        k, v = (part[key_ends[segment] : key_ends[segment + 1]].transpose(0, 1) for part in (key, value))
        queries, keys = q.shape[1], k.shape[1]
        assert queries <= most_queries and keys <= most_keys
        distance = torch.arange(keys - queries, keys)[:, None] - torch.arange(keys)
        seen = (distance >= 0) & ((distance <= left) | (left < 0))
        out = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=seen, scale=scale, enable_gqa=enable_gqa
        )
        outputs.append(out.transpose(0, 1))
    return torch.cat(outputs)


@pytest.mark.parametrize("kind", ["llama", "mistral", "gpt_neox"])
def test_segments_are_what_a_variable_length_kernel_asks_for(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", by_segment)
    assert_equal(policy_of(kind), ITEMS, VARLEN)


def test_a_capped_model_has_no_variable_length_kernel() -> None:
    policy = policy_of("gemma2")
    policy.pack(VARLEN)
    with pytest.raises(NotImplementedError, match="capped"):
        policy(pack_rows(ITEMS))


def test_the_mask_of_a_branch_lines_up_its_last_token_with_the_last_key() -> None:
    branches = Branches(((2, (1, 2)),))
    hidden = branches.mask(2, 4, None, torch.zeros(())) < 0
    assert hidden.tolist() == [[False, False, False, True], [False, False, False, False]]
    hidden = branches.mask(2, 4, 2, torch.zeros(())) < 0
    assert hidden.tolist() == [[True, False, False, True], [True, True, False, False]]
