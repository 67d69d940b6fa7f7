"""Log-probs and contexts of the policy against the plain computation, for four architecture classes."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sams.policy import logps
from sams.policy.attention import SEGMENTS
from sams.policy.blocks import Checkpointing
from sams.policy.model import build_model
from sams.policy.output import Final
from sams.policy.policy import Policy, Scores, completion_means
from sams.policy.rows import Item, Rows, pack_rows, pad_rows
from sams.training.memory import Allocated
from tests import tiny

KINDS = list(tiny.ARCHITECTURES)


def responses() -> list[Item]:
    data = tiny.pairs(6, seed=4)
    return [(prompt, [chosen]) for prompt, chosen in zip(data["prompt_ids"], data["chosen_ids"], strict=True)]


def model_and_rows(kind: str) -> tuple[Policy, Rows]:
    model = build_model(tiny.settings(kind), tiny.tokenizer(), seed=0)
    return Policy(model), pad_rows(responses())


def completion_mask(rows: Rows) -> torch.Tensor:
    mask = torch.zeros(rows.input_ids.numel())
    mask[rows.answers] = 1
    return mask.view(rows.input_ids.shape)


def naive_logps(policy: Policy, rows: Rows) -> torch.Tensor:
    """From the model's own logits over the whole vocabulary."""
    logits = policy.model(input_ids=rows.input_ids, attention_mask=rows.attention_mask).logits.float()
    logps = logits.log_softmax(dim=2)[:, :-1].gather(2, rows.input_ids[:, 1:, None])[:, :, 0]
    return (logps * completion_mask(rows)[:, 1:]).sum(dim=1)


def call(policy: Policy, rows: Rows, contexts: bool = False) -> Scores:
    scores: Scores = policy(rows, contexts)
    return scores


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("chunk", "kept"), [(3, 2**30), (7, 2**30), (512, 2**30), (3, 1000)])
def test_chunked_logps_and_their_gradients_equal_the_naive_ones(
    kind: str, chunk: int, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logps, "LOGP_CHUNK", chunk)
    monkeypatch.setattr(logps, "LOGITS_BYTES", kept)
    policy, rows = model_and_rows(kind)
    expected = naive_logps(policy, rows)
    weights = torch.linspace(-1, 1, len(expected))
    (expected * weights).sum().backward()
    expected_gradients = {
        name: parameter.grad.clone()
        for name, parameter in policy.named_parameters()
        if parameter.grad is not None
    }
    policy.zero_grad()

    found = call(policy, rows).logps
    (found * weights).sum().backward()

    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-5)
    for name, parameter in policy.named_parameters():
        if name in expected_gradients:
            assert parameter.grad is not None
            difference = (parameter.grad - expected_gradients[name]).abs().max()
            assert difference <= 1e-5 * max(expected_gradients[name].abs().max().item(), 1e-3), name


class Largest(TorchDispatchMode):
    """Notes the elements of the largest tensor of each type that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: Counter[torch.dtype] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        for part in tree_leaves(found):
            if isinstance(part, torch.Tensor):
                self.elements[part.dtype] = max(self.elements[part.dtype], part.numel())
        return found


@pytest.mark.parametrize("packed", [None, SEGMENTS])
def test_logits_of_all_tokens_are_kept_in_the_compute_type_within_a_bound(
    packed: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In forward and backward pass; float32 is for chunks; beyond the bound logits are computed again."""
    monkeypatch.setattr(logps, "LOGP_CHUNK", 8)
    items: list[Item] = [([1, 3], [[4] * 50, [5] * 50]), ([1, 6, 7], [[8] * 50, [9] * 50])]
    rows = pack_rows(items) if packed else pad_rows(items)
    vocabulary, tokens = 1000, 200
    architecture = tiny.SIZES | tiny.ARCHITECTURES["llama"] | {"vocab_size": vocabulary}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**architecture)).bfloat16()
    kept = []
    for bound in (tokens, 50):
        monkeypatch.setattr(logps, "LOGITS_BYTES", bound * vocabulary * 2)
        policy = Policy(model)
        policy.pack(packed)
        with Largest() as largest:
            with Allocated(torch.device("cpu")) as allocated:
                loss = policy(rows).logps.sum()
            loss.backward()
        kept.append(allocated.bytes)
        assert largest.elements[torch.float32] == 8 * vocabulary
        assert largest.elements[torch.bfloat16] == bound * vocabulary
    # The last of four groups is kept.
    assert kept[0] - kept[1] == pytest.approx(150 * vocabulary * 2, rel=0.2)


