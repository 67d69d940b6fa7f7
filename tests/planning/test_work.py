"""FLOPs of jobs, compared with the trainer's count and with the intended cost of two passes."""

from types import SimpleNamespace
from typing import Any

import pytest

from sams.losses.table import build_loss
from sams.planning import work as count
from sams.planning.data import Facts
from sams.planning.models import Sizes, sizes_of
from sams.planning.work import Work, scheduler_costs
from sams.policy.attention import SEGMENTS
from sams.policy.policy import weights_of
from sams.runtime.costs import Tally
from sams.scheduling.networks import Exploitation, Exploration
from sams.study.settings import Preference, Pretrain, Scheduler, Sft
from sams.training.distribution import Workers
from sams.training.passes import accumulate_gradient, score
from sams.training.tasks.preference import PreferenceTask
from tests import tiny

FACTS = Facts(sft=640, train=640, test=0, prompt=100.0, chosen=50.0, rejected=70.0)
SIZES = Sizes(total=30, body=10, head=10, cache=0)


def method(**own: Any) -> Preference:
    return Preference.model_validate({"batch_size": 64, **own})


def flops(training: Preference, *, checkpointing: bool = False) -> float:
    work = count.preference(training, FACTS, Scheduler(), packed=True)
    return work.flops(SIZES, checkpointing=checkpointing)


@pytest.mark.parametrize(("checkpointing", "units"), [(False, 2.5 / 3), (True, 3.0 / 4)])
def test_two_passes_cost_what_they_are_meant_to(checkpointing: bool, units: float) -> None:
    plain = flops(method(), checkpointing=checkpointing)
    sams = flops(method(selector="sams", ratio=0.5), checkpointing=checkpointing)
    assert sams / plain == pytest.approx(units)
    assert flops(method(selector="random", ratio=0.5)) == pytest.approx(flops(method()) / 2)


def test_the_count_is_the_trainers_own() -> None:
    from sams.policy.model import build_model
    from sams.policy.policy import Policy

    model = build_model(tiny.settings(), tiny.tokenizer(), 0)
    workers = Workers(device="cpu", strategy="ddp", precision="float32", threads=1, timeout_minutes=1)
    policy = workers.wrap(Policy(model))
    assert isinstance(policy, Policy)
    policy.pack(SEGMENTS)
    data = tiny.pairs(16, 1)
    loss = build_loss("simpo", beta=2.0, settings={}, sft_weight=0.0)
    task = PreferenceTask(data, loss=loss, reference=None)
    tally, items = Tally(), list(range(16))
    score(policy, task, items, workers, 4, tally=tally)
    accumulate_gradient(policy, task, items, workers, 4, tally=tally)

    mean = {name: sum(map(len, data[f"{name}_ids"])) / 16 for name in ("prompt", "chosen", "rejected")}
    facts = Facts(sft=0, train=16, test=0, **mean)
    training = method(batch_size=16, selector="top_margin", ratio=1.0, loss="simpo", beta=2.0)
    work = count.preference(training, facts, Scheduler(), packed=True)
    body, head = weights_of(policy)
    sizes = Sizes(total=0, body=body, head=head, cache=0)
    assert work.tokens == tally.tokens
    assert work.flops(sizes, checkpointing=False) == 2 * (body * tally.units + head * tally.predicted)


def test_every_other_pass_is_counted() -> None:
    pair, example = 220.0, 150.0
    kto = count.preference(method(loss="kto"), FACTS, Scheduler(), packed=True)
    assert kto.scored == 640 * example and kto.trained == 640 * pair
    watched = count.preference(method(selector="sams", ratio=0.5), FACTS, Scheduler(), packed=True)
    assert (watched.rounds, watched.arms, watched.fitted) == (10, 640, 10 * (32 + 32))
    evaluated = Facts(**{**vars(FACTS), "test": 10})
    assert count.preference(method(), evaluated, Scheduler(), packed=True).scored == 4 * 10 * pair
    half = count.crossfit(method(selector="selective", ratio=0.5), FACTS, Scheduler(), packed=True)
    assert (half.rounds, half.trained, half.scored) == (5, 320 * pair, 320 * pair)
    easiest = count.preference(method(selector="selective", ratio=0.5), FACTS, Scheduler(), packed=True)
    assert (easiest.rounds, easiest.trained) == (10, 320 * pair)
    assert count.sft(Sft(batch_size=64), None, FACTS).trained == 640 * example
    assert count.sft(Sft(batch_size=64), (Scheduler(), 0.5), FACTS).scored == 640 * example
    assert count.pretrain(Pretrain(batch_size=64), FACTS, Scheduler()).scored == 640 * example
    assert count.reference(FACTS, mismatched=True, packed=True).scored == 640 * (pair + example)
    assert count.reference(FACTS, mismatched=False, packed=False).scored == 640 * (pair + 100.0)


def test_the_scheduler_is_counted_by_its_own_modules() -> None:
    settings = Scheduler()
    config = SimpleNamespace(num_hidden_layers=4, hidden_size=32)
    frozen = scheduler_costs(settings, config, train_encoder=False)
    nets = [net := Exploitation(settings, 4, 64), Exploration(settings, net.hidden_width)]
    total = sum(parameter.numel() for made in nets for parameter in made.parameters())
    encoder = sum(parameter.numel() for parameter in net.encoder.parameters())
    assert (frozen.parameters, frozen.trained) == (total, total - encoder)
    trained = scheduler_costs(settings, config, train_encoder=True)
    assert trained.score == frozen.score < frozen.fit < trained.fit
    assert frozen.flops(Work(arms=3, fitted=2)) == 3 * frozen.score + 2 * frozen.fit


def test_sizes_of_a_tied_model_count_its_embedding_as_output_layer() -> None:
    tied = sizes_of({"model_type": "llama", **tiny.SIZES, "vocab_size": 50, "tie_word_embeddings": True})
    assert tied.head == 50 * 32 and tied.body + tied.head == tied.total
