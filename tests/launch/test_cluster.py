"""Resources of rules, profiles, and the start of a job on several nodes, without a scheduler."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from sams.launch import nodes, resources
from sams.planning.models import sizes_of
from sams.runtime.errors import UserError
from sams.runtime.processes import EXIT_INTERRUPTED, STOP_SIGNALS
from sams.study.architectures import config_of
from sams.study.files import load_study, read_settings
from sams.study.settings import Model
from tests.conftest import ROOT, patience

ASKED = {"gpu", "nodes", "mem_mb", "disk_mb", "runtime"}
SLURM_ENVIRONMENT = ROOT / ".venv-slurm" / "bin" / "snakemake"


def study(**overlay: Any) -> Any:
    """A study of the paper: an 8B model on GPUs."""
    settings = read_settings(
        [ROOT / "config/config.yaml", ROOT / "config/studies/table1_llama3_instruct.yaml"]
    )
    settings["launch"] |= overlay
    return load_study(settings)


def asked(output: str) -> dict[str, list[dict[str, str]]]:
    """Resources of every job of a dry run, by rule."""
    found: dict[str, list[dict[str, str]]] = {}
    rule = ""
    for line in output.splitlines():
        if match := re.match(r"(?:local)?rule (\w+):", line):
            rule = match[1]
        elif match := re.match(r" +resources: (.*)", line):
            found.setdefault(rule, []).append(dict(re.findall(r"(\w+)=([^,]+)", match[1])))
    return found


def dry_run(folder: Path, program: list[str], *arguments: str, status: int = 0) -> str:
    """A dry run of the paper's study in an empty folder."""
    done = subprocess.run(
        [*program, "-n", "--snakefile", str(ROOT / "Snakefile"), "--directory", str(folder), *arguments],
        capture_output=True,
        text=True,
        timeout=patience(120),
    )
    output = done.stdout + done.stderr
    assert done.returncode == status, output[-4000:]
    return output


HERE = [sys.executable, "-m", "snakemake"]
PAPER = ["--configfile", str(ROOT / "config/studies/table1_llama3_instruct.yaml")]


def test_every_rule_says_what_it_needs(tmp_path: Path) -> None:
    profile = ["--cores", "16", "--profile", str(ROOT / "profiles/default")]
    found = asked(dry_run(tmp_path, HERE, *PAPER, *profile))
    assert len(found) > 12
    lacking = {
        rule: ASKED - set(job)
        for rule, jobs in found.items()
        for job in jobs
        if rule != "all" and not set(job) >= ASKED
    }
    assert lacking == {}
    assert all(job["gpu"] == "8" for job in found["train_preference"])
    assert all(job["gpu"] == "1" for job in found["generate_alpaca_eval"])
    assert all(int(job["gpu"]) == 0 for rule in ("tokenise", "export_model") for job in found[rule])


def test_resources_of_several_nodes_are_what_slurms_plugin_needs() -> None:
    made = resources.training(study(nodes=2, gpu_model="h100"), gpus=0)
    plugin = {key: made.get(key) for key in ("nodes", "tasks", "tasks_per_gpu", "mpi", "gres", "gpu")}
    assert plugin == {
        "nodes": 2,
        "tasks": 2,
        "tasks_per_gpu": 0,
        "mpi": "srun",
        "gres": "gpu:h100:8",
        "gpu": None,
    }
    # 8 processes, of which each reads its shard of 8 billion float32 weights.
    assert 30_600 < made["mem_mb"] - 8 * resources.PROCESS_MB < 31_000
    copies = study(gpu_model="h100", strategy="ddp")
    assert 8 * 30_600 < resources.training(copies, gpus=0)["mem_mb"] < 8 * 35_000
    one = resources.training(study(gpu_model="h100"), gpus=0)
    assert (one["gpu"], one["gpu_model"], one["nodes"]) == (8, "h100", 1)
    assert not {"tasks", "mpi", "gres"} & set(one)


@pytest.mark.parametrize("path", ["meta-llama/Meta-Llama-3-8B-Instruct", "EleutherAI/pythia-2.8b"])
def test_weights_are_counted_well_enough_without_torch(path: str) -> None:
    model = Model(path=path)
    assert resources.weights_of(model) == pytest.approx(sizes_of(config_of(model)).total, rel=0.02)


def test_a_batch_that_does_not_divide_among_the_nodes_is_refused() -> None:
    with pytest.raises(UserError, match=r"`launch.nodes` 3 times `launch.nproc_per_node` 8"):
        study(nodes=3)


@pytest.mark.skipif(not SLURM_ENVIRONMENT.is_file(), reason="no .venv-slurm: make env-slurm")
def test_the_slurm_profile_is_read_with_its_plugin(tmp_path: Path) -> None:
    profile = ["--profile", str(ROOT / "profiles/slurm")]
    found = asked(dry_run(tmp_path, [str(SLURM_ENVIRONMENT)], *PAPER, *profile))
    assert all(job["slurm_extra"] == "--signal=TERM@300" for job in found["train_preference"])
    assert all(job["gpu"] == "8" for job in found["train_preference"])
    auto = dry_run(tmp_path, [str(SLURM_ENVIRONMENT)], *profile, status=1)
    assert "launch.nproc_per_node: auto counts the GPUs of this machine" in auto


@pytest.mark.parametrize("name", ["default", "slurm", "kubernetes"])
def test_profiles_are_yaml_with_a_comment_on_what_they_are_for(name: str) -> None:
    text = (ROOT / "profiles" / name / "profile.yaml").read_text()
    assert text.startswith("# ")
    settings = yaml.safe_load(text)
    assert settings.get("executor") == (None if name == "default" else name)


