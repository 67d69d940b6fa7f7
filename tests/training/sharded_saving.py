"""Save asynchronous checkpoints of a sharded policy, one of which fails on the second process only."""

import errno
from pathlib import Path

import torch

from sams.policy.rows import pad_rows
from sams.study.settings import Preference
from sams.training import checkpoints, loading
from sams.training.checkpoints import Checkpoints
from sams.training.distribution import Workers, local_part
from tests import tiny

ROWS = pad_rows([([1, 5, 6, 7], [[8, 9, 2], [10, 2]]), ([1, 5], [[12, 2], [11, 2]])])


def main(model: Path, folder: Path) -> None:
    """In a process group: save, train on while the thread writes, and restore."""
    workers = Workers(device="cpu", strategy="fsdp2", precision="float32", threads=1, timeout_minutes=1)
    policy = loading.load_policy(model, tiny.settings(), workers, training=Preference())
    optimiser = torch.optim.AdamW(policy.parameters(), lr=0.1)
    run = Checkpoints(folder, workers, inputs={}, code={}, asynchronous=True)

    def step() -> list[torch.Tensor]:
        policy(ROWS).logps.sum().backward()
        optimiser.step()
        optimiser.zero_grad()
        return [local_part(parameter.detach()).clone() for parameter in policy.parameters()]

    saved = step()
    run.save(policy, optimiser, {"step": 1})
    later = step()  # its collective calls run while the thread makes its own
    assert not all(torch.equal(*pair) for pair in zip(saved, later, strict=True))
    run.wait()
    assert run.restore(policy, optimiser) == {"step": 1}
    restored = [local_part(parameter.detach()) for parameter in policy.parameters()]
    assert all(torch.equal(*pair) for pair in zip(saved, restored, strict=True))
    again = step()  # the optimiser's moments are those of the step too
    assert all(torch.equal(*pair) for pair in zip(later, again, strict=True))

    hashed = checkpoints.sha256_of

    def failing(path: Path) -> str:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    checkpoints.sha256_of = failing if workers.rank == 1 else hashed
    run.save(policy, optimiser, {"step": 2})
    try:
        run.wait()
    except OSError as error:
        print(f"rank {workers.rank}: {error.strerror} {error.filename}", flush=True)
    workers.barrier()
    assert run.steps() == [1] and not list(run.folder.glob(".step-*"))
    workers.leave()
