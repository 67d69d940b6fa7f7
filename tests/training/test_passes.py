"""The gradient is that of the mean over the selected items, however they are dealt and batched."""

import math

import pytest
import torch

from sams.losses.table import build_loss
from sams.policy.model import build_model
from sams.policy.policy import Policy, Scores
from sams.scheduling.rewards import sample_reward
from sams.training.distribution import Workers
from sams.training.passes import accumulate_gradient, score
from sams.training.tasks.base import Task
from sams.training.tasks.pairs import PairTask
from sams.training.tasks.preference import PreferenceTask
from sams.training.tasks.sft import SftTask
from sams.training.watching import WatchedTask
from tests import tiny


@pytest.fixture(scope="module")
def workers() -> Workers:
    return Workers(device="cpu", strategy="ddp", precision="float32", threads=1, timeout_minutes=1)


def new_policy() -> Policy:
    return Policy(build_model(tiny.settings(), tiny.tokenizer(), seed=0))


def preference_task(workers: Workers, shift: float = 0.5) -> PreferenceTask:
    """A task whose reference differs from the policy, so that the loss is not log 2 everywhere."""
    data = tiny.pairs(16, seed=1)
    plain = PairTask(data)
    found, _ = score(new_policy(), plain, list(range(16)), workers, 16)
    reference = {
        pair: (found["logps/chosen"][index].item() + shift * index, found["logps/rejected"][index].item())
        for index, pair in enumerate(plain.ids)
    }
    loss = build_loss("sigmoid", beta=0.1, settings={}, sft_weight=0.0)
    return PreferenceTask(data, loss=loss, reference=reference)


def gradient(policy: Policy) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])


def naive_gradient(task: PreferenceTask, chosen: list[int]) -> torch.Tensor:
    """From the model's own logits, one pair at a time, as the formula says."""
    policy = new_policy()
    total = torch.zeros(())
    for item in chosen:
        logps = []
        for completion in (task.chosen[item], task.rejected[item]):
            prompt = task.prompts[item]
            ids = torch.tensor([[*prompt, *completion]])
            logits = policy.model(input_ids=ids).logits[0, :-1].log_softmax(dim=1)
            picked = logits.gather(1, ids[0, 1:, None])[:, 0]
            logps.append(picked[len(prompt) - 1 :].sum())
        assert task.reference is not None
        reference = task.reference[item]
        total = total + torch.log1p(torch.exp(-0.1 * ((logps[0] - reference[0]) - (logps[1] - reference[1]))))
    (total / len(chosen)).backward()
    return gradient(policy)


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool((one - other).abs().max() <= 1e-5 * other.abs().max())


def test_gradient_is_that_of_the_mean_over_the_selected(workers: Workers) -> None:
    task = preference_task(workers)
    chosen = [3, 1, 8, 14, 2, 9, 7, 0]
    policy = new_policy()
    accumulate_gradient(policy, task, chosen, workers, 8)
    expected = naive_gradient(task, chosen)
    assert expected.norm() > 1e-3
    assert close(gradient(policy), expected)
    # The mean over n instead of K would be half of it.
    assert not close(gradient(policy), expected / 2)


@pytest.mark.parametrize("micro_batch", [1, 2, 3, 16])
def test_micro_batches_change_neither_loss_nor_gradient(workers: Workers, micro_batch: int) -> None:
    task = preference_task(workers)
    chosen = [3, 1, 8, 14, 2, 9, 7]
    whole, parts = new_policy(), new_policy()
    expected = accumulate_gradient(whole, task, chosen, workers, 7)
    found = accumulate_gradient(parts, task, chosen, workers, micro_batch)
    torch.testing.assert_close(found["loss"], expected["loss"], rtol=0, atol=1e-5)
    assert close(gradient(parts), gradient(whole))


@pytest.mark.parametrize("micro_batch", [8, 5, 1])
def test_sixteen_pairs_are_one_two_four_or_sixteen_micro_batches(workers: Workers, micro_batch: int) -> None:
    task = preference_task(workers)
    whole, parts = new_policy(), new_policy()
    expected = accumulate_gradient(whole, task, list(range(16)), workers, 16)
    found = accumulate_gradient(parts, task, list(range(16)), workers, micro_batch)
    torch.testing.assert_close(found["loss"], expected["loss"], rtol=0, atol=1e-5)
    assert close(gradient(parts), gradient(whole))


class OneOf(Workers):
    """One of several processes, with nobody to exchange tensors with."""

    def __init__(self, rank: int, world: int) -> None:
        super().__init__(device="cpu", strategy="ddp", precision="float32", threads=1, timeout_minutes=1)
        self.rank, self.world = rank, world

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor


