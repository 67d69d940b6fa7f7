"""Stages killed by SIGKILL at named points and started again, compared with an uninterrupted run.

Each run has 3 epochs of 4 steps and saves after every second step but the last. Its replay pool holds two rounds,
so that arms are replaced from step 4 on, and its file is rewritten in the saves of steps 6 and 10.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemReader

from sams.study.recipes import ExportRecipe, PreferenceRecipe, PretrainRecipe, ReferenceRecipe, SftRecipe
from sams.study.settings import Preference, Pretrain, Scheduler, Settings, Sft
from tests import tiny
from tests.training.forks import Point, server

pytestmark = pytest.mark.slow

STEPS = 12
COURSE = {
    "batch_size": 16,
    "micro_batch_size": 4,
    "epochs": 3,
    "learning_rate": 1e-3,
    "schedule": "cosine",
    "evaluations": 3,
    "checkpoint_every": 2,
}
SCHEDULER = Scheduler(replay_rounds=2, replay_sample=6, learning_rate=1e-3, exploration=0.5)
MODEL = tiny.settings()

PER_START = {
    "train_seconds",
    "preparation_seconds",
    "peak_memory_mb",
    "tokens_per_second",
    "padding_share",
    "busiest_over_mean",
}
"""Figures of train_metrics.json that are times, memory, or medians over the steps of the last start."""

LOG = "sams.tracking.log.Run.log"
LEARN = "sams.scheduling.scheduler.Scheduler.learn"
BACKWARD = "accelerate.Accelerator.backward"
ADAMW = "torch.optim.AdamW.step"
POOL = "sams.scheduling.pool.ReplayPool"
CHECKPOINTS = "sams.training.checkpoints.Checkpoints"
SHARDS = "torch.distributed.checkpoint.save"
RENAME = "pathlib.Path.replace"
DELETE = "shutil.rmtree"
SEAL = "sams.training.checkpoints.write_manifest"


@dataclass(frozen=True)
class Crash:
    """Kills of one run, one after another, and the newest checkpoint from which it may resume at last.

    A thread writes the checkpoints: that of a step may be incomplete until the next one is due.
    """

    saved: int
    points: tuple[Point, ...]


def crash(saved: int, *points: Point) -> Crash:
    return Crash(saved, points)


EVERYWHERE = {
    # In a step; steps 5 to 8 are the second epoch.
    "before-the-first-choice": crash(0, Point("sams.scheduling.selectors.sams.Sams.choose", before=True)),
    "scheduler-fitted-nothing-chosen": crash(6, Point(LEARN, 6)),
    "arm-half-written-to-the-pool": crash(6, Point(f"{POOL}.add", 6, half="*/replay/shard-*")),
    "before-the-log-line": crash(6, Point(LOG, 7, before=True)),
    "log-line-half-written": crash(6, Point(LOG, 8, half="*/train.jsonl")),
    "log-line-written-checkpoint-due": crash(2, Point(LOG, 4)),
    # In the save.
    "part-folder-made": crash(2, Point("pathlib.Path.mkdir", about=r"/\.step-00000004\.part$")),
    "pool-file-half-rewritten": crash(4, Point(f"{POOL}._compact", half="*/replay/shard-0000.0001")),
    "pool-state-taken": crash(8, Point(f"{POOL}.state_dict", 5)),
    "old-pool-file-deleted": crash(8, Point("pathlib.Path.unlink", about=r"/shard-0000\.0000$")),
    "loop-state-half-written": crash(
        4, Point("torch.save", about=r"\.step-00000006\.part/loop\.pt$", half="*/.step-*.part/loop.pt")
    ),
    "marker-not-written": crash(6, Point("pathlib.Path.write_text", 4, before=True, about="/COMPLETE$")),
    "marker-written-not-renamed": crash(4, Point(RENAME, before=True, about=r"\.step-00000006\.part$")),
    "renamed-older-ones-not-pruned": crash(8, Point(RENAME, about=r"\.step-00000008\.part$")),
    # The first deletion of that name makes room for the checkpoint, the second prunes it.
    "older-one-half-pruned": crash(
        6, Point(DELETE, 2, before=True, about="/step-00000002$", half="*/step-00000002")
    ),
    # After it: each save waits twice for the one before it.
    "right-after-the-first-save": crash(2, Point(f"{CHECKPOINTS}.wait", 3)),
    "right-after-the-last-save": crash(10, Point(f"{CHECKPOINTS}.wait", 11)),
    "while-the-thread-writes": crash(6, Point(f"{CHECKPOINTS}.save", 3)),
    # On the way back.
    "again-when-the-log-is-cut": crash(6, Point(LOG, 7, before=True), Point("sams.tracking.log._open_log")),
    "again-in-the-save-that-failed": crash(
        4, Point(RENAME, before=True, about=r"\.step-00000006\.part$"), Point("torch.save", about="loop.pt$")
    ),
    # In the publishing of the result.
    "results-half-copied": crash(10, Point("shutil.copyfile", about=r"/train\.jsonl$")),
    "metrics-not-written": crash(
        10, Point("sams.training.job.write_json", before=True, about=r"/train_metrics\.json$")
    ),
    "metrics-written": crash(10, Point("sams.training.job.write_json", about=r"/train_metrics\.json$")),
    "checkpoints-half-removed": crash(0, Point(DELETE, before=True, about="/checkpoints/[^/]+$", half="*")),
}
POLICY_TRAINED = {
    "before-the-policy's-step": crash(4, Point(ADAMW, 6, before=True)),
    "after-the-policy's-step": crash(6, Point(ADAMW, 7)),
    "shards-written": crash(2, Point(SHARDS, 2)),
    "shard-half-written": crash(4, Point(SHARDS, 3, half="*/.step-*.part/*.distcp")),
    "result-written-not-sealed": crash(10, Point(SEAL, before=True)),
    "result-sealed-not-renamed": crash(10, Point(RENAME, before=True, about=r"/\.trained\.part$")),
    "result-renamed": crash(10, Point(RENAME, about=r"/\.trained\.part$")),
}
WATCHED = {
    "scheduler-written-not-renamed": crash(10, Point(RENAME, before=True, about=r"/\.weights\.part-\d+$")),
    "scheduler-renamed": crash(10, Point(RENAME, about=r"/\.weights\.part-\d+$")),
}
CRASHES: dict[str, dict[str, Crash]] = {
    # Four micro-batches in a step of SFT, two in one of preference optimisation with half of the pairs.
    "sft": EVERYWHERE | POLICY_TRAINED | WATCHED | {"gradient-half-done": crash(4, Point(BACKWARD, 22))},
    "pretrain_scheduler": EVERYWHERE | WATCHED,
    "preference": EVERYWHERE | POLICY_TRAINED | {"gradient-half-done": crash(4, Point(BACKWARD, 11))},
}


class Whole:
    """Uninterrupted runs of the stages, each on the results of those before it, in one folder."""

    def __init__(self, folder: Path, tokens: Path) -> None:
        self.folder = folder
        self.recipes: dict[str, Settings] = {
            "sft": SftRecipe.model_validate(
                {
                    "seed": 0,
                    "model": MODEL,
                    "training": Sft.model_validate(COURSE),
                    "watching": {"scheduler": SCHEDULER, "ratio": 0.5},
                }
            ),
            "export": ExportRecipe(model=MODEL),
            "reference": ReferenceRecipe(model=MODEL, micro_batch_size=16),
            "pretrain_scheduler": PretrainRecipe(
                seed=0, model=MODEL, scheduler=SCHEDULER, training=Pretrain.model_validate(COURSE)
            ),
            "preference": PreferenceRecipe(
                seed=0,
                method="test",
                model=MODEL,
                scheduler=SCHEDULER,
                training=Preference.model_validate(COURSE | {"selector": "sams", "ratio": 0.5}),
            ),
        }
        model = {"tokens": tokens, "model": folder / "export"}
        self.inputs: dict[str, dict[str, Path]] = {
            "sft": {"tokens": tokens},
            "export": {"tokens": tokens, "trained": folder / "sft/trained"},
            "reference": model,
            "pretrain_scheduler": model,
            "preference": model
            | {"reference": folder / "reference", "scheduler": folder / "pretrain_scheduler/weights"},
        }
        for stage in self.recipes:
            assert self.start(stage, folder) == 0, self.log()

    def start(self, stage: str, folder: Path, point: Point | None = None, seed: int = 0) -> int:
        """Run a stage until it ends or is killed; its results go to `folder`/`stage`."""
        paths = self.inputs[stage] | {"out": folder / stage}
        if stage in CRASHES:
            paths["checkpoints"] = folder / "checkpoints"
        if stage == "sft":
            paths["scheduler"] = folder / "sft/weights"
        recipe = self.recipes[stage].model_dump(mode="json")
        if "seed" in recipe:
            recipe["seed"] = seed
        arguments = {"recipe": json.dumps(recipe), **paths}
        [status] = server().start(f"sams.training.{stage}", arguments, point=point)
        return status

    def log(self) -> str:
        """What the last run printed."""
        return server().output()[-4000:]


@pytest.fixture(scope="module")
def whole(tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    return Whole(tmp_path_factory.mktemp("whole"), tokens)


@pytest.mark.parametrize(("stage", "name"), [(stage, name) for stage in CRASHES for name in CRASHES[stage]])
def test_a_killed_run_ends_bitwise_where_an_undisturbed_run_ends(
    stage: str, name: str, whole: Whole, tmp_path: Path
) -> None:
    for point in CRASHES[stage][name].points:
        assert whole.start(stage, tmp_path, point) == -9, whole.log()
    goes_on(stage, whole, tmp_path, saved=CRASHES[stage][name].saved)


def test_checkpoints_half_deleted_for_other_settings_are_not_resumed(whole: Whole, tmp_path: Path) -> None:
    assert whole.start("preference", tmp_path, Point(f"{CHECKPOINTS}.wait", 5)) == -9
    deletion = Point(DELETE, before=True, about="/checkpoints/[^/]+$", half="*")
    assert whole.start("preference", tmp_path, deletion, seed=1) == -9
    goes_on("preference", whole, tmp_path, saved=0)


def goes_on(stage: str, whole: Whole, folder: Path, *, saved: int) -> None:
    """Check that the same command resumes from its last complete checkpoint and ends like the uninterrupted run."""
    before = steps_taken(folder)
    complete = [int(path.parent.name.split("-")[1]) for path in folder.glob("checkpoints/*/step-*/COMPLETE")]
    last = max(complete, default=0)
    assert last in (saved, max(0, saved - 2))
    assert whole.start(stage, folder) == 0, whole.log()
    out, theirs = folder / stage, whole.folder / stage
    taken = [json.loads(line)["step"] for line in (out / "costs.jsonl").read_text().splitlines()]
    assert taken[before:] == list(range(last + 1, STEPS + 1))
    assert visible(out) == visible(theirs)
    assert not any((folder / "checkpoints").iterdir())
    assert (out / "train.jsonl").read_bytes() == (theirs / "train.jsonl").read_bytes()
    assert metrics(out) == metrics(theirs)
    if stage == "preference":
        assert (out / "pairs.parquet").read_bytes() == (theirs / "pairs.parquet").read_bytes()
    mine, expected = weights(out), weights(theirs)
    assert mine.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(mine[name], value), name


def steps_taken(folder: Path) -> int:
    """Number of lines in the cost log of a killed run: one for each step, repeated ones included."""
    return sum(len(log.read_text().splitlines()) for log in folder.glob("checkpoints/*/costs.jsonl"))


def visible(folder: Path) -> set[str]:
    """Files of a result, without temporary files of a killed run."""
    paths = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    return {path for path in paths if not path.startswith(".")}


def metrics(out: Path) -> dict[str, Any]:
    found = json.loads((out / "train_metrics.json").read_text())
    return {name: value for name, value in found.items() if name not in PER_START}


def weights(out: Path) -> dict[str, torch.Tensor]:
    """Weights in the results of a stage, of policy and scheduler."""
    found: dict[str, Any] = {}
    if (out / "trained").is_dir():
        shards: dict[str, Any] = FileSystemReader(out / "trained").read_metadata().state_dict_metadata
        found = {name: torch.empty(entry.size) for name, entry in shards.items()}
        dcp.load(found, checkpoint_id=out / "trained")
    if (out / "weights").is_dir():
        for net, state in torch.load(out / "weights/scheduler.pt", weights_only=True).items():
            found |= {f"{net}.{name}": value for name, value in state.items()}
    assert found
    return found
