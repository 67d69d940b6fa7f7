"""Sharded checkpoints, complete or absent, resumed only by the run that wrote them."""

import errno
import json
import logging
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.utils._pytree import tree_leaves, tree_map_only

from sams.runtime.errors import UserError
from sams.runtime.faults import full_disk, is_disk_full
from sams.runtime.files import (
    canonical_json,
    read_json,
    sha256_of,
    sha256_of_text,
    write_json,
    write_manifest,
)
from sams.training.distribution import Workers, local_part, reshard
from sams.training.memory import MEMORY_SHARE, free_bytes
from sams.training.sharded import LORA, load_sharded

if TYPE_CHECKING:
    from sams.scheduling.selectors.base import Selector

log = logging.getLogger(__name__)
T = TypeVar("T")

COMPLETE = "COMPLETE"
RUN = "run.json"
"""File in the folder of a run: its inputs, and the digests of its modules."""
KEPT = 2
TRAINED = StateDictOptions(ignore_frozen_params=True, strict=False)
"""What a checkpoint holds: trained weights. Frozen ones (with adapters) are read from the start model."""


def delete(folder: Path) -> None:
    """Delete checkpoints, their markers first, so that a killed process leaves none that looks complete."""
    for marker in list(folder.rglob(COMPLETE)):
        marker.unlink()
    shutil.rmtree(folder, ignore_errors=True)


def drop_frozen(policy: nn.Module, state: dict[str, Any]) -> None:
    """Delete frozen weights from a state of torch, which leaves the second name of a tied one in it."""
    for name, weight in policy.named_parameters(remove_duplicate=False):
        if not weight.requires_grad:
            state.pop(name.removeprefix("module."), None)  # DDP's


class ResultWriter(FileSystemWriter):
    """Writes shards without their path and a random id, so that equal weights are equal files."""

    def storage_meta(self) -> None:
        """Return no metadata: those of the base class hold the path and a random id."""
        return


