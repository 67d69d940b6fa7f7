"""The replay pool on disk, against a list in memory that follows the same random numbers."""

import copy
import io
import logging
import os
import re
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sams.runtime.errors import UserError
from sams.scheduling import pool as module
from sams.scheduling.pool import KEPT, Arms, ReplayPool

CAPACITY, K, DRAWN = 10, 4, 6
SHAPES = ((3, 5), (7,), (), ())
SIZE = 2 * (3 * 5 + 7 + 1 + 1)


def arms(number: int) -> Arms:
    """K random arms of round `number`, one of them with numbers that half precision does not hold."""
    generator = torch.Generator().manual_seed(number)
    tensors = [torch.randn(K, *shape, generator=generator) for shape in SHAPES]
    tensors[0][0, 0] = torch.tensor([1e6, -1e6, 65504.0, 1e-9, -0.0])
    return Arms(*tensors)


def pool_in(folder: Path, **changes: Any) -> ReplayPool:
    settings = {"max_arms": CAPACITY, "max_bytes": 10**9, "generator": torch.Generator().manual_seed(0)}
    return ReplayPool(folder, **{**settings, **changes})


class Plain:
    """What the pool stands for: a list in memory."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self.capacity = capacity
        self.generator = torch.Generator().manual_seed(0)
        self.kept: list[tuple[np.ndarray, ...]] = []

    def add(self, arms: Arms) -> None:
        columns = [np.clip(tensor.numpy(), -65504, 65504).astype(np.float16) for tensor in arms.tensors()]
        for arm in zip(*columns, strict=True):
            if len(self.kept) < self.capacity:
                self.kept.append(arm)
            else:
                self.kept[int(torch.randint(len(self.kept), (), generator=self.generator))] = arm

    def sample(self, count: int) -> list[np.ndarray] | None:
        if not self.kept:
            return None
        order = torch.randperm(len(self.kept), generator=self.generator)[:count].tolist()
        columns = zip(*(self.kept[index] for index in order), strict=True)
        return [np.stack(column).astype(np.float32) for column in columns]


def after(rounds: int) -> Plain:
    """The list in memory after so many rounds."""
    plain = Plain()
    for number in range(rounds):
        plain.sample(DRAWN)
        plain.add(arms(number))
    return plain


class Team:
    """Pools of several processes, here threads, whose bytes are summed; they go in lock step."""

    def __init__(self, folder: Path, world: int, **changes: Any) -> None:
        self.parts: list[Tensor] = [torch.empty(0)] * world
        self.barrier = threading.Barrier(world, timeout=20)
        self.pools = [
            pool_in(folder, rank=rank, world=world, exchange=self.exchange(rank), **changes)
            for rank in range(world)
        ]

    def exchange(self, rank: int) -> Callable[[Tensor], Tensor]:
        def total(tensor: Tensor) -> Tensor:
            assert tensor.dtype == torch.uint8
            self.parts[rank] = tensor
            self.barrier.wait()
            parts = torch.stack(self.parts)
            assert (parts != 0).sum(dim=0).max() <= 1  # a sum of bytes must not overflow
            self.barrier.wait()
            return parts.sum(dim=0, dtype=torch.uint8)

        return total

    def all(self, act: Callable[[ReplayPool], Any]) -> list[Any]:
        with ThreadPoolExecutor(len(self.pools)) as threads:
            return list(threads.map(act, self.pools))

    def add(self, arms: Arms) -> None:
        self.all(lambda pool: pool.add(arms))

    def sample(self, count: int) -> Arms | None:
        first, *others = self.all(lambda pool: pool.sample(count))
        for other in others:
            assert_same(other, [tensor.numpy() for tensor in first.tensors()] if first else None)
        return first

    def state_dict(self) -> dict[str, Any]:
        first, *others = [saved(state) for state in self.all(ReplayPool.state_dict)]
        assert all(str(state) == str(first) for state in others)
        return first

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.all(lambda pool: pool.load_state_dict(state))


def saved(state: Any) -> Any:
    """A state as a checkpoint gives it back."""
    stream = io.BytesIO()
    torch.save(state, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=True)


def assert_same(found: Arms | None, expected: list[np.ndarray] | None) -> None:
    """Equal bit for bit, the sign of a zero included."""
    assert (found is None) == (expected is None)
    if found is not None and expected is not None:
        for tensor, array in zip(found.tensors(), expected, strict=True):
            assert tensor.dtype == torch.float32
            assert tensor.shape == array.shape
            assert tensor.numpy().tobytes() == array.tobytes()


def follow(found: ReplayPool | Team, plain: Plain, rounds: Iterable[int], save_every: int = 2) -> None:
    """Sample and add, round by round, and check that pool and list return the same."""
    for number in rounds:
        assert_same(found.sample(DRAWN), plain.sample(DRAWN))
        plain.add(arms(number))
        found.add(arms(number))
        if number % save_every == 0:
            found.state_dict()


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# --- what is in it ----------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [1, 2, 3])
def test_any_number_of_processes_samples_what_a_list_in_memory_gives(tmp_path: Path, world: int) -> None:
    team = Team(tmp_path / "replay", world)
    follow(team, Plain(), range(25))
    assert {name.split(".")[0] for name in files(tmp_path / "replay")} == {
        f"shard-{rank:04d}" for rank in range(world)
    }


def test_more_shards_than_arms_or_processes(tmp_path: Path) -> None:
    follow(pool_in(tmp_path / "one", shards=CAPACITY + 3), Plain(), range(15))
    follow(Team(tmp_path / "two", 2, shards=5), Plain(), range(15))


def test_numbers_are_rounded_and_clamped_to_half_precision(tmp_path: Path) -> None:
    given = torch.tensor([[[1 / 3, 70000.0, -70000.0, float("inf"), -float("inf"), 65519.0]]])
    half = torch.tensor([0.333251953125, 65504.0, -65504.0, 65504.0, -65504.0, 65504.0])
    for kind in (torch.float32, torch.float64):
        pool = pool_in(tmp_path)
        pool.add(Arms(given.to(kind), torch.zeros(1, 1), torch.zeros(1), torch.ones(1)))
        drawn = pool.sample(1)
        assert drawn is not None and torch.equal(drawn.contexts.flatten(), half)
    pool = pool_in(tmp_path)
    # bfloat16 has 65280 and 65536, but not 65504.
    pool.add(Arms(given.bfloat16(), torch.zeros(1, 1), torch.zeros(1), torch.ones(1)))
    drawn = pool.sample(1)
    assert drawn is not None and torch.equal(drawn.contexts.flatten()[1:], half[1:])


def test_nan_is_refused(tmp_path: Path) -> None:
    wrong = arms(0)
    wrong.rewards[2] = torch.nan
    with pytest.raises(UserError, match="NaN"):
        pool_in(tmp_path).add(wrong)


def test_an_empty_pool_draws_nothing_and_no_random_number(tmp_path: Path) -> None:
    pool = pool_in(tmp_path / "replay")
    before = pool.generator.get_state()
    assert pool.sample(4) is None
    pool.add(arms(0))
    assert pool.sample(0) is None
    assert torch.equal(pool.generator.get_state(), before)


# --- how much it takes ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "most"),
    [({"max_arms": 9}, 9), ({"max_arms": 50, "max_bytes": 7 * SIZE + SIZE - 1}, 7)],
    ids=["arms", "bytes"],
)
def test_the_bound_is_kept_and_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, limits: dict[str, int], most: int
) -> None:
    folder = tmp_path / "replay"
    with caplog.at_level(logging.INFO):
        team = Team(folder, 2, shards=3, **limits)
        assert not folder.exists()
        for number in range(20):
            team.add(arms(number))
            assert {len(pool) for pool in team.pools} == {min(most, (number + 1) * K)}
    message = f"at most {most} arms of {SIZE} bytes, {most * SIZE} bytes in all, in 3 shards in {folder}"
    assert [line for line in caplog.messages if "replay" in line] == [f"replay pool: {message}"]


def test_a_bound_below_one_arm_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="replay_bytes"):
        pool_in(tmp_path, max_bytes=SIZE - 1).add(arms(0))


def test_a_disk_without_room_is_refused_and_files_of_the_pool_count_as_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=(3 * CAPACITY - 1) * SIZE))
    with pytest.raises(UserError, match=rf"^{re.escape(str(tmp_path / 'new'))}: .*make room"):
        pool_in(tmp_path / "new").add(arms(0))
    (tmp_path / "shard-0000.0000").write_bytes(bytes(SIZE))
    pool_in(tmp_path).add(arms(0))


@pytest.mark.parametrize("shards", [1, 3])
def test_the_disk_holds_three_pools_and_three_intervals_at_most(tmp_path: Path, shards: int) -> None:
    capacity, rounds, every = 60, 150, 4
    pool = pool_in(tmp_path, max_arms=capacity, shards=shards)
    most = 0
    for number in range(rounds):
        pool.add(arms(number))
        most = max(most, sum(path.stat().st_size for path in tmp_path.iterdir()))
        if number % every == 0:
            pool.state_dict()
    # An uneven draw may let one shard grow by more arms than another: a tenth more.
    assert most < 1.1 * (3 * capacity + 3 * every * K) * SIZE < 0.5 * rounds * K * SIZE


def test_the_arms_are_not_in_memory(tmp_path: Path) -> None:
    def anonymous() -> int:
        """Bytes that this process has for itself, not as pages of a file."""
        status = Path("/proc/self/status").read_text()
        return 1024 * next(int(line.split()[1]) for line in status.splitlines() if "RssAnon" in line)

    pool = pool_in(tmp_path, max_arms=600)
    batch = Arms(torch.randn(10, 4, 12_500), torch.zeros(10, 1), torch.zeros(10), torch.zeros(10))
    pool.add(batch)
    pool.sample(8)
    before = anonymous()
    for _ in range(55):
        pool.add(batch)
        pool.sample(8)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) > 55e6
    assert anonymous() - before < 15e6
    stream = io.BytesIO()
    torch.save(pool.state_dict(), stream)
    assert len(stream.getvalue()) < 8 * len(pool) + 10_000


# --- resume -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rounds", [0, 1, 3, 9, 14, 15, 16, 17])
@pytest.mark.parametrize("shards", [1, 3])
def test_a_resumed_pool_goes_on_as_if_undisturbed(tmp_path: Path, rounds: int, shards: int) -> None:
    killed = pool_in(tmp_path, shards=shards)
    follow(killed, Plain(), range(rounds))
    state = killed.state_dict()
    # After the checkpoint: arms, a newer checkpoint that stayed torn, half an arm.
    follow(killed, after(rounds), range(rounds, rounds + 9), save_every=5)
    for path in tmp_path.iterdir():
        with path.open("ab") as stream:
            stream.write(b"half an arm")

    resumed = pool_in(tmp_path, shards=shards, generator=torch.Generator().manual_seed(99))
    resumed.load_state_dict(saved(state))
    assert len(resumed) == min(rounds * K, CAPACITY)
    follow(resumed, after(rounds), range(rounds, rounds + 20))


def test_what_follows_a_checkpoint_leaves_its_bytes_alone(tmp_path: Path) -> None:
    pool = pool_in(tmp_path, shards=2)
    for number in range(8):
        pool.add(arms(number))
    pool.state_dict()
    then = files(tmp_path)
    for number in range(8, 16):
        pool.add(arms(number))
    now = files(tmp_path)
    assert sum(map(len, now.values())) == sum(map(len, then.values())) + 8 * K * SIZE
    for name, content in then.items():
        assert now[name].startswith(content)


def test_every_checkpoint_that_is_kept_can_be_resumed(tmp_path: Path) -> None:
    folder, states = tmp_path / "replay", dict[int, Any]()
    pool = pool_in(folder, shards=2)
    for number in range(30):
        pool.sample(DRAWN)
        pool.add(arms(number))
        states[number + 1] = saved(pool.state_dict())
        for rounds in list(states)[-(KEPT + 1) :]:
            there = tmp_path / f"{number}-{rounds}"
            shutil.copytree(folder, there)
            resumed = pool_in(there)
            resumed.load_state_dict(states[rounds])
            follow(resumed, after(rounds), range(rounds, rounds + 3))
    assert len({str(state["generations"][-1]) for state in states.values()}) > 5


def test_a_checkpoint_has_its_files_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool, synced = pool_in(tmp_path, shards=2), set[int]()
    follow(pool, Plain(), range(9), save_every=100)
    monkeypatch.setattr(os, "fsync", lambda file: synced.add(os.fstat(file).st_ino))
    generations = pool.state_dict()["generations"][-1]
    for shard, generation in enumerate(generations):
        assert (tmp_path / f"shard-{shard:04d}.{generation:04d}").stat().st_ino in synced
    assert generations != [0, 0]


def test_the_pool_keeps_files_for_as_many_checkpoints_as_the_trainer() -> None:
    from sams.training import checkpoints

    assert checkpoints.KEPT <= KEPT


def killed_at(line: int, act: Callable[[], Any]) -> bool:
    """Fork a process that does `act` and dies of SIGKILL before the line-th line of the pool's code."""
    child = os.fork()
    if child == 0:

        def trace(frame: Any, event: str, argument: Any) -> Any:
            nonlocal line
            if frame.f_code.co_filename != module.__file__:
                return None
            if event == "line":
                line -= 1
                if line == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
            return trace

        status = 1
        try:
            sys.settrace(trace)
            act()
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or status == 0
    return os.WIFSIGNALED(status)


