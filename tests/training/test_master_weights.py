"""bfloat16 computes over float32 master weights: steps too small for bfloat16 weights are not lost."""

import torch
from torch import Tensor, nn

from sams.losses.table import build_loss
from sams.policy.model import build_model
from sams.policy.policy import Policy
from sams.study.settings import Preference
from sams.training.distribution import Workers, local_part, reshard
from sams.training.passes import accumulate_gradient, score
from sams.training.tasks.pairs import PairTask
from sams.training.tasks.preference import PreferenceTask
from sams.training.updates import adamw
from tests import tiny

STEPS = 100
PAIRS = 4


def weights(policy: nn.Module) -> Tensor:
    reshard(policy)
    return torch.cat([local_part(weight.detach()).double().flatten() for weight in policy.parameters()])


def update(precision: str, stored: torch.dtype = torch.float32) -> Tensor:
    """What 100 steps at learning rate 1e-6 add to the weights."""
    workers = Workers(device="cpu", strategy="ddp", precision=precision, threads=1, timeout_minutes=1)
    policy = workers.wrap(Policy(build_model(tiny.settings(), tiny.tokenizer(), seed=0).to(stored)))
    data, items = tiny.pairs(PAIRS, seed=1), list(range(PAIRS))
    found, _ = score(policy, PairTask(data), items, workers, PAIRS)
    reference = dict(
        zip(data["id"], zip(*(logps.tolist() for logps in found.values()), strict=True), strict=True)
    )
    loss = build_loss("sigmoid", beta=0.1, settings={}, sft_weight=0.0)
    task = PreferenceTask(data, loss=loss, reference=reference)
    optimiser = adamw(policy, Preference(learning_rate=1e-6), workers)
    before = weights(policy)
    for _ in range(STEPS):
        optimiser.zero_grad()
        accumulate_gradient(policy, task, items, workers, PAIRS)
        optimiser.step()
    return weights(policy) - before


def test_a_bfloat16_run_moves_as_far_as_a_float32_run() -> None:
    whole, mixed = update("float32"), update("bfloat16")
    lost = update("float32", stored=torch.bfloat16)
    assert whole.norm() > 0
    assert not torch.equal(mixed, whole)

    def share(part: Tensor) -> float:
        """How far it goes in the direction of the whole."""
        return float(part @ whole / whole.square().sum())

    assert share(mixed) >= 0.9
    assert share(lost) < 0.1, "weights held in bfloat16 would hardly move"
