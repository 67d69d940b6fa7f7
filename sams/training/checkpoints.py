"""Checkpoints: sharded, whole or absent, and only ever resumed by the run that wrote them."""

import hashlib
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint.state_dict import get_model_state_dict, get_state_dict, set_state_dict

from sams.files import write_json, write_manifest
from sams.training.distribution import Workers
from sams.training.sharded import load_sharded

log = logging.getLogger(__name__)

COMPLETE = "COMPLETE"
LORA = "lora.json"
KEPT = 2


def fingerprint(*parts: str) -> str:
    """Sixteen hex digits for what a run is made of: recipe, code, upstream digests."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def delete(folder: Path) -> None:
    """Delete checkpoints, their markers first: what a killed process leaves of them must not count."""
    for marker in list(folder.rglob(COMPLETE)):
        marker.unlink()
    shutil.rmtree(folder, ignore_errors=True)


class ResultWriter(FileSystemWriter):
    """Writes shards without a note of where and under which random id: equal weights are equal files."""

    def storage_meta(self) -> None:
        """Nothing."""
        return


class Checkpoints:
    """The checkpoints of one run, in a folder named by its fingerprint.

    Checkpoints of other fingerprints in `folder` are of other settings, code or data. They are deleted,
    never resumed.
    """

    def __init__(self, folder: Path, run: str, workers: Workers) -> None:
        self.folder = folder / run
        self.workers = workers
        if workers.is_main:
            for other in folder.iterdir() if folder.is_dir() else ():
                if other != self.folder:
                    log.info("settings, code or data have changed: removing checkpoints %s", other)
                    delete(other)
            self.folder.mkdir(parents=True, exist_ok=True)
        workers.barrier()

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, oldest first."""
        return sorted(
            int(found.parent.name.split("-")[1]) for found in self.folder.glob(f"step-*/{COMPLETE}")
        )

    def restore(self, policy: nn.Module, optimiser: torch.optim.Optimizer | None) -> dict[str, Any] | None:
        """Load the newest checkpoint into policy and optimiser; return the loop's own state, or None.

        Without an optimiser the policy is frozen and no part of the checkpoint.
        """
        # Rank 0's word: a network file system may show another node an older state of the folder.
        newest = int(self.workers.broadcast(torch.tensor(max(self.steps(), default=-1))))
        if newest < 0:
            return None
        place = self._place(newest)
        if optimiser is not None:
            model_state, optimiser_state = get_state_dict(policy, optimiser)
            state: dict[str, Any] = {"policy": model_state, "optimiser": optimiser_state}
            load_sharded(state, place)
            set_state_dict(
                policy, optimiser, model_state_dict=state["policy"], optim_state_dict=state["optimiser"]
            )
        loop: dict[str, Any] = torch.load(place / "loop.pt", map_location="cpu", weights_only=True)
        log.info("resuming after step %d", loop["step"])
        return loop

    def save(self, policy: nn.Module, optimiser: torch.optim.Optimizer | None, loop: dict[str, Any]) -> None:
        """Write a checkpoint of step `loop["step"]`; it counts once it is complete and in place."""
        place = self._place(loop["step"])
        part = place.with_name(f".{place.name}.part")
        if self.workers.is_main:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
        self.workers.barrier()
        if optimiser is not None:
            self.workers.refuse_drift(policy)
            model_state, optimiser_state = get_state_dict(policy, optimiser)
            dcp.save({"policy": model_state, "optimiser": optimiser_state}, checkpoint_id=part)
        if self.workers.is_main:
            torch.save(loop, part / "loop.pt")
            (part / COMPLETE).write_text(json.dumps({"step": loop["step"]}))
            shutil.rmtree(place, ignore_errors=True)
            part.replace(place)
            for old in self.steps()[:-KEPT]:
                delete(self._place(old))
        self.workers.barrier()

    def publish(
        self, policy: nn.Module, out: Path, *, config: Any, lora: dict[str, Any] | None = None
    ) -> None:
        """Write the trained weights, sharded, and the model's config as the folder `out` with a manifest.

        With `lora`, the adapters' settings, the weights are those of the model with its adapters.
        """
        part = out.with_name(f".{out.name}.part")
        if self.workers.is_main:
            shutil.rmtree(part, ignore_errors=True)
            part.parent.mkdir(parents=True, exist_ok=True)
        self.workers.barrier()
        self.workers.refuse_drift(policy)
        dcp.save({"policy": get_model_state_dict(policy)}, storage_writer=ResultWriter(part))
        if self.workers.is_main:
            config.save_pretrained(part)
            if lora is not None:
                write_json(part / LORA, lora)
            write_manifest(part)
            shutil.rmtree(out, ignore_errors=True)
            part.replace(out)
        self.workers.barrier()

    def remove(self) -> None:
        """Delete this run's checkpoints, once its result is in place."""
        if self.workers.is_main:
            delete(self.folder)
        self.workers.barrier()

    def _place(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"