@pytest.mark.parametrize("kind", ["preference", "sft"])
@pytest.mark.parametrize(("world", "items"), [(2, 7), (3, 7), (4, 3)])
def test_the_processes_average_is_the_gradient_of_the_mean_over_all(
    workers: Workers, kind: str, world: int, items: int
) -> None:
    """Hands of different sizes, of tokens too, and with 3 items on 4 processes an empty one."""
    task: Task = preference_task(workers)
    if kind == "sft":
        task = SftTask(tiny.pairs(16, seed=1), response="chosen_ids")
    whole = new_policy()
    accumulate_gradient(whole, task, list(range(items)), workers, 16)
    parts = []
    for rank in range(world):
        policy = new_policy()
        accumulate_gradient(policy, task, list(range(items)), OneOf(rank, world), 2)
        parts.append(gradient(policy))
    assert gradient(whole).norm() > 1e-3
    assert close(torch.stack(parts).mean(dim=0), gradient(whole))


def test_the_scoring_pass_reports_in_the_order_asked(workers: Workers) -> None:
    task = preference_task(workers)
    items = [5, 0, 11, 3]
    found, contexts = score(new_policy(), task, items, workers, 3, contexts=True)
    assert contexts is not None
    for index, item in enumerate(items):
        alone, context = score(new_policy(), task, [item], workers, 1, contexts=True)
        assert context is not None
        assert found["loss"][index].item() == pytest.approx(alone["loss"].item(), abs=1e-5)
        torch.testing.assert_close(contexts[index], context[0], rtol=1e-4, atol=1e-5)


def test_scoring_gives_what_the_gradient_pass_sees(workers: Workers) -> None:
    task = preference_task(workers)
    policy = new_policy()
    seen, _ = score(policy, task, list(range(16)), workers, 5)
    trained = accumulate_gradient(policy, task, list(range(16)), workers, 3)
    for name, values in seen.items():
        torch.testing.assert_close(trained[name], values, rtol=1e-5, atol=1e-5)


def test_what_the_unselected_hold_does_not_touch_the_gradient(workers: Workers) -> None:
    chosen = [3, 1, 8, 14]
    gradients = []
    for seed in (1, 2):
        task = preference_task(workers)
        other = tiny.pairs(16, seed=seed + 10)
        for item in set(range(16)) - set(chosen):
            task.prompts[item], task.chosen[item] = other["prompt_ids"][item], other["chosen_ids"][item]
        policy = new_policy()
        accumulate_gradient(policy, task, chosen, workers, 2)
        gradients.append(gradient(policy))
    assert torch.equal(gradients[0], gradients[1])


def test_sft_loss_is_the_mean_over_tokens(workers: Workers) -> None:
    data = tiny.pairs(6, seed=1)
    task = SftTask(data, response="chosen_ids")
    policy, plain = new_policy(), new_policy()
    accumulate_gradient(policy, task, list(range(6)), workers, 2)
    total, tokens = torch.zeros(()), 0
    for prompt, completion in zip(task.prompts, task.responses, strict=True):
        ids = torch.tensor([[*prompt, *completion]])
        labels = ids.clone()
        labels[0, : len(prompt)] = -100
        total = total + plain.model(input_ids=ids, labels=labels).loss * len(completion)
        tokens += len(completion)
    (total / tokens).backward()
    assert close(gradient(policy), gradient(plain))


def test_policy_equal_to_reference_gives_log_2(workers: Workers) -> None:
    task = preference_task(workers, shift=0.0)
    found, _ = score(new_policy(), task, list(range(16)), workers, 4)
    assert found["loss"].tolist() == pytest.approx([math.log(2)] * 16, abs=1e-5)


def test_a_cached_reference_equals_one_computed_on_line_in_any_order_of_the_pairs(workers: Workers) -> None:
    data = tiny.pairs(16, seed=1)
    reference = build_model(tiny.settings(), tiny.tokenizer(), seed=1)
    cached, _ = score(Policy(reference), PairTask(data), list(range(16)), workers, 5)
    by_id = dict(zip(data["id"], zip(*(part.tolist() for part in cached.values()), strict=True), strict=True))
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0)).tolist()
    shuffled = {name: [values[index] for index in order] for name, values in data.items()}
    loss = build_loss("sigmoid", beta=0.1, settings={}, sft_weight=0.0)
    policy = new_policy()
    found, _ = score(
        policy, PreferenceTask(shuffled, loss=loss, reference=by_id), list(range(16)), workers, 3
    )
    for index, pair in enumerate(order):
        ratios = []
        for side in ("chosen_ids", "rejected_ids"):
            prompt, completion = data["prompt_ids"][pair], data[side][pair]
            ids = torch.tensor([[*prompt, *completion]])
            logps = [
                model(input_ids=ids).logits[0, :-1].log_softmax(dim=1).gather(1, ids[0, 1:, None])
                for model in (policy.model, reference)
            ]
            ratios.append((logps[0] - logps[1])[len(prompt) - 1 :].sum().item())
        on_line = math.log1p(math.exp(-0.1 * (ratios[0] - ratios[1])))
        assert found["loss"][index].item() == pytest.approx(on_line, abs=1e-5)