class Checkpoints:
    """The checkpoints of one run, in a folder named by a digest of its inputs and its code.

    Checkpoints of other inputs are deleted, never resumed. Of runs with the same inputs and other code, the
    newest one's checkpoints are kept until this run has finished; a warning says how to resume from them.

    Args:
        folder: parent folder, which holds the checkpoints of one job.
        workers: the processes of the job.
        inputs: recipe and digests of all that the job reads, JSON.
        code: digest of each module that the job runs.
        asynchronous: whether a thread writes a copy of the state while training continues.
    """

    def __init__(
        self,
        folder: Path,
        workers: Workers,
        *,
        inputs: dict[str, Any],
        code: dict[str, str],
        asynchronous: bool = False,
    ) -> None:
        self.asynchronous = asynchronous
        self._group: dist.ProcessGroup | None = None
        self._thread: Thread | None = None
        self._error: BaseException | None = None
        self.folder = folder / sha256_of_text(canonical_json([inputs, code]))[:16]
        self.workers = workers
        if workers.is_main:
            self._keep_newest(inputs, code)
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.folder / RUN, {"inputs": inputs, "code": code})
            for part in self.folder.glob(".step-*.part"):  # a save that was killed
                shutil.rmtree(part, ignore_errors=True)
        workers.barrier()

    def _keep_newest(self, inputs: dict[str, Any], code: dict[str, str]) -> None:
        """Delete the folders of other runs, but for the newest one with the same inputs and a checkpoint."""
        others = [other for other in self._runs() if other != self.folder]
        usable = [other for other in others if steps_of(other) and _read_run(other).get("inputs") == inputs]
        newest = max(usable, key=lambda other: (other / RUN).stat().st_mtime_ns, default=None)
        for other in others:
            if other != newest:
                log.info("settings, code or data have changed: deleting the checkpoints in %s", other)
                delete(other)
        if newest is not None and not steps_of(self.folder):
            new, old = shlex.quote(str(self.folder)), shlex.quote(str(newest))
            log.warning(
                "the code has changed since the checkpoint of step %d in %s (%s); this run starts from step 0. To "
                "resume from that checkpoint with the new code: stop this run, `rm -r %s && mv %s %s`, start it "
                "again. To resume with the old code: check out the commit that wrote the checkpoint.",
                steps_of(newest)[-1],
                newest,
                ", ".join(changed_modules(_read_run(newest)["code"], code)),
                new,
                old,
                new,
            )

    def _runs(self) -> list[Path]:
        return sorted(self.folder.parent.iterdir()) if self.folder.parent.is_dir() else []

    def steps(self) -> list[int]:
        """Return the steps of the complete checkpoints, oldest first."""
        return steps_of(self.folder)

    def restore(
        self, policy: nn.Module, optimiser: torch.optim.Optimizer | None, selector: "Selector | None" = None
    ) -> dict[str, Any] | None:
        """Load the newest intact checkpoint into policy, optimiser and selector; return the loop's own state.

        Returns None if there is no checkpoint. A damaged checkpoint, or one whose selector's files are damaged, is
        passed over for the one before it. Without an optimiser the policy is frozen and not in the checkpoint.

        Raises:
            UserError: there are checkpoints, and all are damaged.
        """
        problems: list[str] = []
        # Rank 0 decides: a network file system may show other nodes an older state of the folder.
        for step in reversed(self.workers.gather(self.steps())[0]):
            path = self._path(step)
            loop, problem = None, self._damage(path)
            if not self.workers.any(bool(problem)):
                loop = torch.load(path / "loop.pt", map_location="cpu", weights_only=True)
                if selector is not None:
                    try:
                        selector.load_state_dict(loop.pop("selector"))
                    except UserError as error:
                        problem = str(error)
            damages = sorted({damage for damage in self.workers.gather(problem) if damage})
            if damages or loop is None:
                problems += damages
                log.warning("%s is damaged, trying the checkpoint before it: %s", path, "; ".join(damages))
                continue
            if optimiser is not None:
                reshard(policy)
                model_state, optimiser_state = get_state_dict(policy, optimiser, options=TRAINED)
                drop_frozen(policy, model_state)
                state: dict[str, Any] = {"policy": model_state, "optimiser": optimiser_state}
                load_sharded(state, path)
                set_state_dict(
                    policy,
                    optimiser,
                    model_state_dict=state["policy"],
                    optim_state_dict=state["optimiser"],
                    options=TRAINED,
                )
            log.info("resuming after step %d", loop["step"])
            return dict(loop)
        if problems:
            raise UserError(
                f"every checkpoint is damaged ({'; '.join(problems)})",
                where=str(self.folder),
                remedy="restore the files, or delete that folder to start from step 0",
            )
        return None

    def save(self, policy: nn.Module, optimiser: torch.optim.Optimizer | None, loop: dict[str, Any]) -> None:
        """Write a checkpoint of step `loop["step"]`, under a temporary name until it is complete. A collective call.

        An asynchronous checkpoint is copied here and written by a thread, whose errors `wait` raises.

        Raises:
            UserError: the disk is full; earlier checkpoints stay.
            OSError: it cannot be written for another reason; earlier checkpoints stay.
        """
        self.wait()
        state: dict[str, Any] = {}
        if optimiser is not None:
            reshard(policy)
            self.workers.refuse_drift(policy)
            state["policy"], state["optimiser"] = get_state_dict(policy, optimiser, options=TRAINED)
            drop_frozen(policy, state["policy"])
        if self._group is None and dist.is_initialized():
            # Of its own, because the thread's calls would mix with those of training; the files are on the CPU.
            self._group = dist.new_group(backend="gloo")
        if not self.asynchronous or not fits_memory([state, loop]):
            self._write(state, loop)
            return
        copied = tree_map_only(Tensor, lambda tensor: tensor.detach().to("cpu", copy=True), (state, loop))
        self._thread = Thread(target=self._write_later, args=copied, name="checkpoint", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Wait until the last checkpoint is complete. A collective call.

        Raises:
            The same as `save`, on all processes.
        """
        if self._thread is not None:
            self.workers.watch.at("waiting until the last checkpoint is written")
            self._thread.join()
            self._thread, error, self._error = None, self._error, None
            if error is not None:
                raise error

    def _write_later(self, state: dict[str, Any], loop: dict[str, Any]) -> None:
        try:
            self._write(state, loop)
        except BaseException as error:
            self._error = error

    def _write(self, state: dict[str, Any], loop: dict[str, Any]) -> None:
        """Write a checkpoint; its marker, with the hashes of all files, comes last, and then its name."""
        path = self._path(loop["step"])
        part = path.with_name(f".{path.name}.part")

        def begin() -> None:
            if self.workers.is_main:
                shutil.rmtree(part, ignore_errors=True)
                part.mkdir(parents=True)

        def write() -> dict[str, str]:
            if state:
                dcp.save(state, checkpoint_id=part, process_group=self._group)
            # Each process hashes its own files, which are still cached, in parallel with the others.
            return {file.name: sha256_of(file) for file in part.glob(f"__{self.workers.rank}_*")}

        def complete() -> None:
            if not self.workers.is_main:
                return
            torch.save(loop, part / "loop.pt")
            hashed = {name: digest for digests in own for name, digest in digests.items()}
            for file in part.iterdir():
                if file.name not in hashed:
                    hashed[file.name] = sha256_of(file)
            files = dict(sorted(hashed.items()))
            (part / COMPLETE).write_text(json.dumps({"step": loop["step"], "files": files}))
            shutil.rmtree(path, ignore_errors=True)
            part.replace(path)
            for old in self.steps()[:-KEPT]:
                delete(self._path(old))

        try:
            self._together(begin)
            own = self._together(write)
            self._together(complete)
        except BaseException as error:  # torch's CheckpointException is a BaseException
            if self.workers.is_main:
                shutil.rmtree(part, ignore_errors=True)
            if is_disk_full(error):
                raise full_disk(path) from error
            raise

    def _together(self, act: Callable[[], T]) -> list[T]:
        """Return what `act` returns on each process; if it fails on one of them, raise on all."""
        result, failure = None, None
        try:
            result = act()
        except BaseException as error:
            failure = error
        full = failure is not None and is_disk_full(failure)
        mine = (result, "" if failure is None else repr(failure), full)
        outcomes: list[Any] = [mine] * self.workers.world
        if self.workers.world > 1:
            dist.all_gather_object(outcomes, mine, group=self._group)
        if failure is not None:
            raise failure
        for rank, (_, problem, full) in enumerate(outcomes):
            if problem:
                raise OSError(errno.ENOSPC if full else errno.EIO, f"rank {rank}: {problem}")
        return [result for result, _, _ in outcomes]

    def _damage(self, path: Path) -> str:
        """Return the first damage to this process's share of a checkpoint's files; empty if there is none."""
        try:
            files = sorted(read_json(path / COMPLETE)["files"].items())
            for name, digest in files[self.workers.rank :: self.workers.world]:
                if sha256_of(path / name) != digest:
                    return f"{path.name}/{name} has changed since it was written"
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            return f"{path.name} cannot be read ({error})"
        return ""

    def publish(
        self, policy: nn.Module, out: Path, *, config: Any, lora: dict[str, Any] | None = None
    ) -> None:
        """Write the trained weights, sharded, and the model's config as the folder `out` with a manifest.

        With `lora`, the adapters' settings, these are the adapters. Their `base` is the digest of the base model;
        without one, no file has the base, which is then written too.
        """
        part = out.with_name(f".{out.name}.part")
        if self.workers.is_main:
            shutil.rmtree(part, ignore_errors=True)
            part.parent.mkdir(parents=True, exist_ok=True)
        self.workers.barrier()
        reshard(policy)
        self.workers.refuse_drift(policy)
        options = TRAINED if lora is not None and lora["base"] is not None else None
        state = get_model_state_dict(policy, options=options)
        if options is not None:
            drop_frozen(policy, state)
        dcp.save({"policy": state}, storage_writer=ResultWriter(part))
        if self.workers.is_main:
            config.save_pretrained(part)
            if lora is not None:
                write_json(part / LORA, lora)
            write_manifest(part)
            shutil.rmtree(out, ignore_errors=True)
            part.replace(out)
        self.workers.barrier()

    def remove(self) -> None:
        """Delete the checkpoints of this job, once its result is complete, and those of older code."""
        self.wait()
        if self.workers.is_main:
            for run in self._runs():
                delete(run)
        self.workers.barrier()

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"


def fits_memory(state: Any) -> bool:
    """Return whether a copy of this process's part of a state fits in the free memory of the machine."""
    size = sum(local_part(leaf).nbytes for leaf in tree_leaves(state) if isinstance(leaf, Tensor))
    room = MEMORY_SHARE * free_bytes(torch.device("cpu"))
    if size > room:
        log.warning(
            "a copy of the state takes %.1f GiB, of %.1f GiB of memory available: training waits until the "
            "checkpoint is written",
            size / 2**30,
            room / 2**30,
        )
    return size <= room


def steps_of(run: Path) -> list[int]:
    """Return the steps of the complete checkpoints in the folder of a run, oldest first."""
    return sorted(int(marker.parent.name.split("-")[1]) for marker in run.glob(f"step-*/{COMPLETE}"))


def changed_modules(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """Return modules whose digests differ, or that only one mapping has."""
    return sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))


def _read_run(run: Path) -> dict[str, Any]:
    """Return the `RUN` file of a run's folder; empty if there is none, or it is damaged."""
    try:
        read = read_json(run / RUN)
        return read if isinstance(read["code"], dict) else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
