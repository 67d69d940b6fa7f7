"""The networks, the replay pool and the learning step."""

import io
from typing import Any

import pytest
import torch
from torch import Tensor

from sams.config import Scheduler as Settings
from sams.scheduling.networks import Exploitation, LayerEncoder, minilm_folder
from sams.scheduling.pool import Arms, ReplayPool
from sams.scheduling.scheduler import Scheduler, context_width, merge_contexts

LAYERS, WIDTH = 3, 16


def scheduler(**overrides: Any) -> Scheduler:
    settings = Settings.model_validate({"learning_rate": 1e-3, **overrides})
    return Scheduler(
        settings,
        layers=LAYERS,
        width=WIDTH,
        seed=0,
        device=torch.device("cpu"),
        train_encoder=False,
        rounds=1000,
        arms_per_round=8,
    )


def arms(contexts: Tensor, rewards: Tensor, of: Scheduler) -> Arms:
    _, values, hidden = of.score(contexts)
    return Arms(contexts, hidden, values, rewards)


def saved(state: Any) -> Any:
    """A state as a checkpoint gives it back."""
    stream = io.BytesIO()
    torch.save(state, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=True)


def clusters(generator: torch.Generator, n: int = 16) -> tuple[Tensor, Tensor]:
    """Contexts of two kinds, with a high and a low reward."""
    kind = torch.arange(n) % 2
    contexts = torch.randn(n, LAYERS, WIDTH, generator=generator) * 0.1 + (2.0 * kind - 1)[:, None, None]
    return contexts, 0.3 + 0.4 * kind.float()


def test_the_nets_learn_to_tell_two_clusters_apart() -> None:
    learner, generator = scheduler(), torch.Generator().manual_seed(0)
    for _ in range(150):
        learner.learn(arms(*clusters(generator), learner))
    contexts, rewards = clusters(generator)
    scores, values, _ = learner.score(contexts)
    assert scores.shape == values.shape == (16,)
    # Broadcasting (n,) against (n, 1) would have fitted the mean of the batch, 0.5.
    assert (values - rewards).abs().max() < 0.1


def test_adam_moments_persist_over_rounds() -> None:
    learner, generator = scheduler(), torch.Generator().manual_seed(0)
    for _ in range(3):
        learner.learn(arms(*clusters(generator), learner))
    steps = [state["step"].item() for optimiser in learner.optimisers for state in optimiser.state.values()]
    assert set(steps) == {3.0}


def test_the_frozen_encoder_stays_and_the_rest_moves() -> None:
    learner, generator = scheduler(), torch.Generator().manual_seed(0)
    before = {name: value.clone() for name, value in learner.exploitation.state_dict().items()}
    learner.learn(arms(*clusters(generator), learner))
    for name, value in learner.exploitation.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith("encoder"), name


def test_the_encoder_sees_the_order_of_the_layers() -> None:
    encoder = LayerEncoder(width=16, layers=1, heads=4, positions=LAYERS)
    states = torch.randn(2, LAYERS, 16)
    assert not torch.allclose(encoder(states), encoder(states.flip(1)), atol=1e-4)


def test_building_and_learning_leave_the_random_state_alone() -> None:
    before = torch.random.get_rng_state()
    learner = scheduler()
    learner.learn(arms(*clusters(torch.Generator().manual_seed(0)), learner))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_state_restores_bit_by_bit() -> None:
    first, generator = scheduler(), torch.Generator().manual_seed(0)
    batches = [clusters(generator) for _ in range(6)]
    for batch in batches[:3]:
        first.learn(arms(*batch, first))
    second = scheduler()
    second.load_state_dict(saved(first.state_dict()))
    for batch in batches[3:]:
        for learner in (first, second):
            learner.learn(arms(*batch, learner))
    for (name, one), (_, other) in zip(
        first.exploitation.named_parameters(), second.exploitation.named_parameters(), strict=True
    ):
        assert torch.equal(one, other), name


def test_pool_is_bounded_by_arms_and_by_bytes() -> None:
    pool = ReplayPool(10, 10**9, torch.Generator().manual_seed(0))
    batch = Arms(torch.randn(4, LAYERS, WIDTH), torch.randn(4, 8), torch.randn(4), torch.randn(4))
    for _ in range(5):
        pool.add(batch)
    assert len(pool) == 10
    size = 2 * (LAYERS * WIDTH + 8 + 2)
    small = ReplayPool(10, 3 * size, torch.Generator().manual_seed(0))
    small.add(batch)
    assert len(small) == 3


def test_a_full_pool_replaces_at_random_and_keeps_old_arms_too() -> None:
    pool = ReplayPool(50, 10**9, torch.Generator().manual_seed(0))
    for number in range(100):
        pool.add(Arms(torch.full((1, 1, 1), number), torch.zeros(1, 1), torch.zeros(1), torch.zeros(1)))
    drawn = pool.sample(50)
    assert drawn is not None
    kept = drawn.contexts.flatten().tolist()
    assert len(set(kept)) == 50
    assert 5 < sum(number < 50 for number in kept) < 40


def test_pool_sample_draws_without_repeats() -> None:
    pool = ReplayPool(50, 10**9, torch.Generator().manual_seed(0))
    assert pool.sample(4) is None
    pool.add(Arms(torch.arange(8).reshape(8, 1, 1), torch.zeros(8, 1), torch.zeros(8), torch.zeros(8)))
    drawn = pool.sample(20)
    assert drawn is not None
    assert sorted(drawn.contexts.flatten().tolist()) == list(range(8))


def test_averaging_makes_a_flipped_label_invisible_and_concat_does_not() -> None:
    chosen, rejected = torch.randn(2, LAYERS, 4), torch.randn(2, LAYERS, 4)
    assert torch.equal(merge_contexts(chosen, rejected, "mean"), merge_contexts(rejected, chosen, "mean"))
    for how in ("concat", "difference"):
        merged = merge_contexts(chosen, rejected, how)
        assert not torch.equal(merged, merge_contexts(rejected, chosen, how))
        assert merged.shape[2] == context_width(4, how)
        assert merge_contexts(chosen, None, how).shape == merged.shape


def test_minilm_weights_load_and_give_what_transformers_gives() -> None:
    folder = minilm_folder()
    import transformers

    settings = Settings(encoder="all-MiniLM-L6-v2")
    ours = Exploitation(settings, layers=6, context_width=WIDTH).encoder
    theirs = transformers.AutoModel.from_pretrained(folder).eval()
    states = torch.randn(2, 6, 384)
    expected = theirs(inputs_embeds=states).last_hidden_state.mean(dim=1)
    expected = torch.nn.functional.normalize(expected, dim=1)
    torch.testing.assert_close(ours(states), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "wrong", [{"depth": 2}, {"block": 7}, {"gamma": 1.5}, {"encoder_width": 30}, {"merge": "sum"}]
)
def test_sizes_that_do_not_fit_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Settings.model_validate(wrong)
