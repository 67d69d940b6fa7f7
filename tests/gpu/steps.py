"""Under torchrun: python -m tests.gpu.steps STRATEGY DEVICE PRECISION. Prints the losses of five steps as JSON.

`fsdp2` of one process is sharded all the same, its weights read from a file into the shards.
"""

import json
import sys
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from sams.policy.attention import SEGMENTS, VARLEN
from sams.policy.policy import Policy, bare
from sams.policy.rows import pack_rows
from sams.policy.stored import fill, materialise, stored_names, without_weights
from sams.training.distribution import Workers, mesh_of, shard
from tests.gpu.small import ITEMS, model


def sharded(workers: Workers, precision: str) -> nn.Module:
    """The model in shards, as a job of several processes has it."""
    if not dist.is_initialized():
        dist.init_process_group("nccl" if workers.device.type == "cuda" else "gloo")
    with tempfile.TemporaryDirectory() as folder:
        model().save_pretrained(folder)
        empty = without_weights(Path(folder), "sdpa")
        found = stored_names(empty, Path(folder))
        assert found is not None
        policy = shard(Policy(empty), mesh_of(workers.device.type, workers.world, workers.world), precision)
        materialise(policy, empty, workers.device)
        fill(empty, Path(folder), found)
    return policy


def main(strategy: str, device: str, precision: str) -> None:
    workers = Workers(device=device, strategy=strategy, precision=precision, threads=1, timeout_minutes=2)
    policy = sharded(workers, precision) if strategy == "fsdp2" else workers.wrap(Policy(model()))
    flash = workers.device.type == "cuda" and precision == "bfloat16"
    bare(policy).pack(VARLEN if flash else SEGMENTS)
    assert all(weight.dtype == torch.float32 for weight in policy.parameters()), "master weights are float32"
    optimiser = torch.optim.AdamW(policy.parameters(), lr=2e-4, fused=workers.device.type == "cuda")
    losses = []
    for _ in range(5):
        optimiser.zero_grad()
        chosen, rejected = policy(pack_rows(ITEMS).to(workers.device)).logps.chunk(2)
        loss = -nn.functional.logsigmoid(0.1 * (chosen - rejected)).mean()
        workers.accelerator.backward(loss)
        workers.clip(policy, 10.0, optimiser)
        optimiser.step()
        losses.append(loss.item())
    print(json.dumps({"device": str(workers.device), "losses": losses}), flush=True)
    workers.leave()


if __name__ == "__main__":
    main(*sys.argv[1:])
