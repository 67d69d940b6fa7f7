"""The replay pool: a bounded set of past arms, in half precision, on disk.

A pool is a table of slots, split into shards: slot s belongs to shard s % shards. A shard is an append-only file of
arms; the table has the record of the file for each slot. An arm is replaced by changing the table, so that the
records of older checkpoints stay, and a checkpoint keeps the table, the lengths of the files and their hashes, not
the arms.

Every process tracks the tables of all shards, which depend on shared random numbers only, but reads and writes only
its own shards.
"""

import hashlib
import logging
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sams.runtime.errors import UserError

log = logging.getLogger(__name__)

HALF = torch.float16
LARGEST = torch.finfo(HALF).max

KEPT = 2
"""Checkpoints that the trainer keeps; one more may be being written. Their files must be kept."""

FILES_OVER_POOL = 3
"""Largest size of the files relative to the pool: an arm is deleted from the disk later than from the pool."""

BLOCK = 2**24
"""Bytes copied or hashed at a time."""


@dataclass
class Arms:
    """k arms that were trained on, from which the scheduler learns.

    Attributes:
        contexts: [k, layers, width] merged contexts at scoring time.
        hidden: [k, h] block-averaged activations of f_S at scoring time.
        values: [k] f_S at scoring time.
        rewards: [k] rewards (Eq. 8), known one round later.
    """

    contexts: Tensor
    hidden: Tensor
    values: Tensor
    rewards: Tensor

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the four tensors, in order."""
        return self.contexts, self.hidden, self.values, self.rewards


class RecordFile:
    """An append-only file of records of equal size, with the running SHA-256 of its bytes.

    Args:
        path: the file; created if missing.
        size: bytes of a record.
        records: number of records to keep; the rest of the file is cut off.
        digest: SHA-256 of these records, in hexadecimal.

    Raises:
        UserError: the file is shorter than `records` records, or their hash is not `digest`.
    """

    def __init__(self, path: Path, size: int, *, records: int = 0, digest: str = "") -> None:
        self.path = path
        self.size = size
        self.hash = hashlib.sha256()
        length = records * size
        stored = path.stat().st_size if path.exists() else 0
        if stored < length:
            raise self._refused(f"{stored} bytes, but {length} when the checkpoint was written")
        self.stream = path.open("a+b")
        self.stream.seek(0)
        for start in range(0, length, BLOCK):
            self.hash.update(self.stream.read(min(BLOCK, length - start)))
        if records and self.hash.hexdigest() != digest:
            raise self._refused(
                "its content has changed since the checkpoint was written (its SHA-256 differs)"
            )
        self.stream.truncate(length)

    def append(self, rows: NDArray[np.uint8]) -> None:
        """Append k records, [k, size]; they survive a killed process, but not a power failure."""
        self.stream.write(rows.data)
        self.stream.flush()
        self.hash.update(rows.data)

    def read(self, numbers: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Read the records with these numbers, [k, size]."""
        # A read-only shared map, because a private map of a file larger than the memory may be refused. A new map for
        # each read, because the file grows, and mapped pages count as memory of the process.
        return np.memmap(self.path, np.uint8, "r").reshape(-1, self.size)[numbers]

    def sync(self) -> None:
        """Flush the file to disk."""
        os.fsync(self.stream.fileno())

    def close(self) -> None:
        """Close the file."""
        self.stream.close()

    def _refused(self, problem: str) -> UserError:
        return UserError(
            problem,
            where=str(self.path),
            remedy="put the file back, or delete the run's checkpoints to start afresh",
        )