# --- starting and stopping ------------------------------------------------------------------------


def test_several_nodes_without_a_scheduler_need_an_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with pytest.raises(UserError, match=r"launch\.nodes: 2 nodes are set, but this is not a Slurm job"):
        nodes.main(["--nodes", "2", "--processes", "8", "-m", "sams.training.sft"])


def test_only_node_0_keeps_the_rendezvous() -> None:
    first, second = (nodes.rendezvous(2, rank, "n1:29500", f"n{rank + 1}") for rank in (0, 1))
    assert any("is_host=1" in word for word in first)
    assert any("is_host=0" in word for word in second)
    assert "--local-addr=n2" in second


def test_every_node_of_a_slurm_job_gets_one_task() -> None:
    command = nodes.on_all_nodes(2, 8, ["--nodes", "2", "--processes", "8", "-m", "sams.training.sft"])
    assert command[:4] == ["srun", "--nodes=2", "--ntasks=2", "--ntasks-per-node=1"]
    assert "--cpus-per-task=8" in command
    assert command[-4:] == ["--processes", "8", "-m", "sams.training.sft"]


STAND_IN = """
import signal, subprocess, sys, time
from sams.runtime.processes import end_with_parent
# In place of torchrun: starts a worker, and as an agent whose peers are gone never ends by itself.
end_with_parent()
def stop(*_):
    open({log!r}, "a").write("torchrun\\n"); worker.send_signal(signal.SIGTERM)
signal.signal(signal.SIGTERM, stop)
worker = subprocess.Popen([sys.executable, "-c", {worker!r}])
worker.wait()
{then}
"""
WORKER = """
import signal, sys, time
def stop(*_):
    open({log!r}, "a").write("worker\\n"); sys.exit(75)
signal.signal(signal.SIGTERM, stop)
open({log!r}, "a").write("started\\n")
time.sleep({seconds})
"""


def launch(folder: Path, seconds: float, then: str, **patched: float) -> "subprocess.Popen[str]":
    """Watch a stand-in for torchrun in a separate process, which receives the signals."""
    log = str(folder / "log")
    stand_in = STAND_IN.format(log=log, worker=WORKER.format(log=log, seconds=seconds), then=then)
    code = "import sys\nfrom sams.launch import nodes\n"
    code += "".join(f"nodes.{name} = {value}\n" for name, value in patched.items())
    code += f"sys.exit(nodes.watch([sys.executable, '-c', {stand_in!r}], 'here'))"
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE, text=True)


def started(folder: Path) -> None:
    """Wait for the worker."""
    end = time.monotonic() + patience(30)
    while not (folder / "log").is_file():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize("number", STOP_SIGNALS, ids=lambda number: number.name)
def test_a_request_to_stop_is_passed_on_once(number: signal.Signals, tmp_path: Path) -> None:
    watched = launch(tmp_path, 60, "sys.exit(worker.returncode)", POLL_SECONDS=0.2)
    started(tmp_path)
    watched.send_signal(number)
    watched.communicate(timeout=patience(30))
    assert watched.returncode == EXIT_INTERRUPTED
    assert (tmp_path / "log").read_text().split() == ["started", "torchrun", "worker"]


def test_what_does_not_stop_in_time_is_ended(tmp_path: Path) -> None:
    watched = launch(tmp_path, 0.1, "time.sleep(600)", POLL_SECONDS=0.2, STOP_SECONDS=1.0)
    started(tmp_path)
    watched.send_signal(signal.SIGTERM)
    _, told = watched.communicate(timeout=patience(30))
    assert watched.returncode == EXIT_INTERRUPTED
    assert "after the request to stop: killed" in told and "stopped on request" in told


def test_one_process_needs_no_torchrun(tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "SLURM_JOB_ID"}
    command = [
        sys.executable,
        "-m",
        "sams.launch.nodes",
        "--processes",
        "1",
        "-m",
        "json.tool",
        "--help",
    ]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=patience(60)
    )
    assert done.returncode == 0 and "json" in done.stdout


def test_torchrun_that_hangs_after_its_workers_is_ended(tmp_path: Path) -> None:
    watched = launch(tmp_path, 2, "time.sleep(600)", POLL_SECONDS=0.2, LEFT_SECONDS=1.0)
    _, told = watched.communicate(timeout=patience(60))
    assert watched.returncode == 128 + signal.SIGKILL
    assert "another node does not answer" in told


def test_torchrun_ends_with_its_launcher_killed(tmp_path: Path) -> None:
    watched = launch(tmp_path, 5, "time.sleep(600)", POLL_SECONDS=0.2)
    started(tmp_path)
    (child,) = nodes.psutil.Process(watched.pid).children()
    watched.kill()
    assert child.wait(patience(10)) is not None or not child.is_running()


@pytest.mark.parametrize(("state", "requeued"), [("RUNNING", True), ("COMPLETING", False)])
def test_a_cancelled_job_is_not_queued_again(
    state: str, requeued: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stand-ins for Slurm's commands; the real ones are in tests/cluster/test_slurm.py."""
    for name, script in (("squeue", f"echo {state}"), ("scontrol", f"touch {tmp_path}/called")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert nodes.requeue(75) == 75
    assert (tmp_path / "called").is_file() == requeued
    (tmp_path / "called").unlink(missing_ok=True)
    assert nodes.requeue(1) == 1
    assert not (tmp_path / "called").is_file()