def test_the_view_of_a_single_response_still_tells_samples_apart(workers: Workers) -> None:
    task = WatchedTask(tiny.pairs(16, seed=1), response="chosen_ids")
    found, contexts = score(new_policy(), task, list(range(16)), workers, 8, contexts=True)
    view = task.view(list(range(16)), found, contexts)
    # The more likely a response is per token, the larger is what stands for its margin.
    counts = torch.tensor([len(ids) for ids in task.responses])
    torch.testing.assert_close(view.margins, found["logps/chosen"] / counts)
    for uncertainty in ("sum", "mean"):
        assert sample_reward(view.margins, view.confidence(uncertainty), 0.5).std() > 0.01
    assert view.contexts is not None
    assert view.contexts.shape == (16, 1, 2, 32)


def test_a_tie_counts_one_half(workers: Workers) -> None:
    """Where TRL's `rewards/accuracies` counts an error."""
    task = preference_task(workers)
    task.reference = torch.full((16, 2), -3.0)
    # Chosen, then rejected: the rewards of the first pair are equal, then the rejected's is higher, then lower.
    logps = torch.tensor([-3.0, -3.0, -3.0, -3.0, -2.0, -4.0])
    scores = Scores(logps=logps, tokens=torch.ones(6, dtype=torch.int64))
    assert task.items(scores, [0, 1, 2])["rewards/accuracies"].tolist() == [0.5, 0.0, 1.0]


@pytest.mark.parametrize(("loss", "beta"), [("sigmoid", 0.1), ("sigmoid", 0.01), ("ipo", 0.1), ("kto", 0.1)])
def test_margins_of_an_untrained_policy_differ_by_less_than_their_rounding(
    workers: Workers, loss: str, beta: float
) -> None:
    """Cached with one attention kernel, computed with another: the rest is rounding, and must not be ranked."""
    data = tiny.pairs(64, seed=1) | {"mismatched_ids": [[2]] * 64}
    plain, everything = PairTask(data), list(range(64))
    other = Policy(build_model(tiny.settings(attention="eager"), tiny.tokenizer(), seed=0))
    cached, _ = score(other, plain, everything, workers, 16)
    columns = (cached["logps/chosen"].tolist(), cached["logps/rejected"].tolist(), [0.0] * 64)
    reference = dict(zip(plain.ids, zip(*columns, strict=True), strict=True))
    built = build_loss(loss, beta=beta, settings={}, sft_weight=0.0)
    task = PreferenceTask(data, loss=built, reference=reference)
    found, _ = score(new_policy(), task, everything, workers, 16, kl=torch.zeros(()))
    view = task.view(everything, found, None)
    span = (view.margins.max() - view.margins.min()).item()
    assert 0 < span <= view.margin_rounding
    assert view.rounding_share() == 1.0
    # And a margin that matters, a hundredth of a nat of log-ratio, is far above it.
    assert view.margin_rounding < 0.01 * beta


def test_margins_that_are_rounding_in_bfloat16_do_not_rank_pairs() -> None:
    """Policy and reference are one model, with two kernels: all margins are rounding."""
    workers = Workers(device="cpu", strategy="ddp", precision="bfloat16", threads=1, timeout_minutes=1)
    data, everything = tiny.pairs(64, seed=1), list(range(64))
    policy, other = (
        Policy(build_model(tiny.settings(attention=attention), tiny.tokenizer(), seed=0))
        for attention in ("sdpa", "eager")
    )
    for model in (policy, other):
        for weight in model.parameters():
            weight.data = 4 * weight.bfloat16()  # as decided as a trained model
    plain = PairTask(data)
    cached, _ = score(other, plain, everything, workers, 16)
    columns = (cached["logps/chosen"].tolist(), cached["logps/rejected"].tolist())
    loss = build_loss("sigmoid", beta=0.1, settings={}, sft_weight=0.0)
    reference = dict(zip(plain.ids, zip(*columns, strict=True), strict=True))
    task = PreferenceTask(data, loss=loss, reference=reference, precision="bfloat16")
    view = task.view(everything, score(policy, task, everything, workers, 64)[0], None)
    assert view.margins.std() > 1e-5, "far more than the rounding of float32"
    assert view.rounding_share() == 1.0
    # What is left of Eq. 7 is the uncertainty term.
    rewards = sample_reward(view.margins, view.chosen_logps, 0.5, view.margin_rounding)
    assert torch.equal(rewards.argsort(), view.chosen_logps.argsort(descending=True))
    # Once the policy has moved by nats, the margins count.
    view.margins = view.margins + torch.linspace(0, 1, 64)
    assert 0 < view.rounding_share() < 0.5