class ReplayPool:
    """A bounded set of past arms; when full, a new arm replaces an arm drawn at random.

    The pool keeps min(max_arms, max_bytes // bytes of an arm) arms, with 2 bytes per number, and logs this size when
    the first arm is added. Its files are larger, because an arm is deleted from the disk later than from the pool: up
    to three times the pool, plus the arms of four checkpoints.

    Arms and order of the calls must be the same on all processes.

    Args:
        folder: folder of the pool's files, the same for all processes. It is created, or cleared of files of an
            earlier attempt, when the first arms are added.
        max_arms: most arms of the pool.
        max_bytes: most bytes of the pool, over all processes.
        generator: draws the arms to replace and the arms of a sample; in the same state on all processes. It is part
            of the pool's state.
        shards: number of files of a new pool, by default one per process; a resumed pool keeps its number.
        rank: rank of this process, which holds the shards i with i % world = rank.
        world: number of processes.
        exchange: sum of the processes' tensors of bytes (uint8, on the CPU), on every process. At most one process
            has a byte other than 0 at any index.
    """

    def __init__(
        self,
        folder: Path,
        *,
        max_arms: int,
        max_bytes: int,
        generator: torch.Generator,
        shards: int | None = None,
        rank: int = 0,
        world: int = 1,
        exchange: Callable[[Tensor], Tensor] = lambda tensor: tensor,
    ) -> None:
        self.folder = folder
        self.max_arms = max_arms
        self.max_bytes = max_bytes
        self.generator = generator
        self.shards = shards or world
        self.rank = rank
        self.world = world
        self.exchange = exchange

        self.shapes: list[list[int]] = []  # of the four tensors of an arm; empty before the first arm
        self.filled = 0
        self.slots = torch.empty(0, dtype=torch.int64)  # [capacity] slot -> record in its shard's file
        self.records = [0] * self.shards  # in each shard's file, replaced ones included
        self.generations = [[0] * self.shards]  # of the files, at the last KEPT + 1 states, newest last
        self.files: dict[int, RecordFile] = {}  # of this process's shards that have records

    def __len__(self) -> int:
        return self.filled

    def add(self, arms: Arms) -> None:
        """Add k arms, one after another. Numbers beyond the range of half precision are clamped.

        Raises:
            UserError: a number is NaN, or one arm is larger than `max_bytes`.
        """
        if not self.shapes:
            self._lay_out([list(tensor.shape[1:]) for tensor in arms.tensors()])
            self._sweep()
            self.folder.mkdir(parents=True, exist_ok=True)
        rows = self._packed(arms)
        rows_of: list[list[int]] = [[] for _ in range(self.shards)]
        for row in range(len(rows)):
            if self.filled < len(self.slots):
                slot = self.filled
                self.filled += 1
            else:
                slot = int(torch.randint(self.filled, (), generator=self.generator))
            shard = slot % self.shards
            self.slots[slot] = self.records[shard]
            self.records[shard] += 1
            rows_of[shard].append(row)
        for shard in self._held():
            if rows_of[shard]:
                self._file(shard).append(rows[rows_of[shard]].numpy())

    def sample(self, count: int) -> Arms | None:
        """Draw at most `count` different arms, in float32 on the CPU; None while the pool is empty.

        A collective call; all processes get the same arms.
        """
        if not self.filled or count == 0:
            return None
        slots = torch.randperm(self.filled, generator=self.generator)[:count]
        rows = torch.zeros(len(slots), self._size(), dtype=torch.uint8)
        for shard, file in self.files.items():
            here = (slots % self.shards == shard).nonzero().flatten()
            rows[here] = torch.from_numpy(file.read(self.slots[slots[here]].numpy()))
        columns = self.exchange(rows).view(HALF).split(self._widths(), dim=1)
        return Arms(
            *(column.float().reshape(-1, *shape) for column, shape in zip(columns, self.shapes, strict=True))
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint: 8 bytes per arm; the arms stay in the files, which are flushed to disk.

        A collective call; all processes get the same state. A file with more than half of its arms no longer in the
        pool is rewritten as the shard's next generation; the old file is deleted when the last KEPT + 1 states are
        all newer.
        """
        self.generations = [*self.generations, list(self.generations[-1])][-(KEPT + 1) :]
        for shard in range(self.shards):
            if self.records[shard] > 2 * len(self.slots[: self.filled][shard :: self.shards]):
                self._compact(shard)
        digests = torch.zeros(self.shards, hashlib.sha256().digest_size, dtype=torch.uint8)
        for shard, file in self.files.items():
            file.sync()
            digests[shard] = torch.tensor(list(file.hash.digest()))
        digests = self.exchange(digests)  # also waits until all files are on disk
        self._sweep()
        return {
            "shapes": [list(shape) for shape in self.shapes],
            "shards": self.shards,
            "slots": self.slots[: self.filled].clone(),
            "records": list(self.records),
            "generations": [list(generations) for generations in self.generations],
            "digests": [bytes(digest).hex() for digest in digests.tolist()],
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state of `state_dict` on any number of processes; later records are cut off the files.

        Raises:
            UserError: a file has changed or is missing.
        """
        for file in self.files.values():
            file.close()
        self.files = {}
        self.shards = state["shards"]
        self.filled = len(state["slots"])
        self.records = list(state["records"])
        self.generations = [list(generations) for generations in state["generations"]]
        self.generator.set_state(state["generator"])
        self.shapes = []
        if self.filled:
            self._lay_out(state["shapes"])
            self.slots[: self.filled] = state["slots"]
        for shard in self._held():
            if self.records[shard]:
                self.files[shard] = RecordFile(
                    self._path(shard),
                    self._size(),
                    records=self.records[shard],
                    digest=state["digests"][shard],
                )
        self._sweep()

    def _lay_out(self, shapes: list[list[int]]) -> None:
        """Allocate the table of slots, once the size of an arm is known, and log the size of the pool."""
        self.shapes = [list(shape) for shape in shapes]
        size = self._size()
        capacity = min(self.max_arms, self.max_bytes // size)
        if not capacity:
            raise UserError(
                f"{self.max_bytes} bytes are less than one arm of {size} bytes",
                where="replay pool",
                remedy="raise scheduler.replay_bytes",
            )
        self.slots = torch.empty(capacity, dtype=torch.int64)
        if self.rank == 0:
            self._refuse_full_disk(capacity * size)
            log.info(
                "replay pool: at most %d arms of %d bytes, %d bytes in all, in %d shards in %s",
                capacity,
                size,
                capacity * size,
                self.shards,
                self.folder,
            )

    def _refuse_full_disk(self, pool: int) -> None:
        """Check at the start that the disk has room for the files of a pool of this many bytes.

        Raises:
            UserError: with the bytes that are needed and the bytes that are free.
        """
        parent = self.folder
        while not parent.is_dir():
            parent = parent.parent
        written = sum(path.stat().st_size for path in self.folder.glob("shard-*"))
        needed, free = FILES_OVER_POOL * pool - written, shutil.disk_usage(parent).free
        if needed > free:
            raise UserError(
                f"the replay pool's files take up to {needed / 2**30:.1f} GiB more, of {free / 2**30:.1f} GiB free",
                where=str(self.folder),
                remedy="make room, or lower scheduler.replay_bytes",
            )

    def _widths(self) -> list[int]:
        """Return the number of elements of each of an arm's four tensors."""
        return [int(np.prod(shape, dtype=int)) for shape in self.shapes]

    def _size(self) -> int:
        """Return the bytes of an arm."""
        return sum(self._widths()) * HALF.itemsize

    def _packed(self, arms: Arms) -> Tensor:
        """Arms as records, [k, size] bytes."""
        rows = torch.empty(len(arms.values), sum(self._widths()), dtype=HALF)
        for part, tensor in zip(rows.split(self._widths(), dim=1), arms.tensors(), strict=True):
            # Clamped in float32: bfloat16 would round the largest half-precision number up to infinity.
            part.copy_(tensor.float().clamp(-LARGEST, LARGEST).reshape(part.shape))
        if rows.isnan().any():
            raise UserError(
                "a context, a hidden activation, a value or a reward is NaN",
                where="replay pool",
                remedy="lower scheduler.learning_rate, or use precision float32",
            )
        return rows.view(torch.uint8)

    def _held(self) -> range:
        """Return the shards of this process."""
        return range(self.rank, self.shards, self.world)

    def _path(self, shard: int) -> Path:
        return self.folder / f"shard-{shard:04d}.{self.generations[-1][shard]:04d}"

    def _file(self, shard: int) -> RecordFile:
        """File of one of this process's shards, created for its first record."""
        if shard not in self.files:
            self.files[shard] = RecordFile(self._path(shard), self._size())
        return self.files[shard]

    def _compact(self, shard: int) -> None:
        """Write a file of the next generation with the records of current slots only, in order of the slots."""
        slots = self.slots[: self.filled][shard :: self.shards]
        self.generations[-1][shard] += 1
        self.records[shard] = len(slots)
        if shard in self.files:
            old = self.files.pop(shard)
            for numbers in slots.split(max(1, BLOCK // old.size)):
                self._file(shard).append(old.read(numbers.numpy()))
            old.close()
        slots.copy_(torch.arange(len(slots)))

    def _sweep(self) -> None:
        """Delete the files of this process's shards that none of the last states needs."""
        for path in self.folder.glob("shard-*"):
            name = re.fullmatch(r"shard-(\d+)\.(\d+)", path.name)
            if not name:
                continue
            shard, generation = map(int, name.groups())
            if shard % self.world != self.rank:
                continue
            needed = shard < self.shards and self.records[shard] > 0
            if not needed or not (
                min(generations[shard] for generations in self.generations)
                <= generation
                <= self.generations[-1][shard]
            ):
                path.unlink()
