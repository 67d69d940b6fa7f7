"""Load models as FSDP2 shards, each process its own shards and each process all of them, and compare the two."""

from typing import Any

import torch
from torch import nn

from sams.policy.model import load_model
from sams.policy.policy import bare
from sams.policy.rows import pad_rows
from sams.policy.stored import stored_names
from sams.study.settings import Preference
from sams.training import loading
from sams.training.distribution import Workers, local_part
from tests import tiny


def tensors(policy: nn.Module) -> dict[str, Any]:
    named = [*policy.named_parameters(remove_duplicate=False), *policy.named_buffers()]
    return {name: local_part(tensor.detach()) for name, tensor in named}


def main(folders: str) -> None:
    """In a process group: load folders, given as words `KIND=FOLDER`."""
    workers = Workers(device="cpu", strategy="fsdp2", precision="float32", threads=1, timeout_minutes=1)
    rows = pad_rows([([1, 5, 6, 7], [[8, 9, 2], [10, 2]]), ([1, 5], [[12, 2], [11, 2]])])
    for kind, folder in (word.split("=") for word in folders.split()):
        settings = tiny.settings(kind)
        mine = loading.load_policy(folder, settings, workers, training=Preference())
        assert stored_names(bare(mine).model, loading.files_of(folder)) is not None, (
            "the shards were not read"
        )
        whole = loading.wrap(load_model(folder, settings), settings, workers, Preference())
        ours, theirs = tensors(mine), tensors(whole)
        assert list(ours) == list(theirs)
        for name, tensor in theirs.items():
            assert ours[name].dtype == tensor.dtype and torch.equal(ours[name], tensor), name
        assert sum(part.numel() for part in mine.parameters()) > 1.5 * sum(
            local_part(part).numel() for part in mine.parameters()
        )
        found = []
        for policy in (mine, whole):
            logps = policy(rows).logps
            logps.sum().backward()
            found.append([logps.detach(), *(local_part(part.grad) for part in policy.parameters())])
        assert all(torch.equal(*pair) for pair in zip(*found, strict=True))
        if workers.is_main:
            print("equal:", kind, flush=True)
    workers.leave()
