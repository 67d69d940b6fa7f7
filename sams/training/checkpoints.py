"""Checkpoints: sharded, whole or absent, and only ever resumed by the run that wrote them."""

import hashlib
import json
import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint.state_dict import get_model_state_dict, get_state_dict, set_state_dict

from sams.runtime.errors import UserError
from sams.runtime.faults import full_disk, is_disk_full
from sams.runtime.files import read_json, sha256_of, write_json, write_manifest
from sams.training.distribution import Workers
from sams.training.sharded import load_sharded

if TYPE_CHECKING:
    from sams.scheduling.selectors.base import Selector

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
            for part in self.folder.glob(".step-*.part"):  # what a killed save has left takes room
                shutil.rmtree(part, ignore_errors=True)
        workers.barrier()

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, oldest first."""
        return sorted(
            int(found.parent.name.split("-")[1]) for found in self.folder.glob(f"step-*/{COMPLETE}")
        )

    def restore(
        self, policy: nn.Module, optimiser: torch.optim.Optimizer | None, selector: "Selector | None" = None
    ) -> dict[str, Any] | None:
        """Load the newest whole checkpoint into policy, optimiser and selector; return the loop's own state.

        None where there is no checkpoint. One whose files, or whose selector's files, are not what was written is
        passed over for the one before it. Without an optimiser the policy is frozen and no part of it.

        Raises:
            UserError: there are checkpoints, and none is whole.
        """
        problems: list[str] = []
        # Rank 0's word: a network file system may show another node an older state of the folder.
        for step in reversed(self.workers.gather(self.steps())[0]):
            place = self._place(step)
            loop, problem = None, self._damage(place)
            if not self.workers.any(bool(problem)):
                loop = torch.load(place / "loop.pt", map_location="cpu", weights_only=True)
                if selector is not None:
                    try:
                        selector.load_state_dict(loop.pop("selector"))
                    except UserError as error:
                        problem = str(error)
            found = sorted({each for each in self.workers.gather(problem) if each})
            if found or loop is None:
                problems += found
                log.warning("%s is damaged, going back to the one before it: %s", place, "; ".join(found))
                continue
            if optimiser is not None:
                model_state, optimiser_state = get_state_dict(policy, optimiser)
                state: dict[str, Any] = {"policy": model_state, "optimiser": optimiser_state}
                load_sharded(state, place)
                set_state_dict(
                    policy, optimiser, model_state_dict=state["policy"], optim_state_dict=state["optimiser"]
                )
            log.info("resuming after step %d", loop["step"])
            return dict(loop)
        if problems:
            raise UserError(
                f"no checkpoint is whole ({'; '.join(problems)})",
                where=str(self.folder),
                remedy="put the files back, or delete that folder to start afresh",
            )
        return None

    def save(self, policy: nn.Module, optimiser: torch.optim.Optimizer | None, loop: dict[str, Any]) -> None:
        """Write a checkpoint of step `loop["step"]`; it counts once it is complete and in place.

        Raises:
            OSError: it cannot be written; those before it stay.
        """
        place = self._place(loop["step"])
        part = place.with_name(f".{place.name}.part")
        try:
            self._write(part, policy, optimiser, loop)
        except BaseException as error:  # torch's CheckpointException is no Exception
            if self.workers.is_main:
                shutil.rmtree(part, ignore_errors=True)
            if is_disk_full(error):
                raise full_disk(place) from error
            raise
        if self.workers.is_main:
            shutil.rmtree(place, ignore_errors=True)
            part.replace(place)
            for old in self.steps()[:-KEPT]:
                delete(self._place(old))
        self.workers.barrier()

    def _write(
        self, part: Path, policy: nn.Module, optimiser: torch.optim.Optimizer | None, loop: dict[str, Any]
    ) -> None:
        """Write a checkpoint as the folder `part`, its marker with the hashes of all files last."""
        if self.workers.is_main:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
        self.workers.barrier()
        if optimiser is not None:
            self.workers.refuse_drift(policy)
            model_state, optimiser_state = get_state_dict(policy, optimiser)
            dcp.save({"policy": model_state, "optimiser": optimiser_state}, checkpoint_id=part)
        # Each process hashes what it wrote, which is still in memory: side by side, so that it takes seconds.
        own = {file.name: sha256_of(file) for file in part.glob(f"__{self.workers.rank}_*")}
        files = {name: digest for found in self.workers.gather(own) for name, digest in found.items()}
        if self.workers.is_main:
            torch.save(loop, part / "loop.pt")
            for file in part.iterdir():
                files.setdefault(file.name, "")
            files = {name: digest or sha256_of(part / name) for name, digest in sorted(files.items())}
            (part / COMPLETE).write_text(json.dumps({"step": loop["step"], "files": files}))

    def _damage(self, place: Path) -> str:
        """What this process finds wrong with its share of a checkpoint's files; empty if nothing."""
        try:
            files = sorted(read_json(place / COMPLETE)["files"].items())
            for name, digest in files[self.workers.rank :: self.workers.world]:
                if sha256_of(place / name) != digest:
                    return f"{place.name}/{name} is not what was written"
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            return f"{place.name} cannot be read ({error})"
        return ""

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
