"""A job in which nothing moves ends, and reports the position of each rank."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sams.runtime.watch import EXIT_HUNG
from sams.study.recipes import Job
from tests.conftest import ROOT, patience
from tests.training.test_runs import preference_recipe

# Seconds after which a job counts as hanging: a step takes less, two steps take more.
LIMIT = patience(0.5)
# Two ranks without torch. Rank 1 reads for ever in step 3; rank 0 waits for it.
RANK = """
import sys, time
from pathlib import Path
from sams.runtime.watch import Watch

rank, folder = int(sys.argv[1]), Path(sys.argv[2])
limit = float(sys.argv[3])
watch = Watch(rank, 2, limit=limit)
watch.start(folder)
for watch.step in (1, 2):
    watch.at("reading the batch")
    time.sleep(2 * limit / 3)  # slow, but no hang
watch.step = 3
watch.at("reading the batch")
if rank == 1:
    HANG
with watch.waiting("all_gather"):
    time.sleep(600)
"""


def ranks(folder: Path, hang: str) -> "list[subprocess.Popen[str]]":
    return [
        subprocess.Popen(
            [sys.executable, "-c", RANK.replace("HANG", hang), str(rank), str(folder), str(LIMIT)],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]


@pytest.mark.faults
def test_the_first_rank_to_notice_tells_where_all_are(tmp_path: Path) -> None:
    both = ranks(tmp_path, "time.sleep(600)")
    told = [rank.communicate(timeout=patience(30))[1] for rank in both]
    assert [rank.returncode for rank in both] == [EXIT_HUNG, EXIT_HUNG]
    assert sum(f"error: nothing has moved for {LIMIT / 60:g} min" in text for text in told) == 1
    [error] = [line for text in told for line in text.splitlines() if line.startswith("error: ")]
    assert "rank 0: step 3, reading the batch: waits for the others in all_gather, for " in error
    assert "rank 1: step 3, reading the batch, for " in error
    for number, text in enumerate(told):
        assert f"rank {number}: step 3, reading the batch" in text
        assert 'File "<string>"' in text, "its stack"


@pytest.mark.faults
def test_a_rank_that_is_stopped_or_holds_the_interpreter_is_told_by_the_others(tmp_path: Path) -> None:
    both = ranks(tmp_path, "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)")
    try:
        told = both[0].communicate(timeout=patience(30))[1]
        assert both[0].returncode == EXIT_HUNG
        assert "rank 1: last seen at step " in told and ", does not answer" in told
    finally:
        both[1].kill()
        both[1].communicate()


# A Python that never gives up the interpreter's lock: its threads cannot run.
LOCKED = "import ctypes; ctypes.PyDLL(None).sleep(600)"


def test_a_rank_whose_threads_cannot_run_prints_its_stack_too(tmp_path: Path) -> None:
    both = ranks(tmp_path, LOCKED)
    told = [rank.communicate(timeout=patience(30))[1] for rank in both]
    assert both[0].returncode == EXIT_HUNG and both[1].returncode == 1
    assert "Timeout (0:00:0" in told[1] and 'File "<string>"' in told[1]


HANGING = """
import os, sys, time
from pathlib import Path
from sams.training import preference
from sams.training.passes import Passes

kl, steps = Passes.kl, iter(range(100))

def hang(self, *args):
    if os.environ["RANK"] == "1" and next(steps) == 3:
        Path(os.environ["HUNG_AT"]).write_text(str(time.time()))
        time.sleep(600)
    return kl(self, *args)

Passes.kl = hang
if __name__ == "__main__":
    from sams.runtime.stage import run
    run(preference.main)
"""


@pytest.mark.faults
@pytest.mark.parametrize("hang", ["in Python", "stopped"])
def test_a_training_with_a_rank_that_hangs_ends_and_names_every_rank(
    hang: str, prepared: dict[str, Path], tmp_path: Path
) -> None:
    script = tmp_path / "hanging.py"
    code = HANGING if hang == "in Python" else HANGING.replace("time.sleep(600)", "os.kill(os.getpid(), 19)")
    script.write_text(code)
    minutes = 0.4
    job = Job.model_validate({"launch": {"device": "cpu", "timeout_minutes": minutes}}).model_dump_json()
    paths = {**prepared, "out": tmp_path / "out", "checkpoints": tmp_path / "c"}
    recipe = preference_recipe(max_steps=None, epochs=50)
    done = subprocess.run(
        [
            *(
                sys.executable,
                "-m",
                "sams.launch.torchrun",
                "--standalone",
                "--nproc-per-node",
                "2",
                str(script),
            ),
            *("--recipe", recipe.model_dump_json()),
            *(word for name, path in paths.items() for word in (f"--{name}", str(path))),
        ],
        env={
            **os.environ,
            "SAMS_JOB": job,
            "HUNG_AT": str(tmp_path / "hung"),
            "PYTHONPATH": str(ROOT),
        },
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        timeout=patience(300),
    )
    took = time.time() - float((tmp_path / "hung").read_text())
    assert done.returncode == 1, done.stderr[-4000:]
    [error] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "rank 0: step 4, " in error and "waits for the others in all_reduce" in error
    if hang == "stopped":
        assert "rank 1: last seen at " in error and ", does not answer" in error
    else:
        assert "rank 1: step 4, reading the batch, for " in error
    assert signal.SIGSTOP == 19
    print(f"{hang}: ended {took:.0f} s after the hang began; limit {60 * minutes:.0f} s")
