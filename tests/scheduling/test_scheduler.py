"""The networks, the replay pool and the learning step."""

import io
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import rankdata, spearmanr
from torch import Tensor

from sams.scheduling.calibration import rank_correlation, ranks
from sams.scheduling.networks import Exploitation, LayerEncoder, minilm_folder
from sams.scheduling.pool import Arms, ReplayPool
from sams.scheduling.scheduler import Scheduler, context_width, merge_contexts
from sams.study.settings import Scheduler as Settings

LAYERS, WIDTH = 3, 16
SCRATCH = tempfile.TemporaryDirectory(prefix="pools")


def scheduler(**overrides: Any) -> Scheduler:
    settings = Settings.model_validate({"learning_rate": 1e-3, **overrides})
    return Scheduler(
        settings,
        layers=LAYERS,
        width=WIDTH,
        seed=0,
        device=torch.device("cpu"),
        train_encoder=False,
        pool=pool(),
    )


def pool() -> ReplayPool:
    """A pool with room, in a folder of its own."""
    return ReplayPool(
        Path(tempfile.mkdtemp(dir=SCRATCH.name)),
        max_arms=8000,
        max_bytes=10**9,
        generator=torch.Generator().manual_seed(0),
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


def test_the_score_adds_lambda_times_the_exploration_net_on_block_means_of_the_activations() -> None:
    learner = scheduler(exploration=0.25)
    contexts, _ = clusters(torch.Generator().manual_seed(0))
    scores, values, hidden = learner.score(contexts)
    net = learner.exploitation
    with torch.no_grad():
        states = [torch.relu(net.net.input(net.encoder(net.connector(contexts))))]
        activations = []
        for layer in net.net.layers:
            activations.append(torch.relu(layer(states[-1])))
            states.append(states[-1] + activations[-1])
        whole = torch.cat(activations, dim=1).tolist()
        blocks = [[sum(row[at : at + 4]) / 4 for at in range(0, len(row), 4)] for row in whole]
        explored = learner.exploration(torch.tensor(blocks))
    torch.testing.assert_close(hidden, torch.tensor(blocks))
    torch.testing.assert_close(values, (states[-1] @ net.net.output.weight[0]) + net.net.output.bias)
    assert explored.abs().max() > 1e-3
    torch.testing.assert_close(scores, values + 0.25 * explored)


def test_f_s_is_fitted_to_the_reward_and_exploration_to_what_f_s_missed_when_it_scored() -> None:
    learner = scheduler(replay_sample=0)
    contexts, rewards = clusters(torch.Generator().manual_seed(0))
    _, now, hidden = learner.score(contexts)
    values = torch.linspace(-1, 1, len(rewards))  # of an f_S that has learned since
    with torch.no_grad():
        missed = learner.exploration(hidden)
    metrics = learner.learn(Arms(contexts, hidden, values, rewards))

    def mean_square(predicted: Tensor, target: Tensor) -> float:
        return sum((a - b) ** 2 for a, b in zip(predicted.tolist(), target.tolist(), strict=True)) / 16

    assert metrics["scheduler/exploitation_loss"] == pytest.approx(mean_square(now, rewards), rel=1e-5)
    assert metrics["scheduler/exploration_loss"] == pytest.approx(
        mean_square(missed, rewards - values), rel=1e-5
    )


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
    for _ in range(2):  # the second time it replays the first
        learner.learn(arms(*clusters(torch.Generator().manual_seed(0)), learner))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_state_restores_bit_by_bit() -> None:
    first, generator = scheduler(), torch.Generator().manual_seed(0)
    batches = [clusters(generator) for _ in range(6)]
    for batch in batches[:3]:
        first.learn(arms(*batch, first))
    state = saved(first.state_dict())
    second = scheduler()
    shutil.copytree(first.pool.folder, second.pool.folder, dirs_exist_ok=True)
    second.load_state_dict(state)
    for batch in batches[3:]:
        for learner in (first, second):
            learner.learn(arms(*batch, learner))
    for (name, one), (_, other) in zip(
        first.exploitation.named_parameters(), second.exploitation.named_parameters(), strict=True
    ):
        assert torch.equal(one, other), name


def test_averaging_makes_a_flipped_label_invisible_and_concat_does_not() -> None:
    pair = torch.randn(2, 2, LAYERS, 4)
    flipped = pair.flip(1)
    assert torch.equal(merge_contexts(pair, "mean"), merge_contexts(flipped, "mean"))
    for how in ("concat", "difference"):
        merged = merge_contexts(pair, how)
        assert not torch.equal(merged, merge_contexts(flipped, how))
        assert merged.shape[2] == context_width(4, how)
        assert merge_contexts(pair[:, :1], how).shape == merged.shape


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


def test_equal_values_share_the_mean_of_their_ranks() -> None:
    values = torch.randint(0, 8, (40,), generator=torch.Generator().manual_seed(0)).double()
    assert ranks(values).tolist() == rankdata(values.numpy()).tolist()


def test_rank_correlation_is_scipys_whatever_the_scale_and_0_without_order() -> None:
    generator = torch.Generator().manual_seed(0)
    for n in (2, 7, 40):
        one = torch.randint(0, 6, (n,), generator=generator).float() * 1e-3
        other = torch.randn(n, generator=generator).round(decimals=1)
        assert rank_correlation(one, other) == pytest.approx(spearmanr(one, other).statistic, abs=1e-12)
    assert rank_correlation(torch.ones(5), torch.arange(5.0)) == 0.0