@pytest.mark.parametrize("cap", [None, 3.0])
def test_log_probs_from_bfloat16_logits_are_those_of_float64(cap: float | None, monkeypatch: Any) -> None:
    monkeypatch.setattr(logps, "LOGP_CHUNK", 5)
    torch.manual_seed(0)
    states, weight = torch.randn(23, 16).bfloat16(), torch.randn(97, 16).bfloat16()
    targets = torch.randint(97, (23,))
    logits = (states @ weight.T).requires_grad_()
    weights = torch.linspace(-1, 1, 23)

    oracle = logits.detach().double().requires_grad_()
    final = oracle if cap is None else cap * torch.tanh(oracle / cap)
    expected = final.log_softmax(dim=1).gather(1, targets[:, None])[:, 0]
    (expected * weights).sum().backward()

    found = logps.token_logps(lambda _: logits, states, targets, final=Final(97, cap=cap))
    (found * weights).sum().backward()
    assert found.dtype == torch.float32 and logits.grad is not None and oracle.grad is not None
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-5)
    # One rounding to bfloat16.
    torch.testing.assert_close(logits.grad.double(), oracle.grad, rtol=2**-8, atol=1e-6)


def test_contexts_are_summed_in_float32_and_those_of_empty_completions_are_zero() -> None:
    torch.manual_seed(0)
    counts = [300, 0, 5]
    rows = replace(
        pack_rows([([1], [[2] * 300]), ([1], [[]]), ([1], [[3] * 5])]), counts=torch.tensor(counts)
    )
    block = torch.nn.Identity()
    states = (1 + torch.randn(1, rows.input_ids.numel(), 16)).bfloat16()
    with completion_means([block], rows) as means:
        block(states)
    parts = states[0].double()[rows.answers].split(counts)
    expected = torch.stack([part.sum(dim=0) / max(1, len(part)) for part in parts])
    # On a CPU sum, count and mean are rounded to bfloat16; sums of 300 in bfloat16 would be wrong by percents.
    torch.testing.assert_close(means[0].double(), expected, rtol=2**-7, atol=1e-6)
    assert means[0].dtype == torch.bfloat16 and not means[0][1].any()


@pytest.mark.parametrize("kind", KINDS)
def test_padding_and_batch_mates_change_neither_logps_nor_contexts(kind: str) -> None:
    policy, rows = model_and_rows(kind)
    together = call(policy, rows, contexts=True)
    assert together.contexts is not None
    for row, item in enumerate(responses()):
        alone = call(policy, pad_rows([item]), contexts=True)
        assert alone.contexts is not None
        torch.testing.assert_close(alone.logps[0], together.logps[row], rtol=1e-6, atol=1e-5)
        torch.testing.assert_close(alone.contexts[0], together.contexts[row], rtol=1e-4, atol=1e-5)


def test_contexts_are_means_over_completion_tokens_of_every_block() -> None:
    policy, rows = model_and_rows("llama")
    contexts = call(policy, rows, contexts=True).contexts
    assert contexts is not None
    outputs = policy.model.base_model(
        input_ids=rows.input_ids, attention_mask=rows.attention_mask, output_hidden_states=True
    )
    mask = completion_mask(rows)[:, :, None]
    # hidden_states[1] is the output of block 0; the last entry has passed the final norm, the block has not.
    expected = (outputs.hidden_states[1] * mask).sum(dim=1) / mask.sum(dim=1)
    torch.testing.assert_close(contexts[:, 0], expected, rtol=1e-5, atol=1e-6)
    assert contexts.shape == (6, 2, 32)


def test_what_a_prompt_token_holds_reaches_the_context_through_attention_only() -> None:
    policy, rows = model_and_rows("llama")
    changed = rows.input_ids.clone()
    changed[:, 1] = 5
    before, after = (
        call(policy, replace(rows, input_ids=ids), contexts=True).contexts
        for ids in (rows.input_ids, changed)
    )
    assert before is not None
    assert after is not None
    assert not torch.equal(before, after)


@pytest.mark.parametrize("kind", KINDS)
def test_train_and_eval_give_the_same_logps_bit_by_bit(kind: str) -> None:
    policy, rows = model_and_rows(kind)
    assert torch.equal(call(policy.train(), rows).logps, call(policy.eval(), rows).logps)


def test_activation_checkpointing_changes_no_gradient() -> None:
    gradients = []
    kinds: tuple[Checkpointing, ...] = ("none", "full", "selective")
    for checkpointing in kinds:
        model = build_model(tiny.settings(), tiny.tokenizer(), seed=0)
        policy = Policy(model)
        policy.prepare(compiled=False, checkpointing=checkpointing)
        _, rows = model_and_rows("llama")
        call(policy, rows).logps.sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None]))
    assert torch.equal(gradients[0], gradients[1]) and torch.equal(gradients[0], gradients[2])
    assert gradients[0].norm() > 0


def test_building_a_model_is_seeded_and_leaves_the_random_state_alone() -> None:
    before = torch.random.get_rng_state()
    first, again, other = (build_model(tiny.settings(), tiny.tokenizer(), seed) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    weights = [next(model.parameters()) for model in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