@pytest.mark.faults
def test_killed_anywhere_it_goes_on_from_the_last_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "replay"
    pool, rounds = pool_in(folder, shards=2), 8
    follow(pool, Plain(), range(rounds), save_every=1)
    state = saved(pool.state_dict())

    def act(pool: ReplayPool) -> None:
        """Arms, a checkpoint that nobody gets to see, and more arms."""
        for number in (50, 51):
            pool.add(arms(number))
        pool.state_dict()
        pool.add(arms(52))

    def resume(there: Path) -> ReplayPool:
        resumed = pool_in(there)
        resumed.load_state_dict(state)
        return resumed

    shutil.copytree(folder, tmp_path / "whole")
    act(resume(tmp_path / "whole"))
    before, now = (set(files(tmp_path / name)) for name in ("replay", "whole"))
    assert now - before and before - now  # one file is rewritten and another one deleted

    line, killed = 1, True
    while killed:
        there = tmp_path / str(line)
        shutil.copytree(folder, there)
        going = resume(there)
        killed = killed_at(line, lambda going=going: act(going))  # type: ignore[misc]
        resumed = resume(there)
        assert set(files(there)) <= before
        follow(resumed, after(rounds), range(rounds, rounds + 4))
        line += 5
    assert line > 100


@pytest.mark.parametrize(
    ("fault", "message"), [("cut", r"\d+ bytes, but"), ("flipped", "SHA-256"), ("gone", "0 bytes, but")]
)
def test_a_file_that_is_not_what_it_was_is_refused_by_name(tmp_path: Path, fault: str, message: str) -> None:
    pool = pool_in(tmp_path, shards=2)
    follow(pool, Plain(), range(8))
    state = saved(pool.state_dict())
    path = tmp_path / f"shard-0001.{state['generations'][-1][1]:04d}"
    content = bytearray(path.read_bytes())
    if fault == "cut":
        path.write_bytes(content[:-1])
    elif fault == "flipped":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    else:
        path.unlink()
    with pytest.raises(
        UserError, match=rf"^{re.escape(str(path))}: .*{message}.*delete the run's checkpoints"
    ):
        pool_in(tmp_path).load_state_dict(state)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_a_pool_of_two_processes_is_resumed_by_others(tmp_path: Path, world: int) -> None:
    first = Team(tmp_path, 2)
    follow(first, Plain(), range(11))
    state = first.state_dict()
    first.add(arms(0))
    resumed = Team(tmp_path, world)
    resumed.load_state_dict(copy.deepcopy(state))
    follow(resumed, after(11), range(11, 30))
    assert resumed.state_dict()["shards"] == 2


def test_a_fresh_pool_clears_what_an_earlier_attempt_left(tmp_path: Path) -> None:
    left = pool_in(tmp_path, shards=5)
    follow(left, Plain(), range(12))
    assert len(files(tmp_path)) >= 5
    team = Team(tmp_path, 2)
    for number in range(2):
        team.add(arms(number))
    assert sorted(files(tmp_path)) == ["shard-0000.0000", "shard-0001.0000"]
    assert sum(map(len, files(tmp_path).values())) == 2 * K * SIZE
