"""Two workflows on the same results, two studies at the same time, and a lock whose owner was killed."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from sams.launch.workflow import lock_results
from sams.runtime.errors import UserError
from tests.conftest import ROOT, patience
from tests.faults.study import STUDY, Workflow, all_gone, overlay

HOLDER = """
import sys, time
from pathlib import Path
from sams.launch.workflow import lock_results

lock_results(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


def test_results_are_held_by_one_and_free_at_once_when_it_is_killed(tmp_path: Path) -> None:
    first = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "results/a")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert first.stdout and first.stdout.readline() == "held\n"
    with pytest.raises(UserError) as refused:
        lock_results(tmp_path / "results/a")
    told = str(refused.value)
    assert f"another workflow is running on these results: process {first.pid} on " in told
    assert "wait for it, stop it, or give this study another name" in told and "\n" not in told
    lock_results(tmp_path / "results/b")
    first.kill()
    first.communicate()
    lock_results(tmp_path / "results/a")


@pytest.mark.faults
def test_the_second_workflow_says_so_and_the_first_goes_on(tmp_path: Path) -> None:
    arguments = ("results/faults/world/tokens/manifest.json", "--configfile", overlay(tmp_path))
    first = Workflow(tmp_path, *arguments)
    second = None
    try:
        deadline = time.monotonic() + patience(120)
        while not first.begun():
            assert first.process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        second = Workflow(tmp_path, *arguments)
        assert second.wait(120) == 1
        told = second.output()
        assert f"another workflow is running on these results: process {first.process.pid}" in told
        assert "Traceback" not in told and not second.begun()
        # Looking is allowed.
        looking = Workflow(tmp_path, "-n", *arguments)
        assert looking.wait(120) == 0, looking.output()
        # The first is killed alone: its jobs end with it, and nothing is to be unlocked.
        first.kill(group=False)
        assert not all_gone(first)
        third = Workflow(tmp_path, *arguments)
        assert third.wait(300) == 0, third.output()[-3000:]
    finally:
        for run in (first, second):
            if run is not None:
                run.clear()


@pytest.mark.faults
def test_two_studies_run_side_by_side_in_one_folder(tmp_path: Path) -> None:
    runs = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        file = overlay(tmp_path / name, {**STUDY, "study": name, "tracking": {"enabled": True}})
        runs.append(Workflow(tmp_path, "sft", "--configfile", file))
    try:
        for run in runs:
            assert run.wait(900) == 0, run.output()[-3000:]
        models = [
            tmp_path / f"results/{name}/world/sft/seed0/model/model.safetensors" for name in ("one", "two")
        ]
        assert models[0].read_bytes() == models[1].read_bytes()
        logs = [tmp_path / f"results/{name}/world/sft/seed0/train.jsonl" for name in ("one", "two")]
        assert logs[0].read_text() == logs[1].read_text()
    finally:
        for run in runs:
            run.clear()
