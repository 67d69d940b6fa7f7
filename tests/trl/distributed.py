"""Runs on several processes: `python -m tests.trl.distributed FOLDER WORLD NAME...` forks them after its imports.

Each process of a run writes FOLDER/NAME/rank<r>.pt: rows of each step, weights at the end, what it logged.
"""

import contextlib
import os
import socket
import sys
import traceback
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from torch import Tensor
from torch.distributed.tensor import DTensor

from sams.scheduling.selectors.base import Choice, Selector, Setup, View
from tests.trl import small
from tests.trl.runs import Noted
from tests.trl.test_resume import StopAfterOne

COUNT = 40
RUN: dict[str, Any] = {
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 4,
    "max_steps": 4,
    "packing": "false",
    "optim": "sgd",
    "learning_rate": 0.3,
}


class Differs(Selector):
    """Rank 0 takes the first k pairs, any other rank the last."""

    needs_scores = False

    def choose(self, view: View, k: int) -> Tensor:
        first = torch.arange(k)
        return first if self.setup.rank == 0 else first + view.n - k

    def accept(self, choice: Choice) -> None:
        assert choice.indices.tolist() == list(range(len(choice.indices)))


class Five(Selector):
    """Takes five pairs, an odd number, with weights."""

    def __init__(self, setup: Setup, weight: float = 1.0) -> None:
        super().__init__(setup)
        self.weight = weight

    def choose(self, view: View, k: int) -> Choice:
        return Choice(torch.arange(min(5, k)), weights=torch.full((min(5, k),), self.weight))


RUNS: dict[str, dict[str, Any]] = {
    "random": {"selector": "random"},
    "odd": {"selector": "random", "selection_ratio": 0.4},
    "differs": {"selector": "tests.trl.distributed:Differs"},
    "five": {"selector": "tests.trl.distributed:Five"},
    "cached": {"selector": "top_loss", "precompute_ref_log_probs": True},
    "sams": {"selector": "sams", "save_strategy": "steps", "save_steps": 2},
    "resumed": {"selector": "sams"},
    "packed": {"selector": "top_margin", "packing": "true"},
    "fsdp": {"selector": "sams"},
}


def sharded(folder: Path) -> Any:
    """Return the policy, sharded by FSDP2 over all processes."""
    from transformers.distributed import DistributedConfig

    settings = DistributedConfig(fsdp_size=int(os.environ["WORLD_SIZE"]))
    kind = transformers.AutoModelForCausalLM
    return kind.from_pretrained(folder / "model", dtype=torch.float32, distributed_config=settings)


def run(folder: Path, name: str) -> None:
    """Train one run in this process of a group."""
    settings = RUN | RUNS[name] | {"ddp_backend": "gloo"}
    data = small.pairs(COUNT)
    arguments = {"model": sharded(folder)} if name == "fsdp" else {}
    trainer: Noted = small.trainer(folder / name, data, kind=Noted, arguments=arguments, **settings)
    resume = None
    if name == "resumed":
        resume = str(folder / "sams/checkpoint-2")
        trainer.add_callback(StopAfterOne())
    trainer.train(resume_from_checkpoint=resume)
    rank = trainer.accelerator.process_index
    (folder / name).mkdir(exist_ok=True)
    torch.save(
        {
            "sharded": all(isinstance(part, DTensor) for part in trainer.model.parameters()),
            "rows": trainer.rows,
            "candidates": trainer.candidates,
            "weights": small.weights(trainer.model),
            "losses": [logged["loss"] for logged in trainer.state.log_history if "loss" in logged],
        },
        folder / name / f"rank{rank}.pt",
    )


def main(folder: Path, world: int, names: list[str]) -> int:
    """Fork the processes; return the number of those that failed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    small.models()[0].save_pretrained(folder / "model")
    children = []
    for rank in range(world):
        if child := os.fork():
            children.append(child)
            continue
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(world),
            "LOCAL_WORLD_SIZE": str(world),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        try:
            for name in names:
                run(folder, name)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    failed = 0
    for _ in range(world):
        child, status = os.wait()
        failed += status != 0
        if status:  # the others may wait for it
            for other in set(children) - {child}:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(other, 9)
    return failed


if __name__ == "__main__":
    datasets.disable_progress_bars()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]))
