"""Accumulate gradients over micro-batches, exchanged in each of them and in the last, and compare the two."""

import os

import torch
from torch.distributed.fsdp import FSDPModule

from sams.losses.table import build_loss
from sams.policy.model import build_model
from sams.study.settings import Preference
from sams.training import loading
from sams.training.distribution import Workers, local_part, reshard
from sams.training.passes import accumulate_gradient
from sams.training.tasks.preference import PreferenceTask
from tests import tiny

PAIRS = 16
TASK = PreferenceTask(
    tiny.pairs(PAIRS, seed=1),
    loss=build_loss("simpo", beta=2.0, settings={"gamma_beta_ratio": 0.5}, sft_weight=0.0),
    reference=None,
)


def main(precision: str, nodes: str) -> None:
    """In a process group, whose processes are split into so many nodes: accumulate four micro-batches or more."""
    local = int(os.environ["WORLD_SIZE"]) // int(nodes)
    os.environ["LOCAL_WORLD_SIZE"] = str(local)
    workers = Workers(
        device="cpu", strategy="fsdp2", shard_over="node", precision=precision, threads=1, timeout_minutes=1
    )
    settings = tiny.settings(precision=precision)
    policy = loading.wrap(build_model(settings, tiny.tokenizer(), seed=0), settings, workers, Preference())
    waiting: list[int] = []

    def count_waiting(*_: object) -> None:
        """Count the unsharded gradients that wait when a micro-batch begins."""
        states = [module._get_fsdp_state() for module in policy.modules() if isinstance(module, FSDPModule)]
        # torch 2.11 has one group of each state.
        groups = [getattr(state, "_fsdp_param_groups", None) or [state._fsdp_param_group] for state in states]
        parts = [part for own in groups for group in own if group for part in group.fsdp_params]
        # Float32 gradients stay where autograd puts them; others are converted.
        gradients = [getattr(getattr(part, "_unsharded_param", None), "grad", None) for part in parts]
        gradients += [part.unsharded_accumulated_grad for part in parts]
        waiting.append(sum(gradient is not None for gradient in gradients))

    policy.register_forward_pre_hook(count_waiting)
    gradients = []
    for each in (False, True):
        waiting.clear()
        accumulate_gradient(policy, TASK, list(range(PAIRS)), workers, 1, sync_each=each)
        assert len(waiting) == PAIRS // workers.world >= 4
        assert waiting[0] == 0 and (sum(waiting) == 0) == each, waiting
        reshard(policy)
        gradients.append(
            torch.cat(
                [
                    local_part(weight.grad).flatten()
                    for weight in policy.parameters()
                    if weight.grad is not None
                ]
            )
        )
        policy.zero_grad()
    once, every = gradients
    difference = (once - every).abs().max() / once.abs().max()
    assert once.abs().max() > 0 and difference <= 1e-6, difference
    if workers.is_main:
        print(f"difference {difference:.1e}", flush=True)
    workers.leave()
