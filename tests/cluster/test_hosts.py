"""One training on two hosts, whose link is cut: it ends on both in bounded time, and continues when the link is back.

The hosts are two network namespaces joined by a virtual cable; each has one process of the job. `make test-hosts`.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from sams.launch.nodes import LEFT_SECONDS
from sams.runtime.files import sha256_of
from sams.study.recipes import Job, SftRecipe
from sams.study.settings import Sft
from tests import tiny
from tests.conftest import ROOT, patience

pytestmark = pytest.mark.cluster

STEPS = 400
RECIPE = SftRecipe(
    seed=0,
    model=tiny.settings(),
    training=Sft.model_validate(
        {
            "batch_size": 16,
            "micro_batch_size": 8,
            "learning_rate": 1e-3,
            "epochs": STEPS // 4,
            "evaluations": 2,
            "checkpoint_every": 20,
        }
    ),
    watching=None,
)
TIMEOUT_SECONDS = 30.0
"""Of a collective call, after which the workers give the link up."""
HOSTS = ("sams-test-0", "sams-test-1")
STARTED: list["subprocess.Popen[bytes]"] = []


def ip(*words: str) -> None:
    """Run `ip`, which must succeed."""
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@pytest.fixture
def hosts() -> Iterator[None]:
    """Two network namespaces, 10.77.0.1 and 10.77.0.2, joined by a cable."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2")
    made = subprocess.run(["ip", "netns", "add", HOSTS[0]], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no network namespaces here: {made.stderr.strip()}")
    try:
        ip("netns", "add", HOSTS[1])
        ip(
            "link",
            "add",
            "sams0",
            "netns",
            HOSTS[0],
            "type",
            "veth",
            "peer",
            "name",
            "sams1",
            "netns",
            HOSTS[1],
        )
        for number, host in enumerate(HOSTS):
            ip("-n", host, "addr", "add", f"10.77.0.{number + 1}/24", "dev", f"sams{number}")
            ip("-n", host, "link", "set", f"sams{number}", "up")
            ip("-n", host, "link", "set", "lo", "up")
        yield
    finally:
        for process in STARTED:
            process.kill()
        for host in HOSTS:
            subprocess.run(["ip", "netns", "delete", host], capture_output=True)


@dataclass
class Node:
    """One host's part of the job."""

    process: "subprocess.Popen[bytes]"
    log: Path
    ended: float = 0.0


def start(folder: Path, tokens: Path, out: str, number: int, *, nodes: int = 2, processes: int = 1) -> Node:
    """Start one node's part of the job, by hand as docs/cluster.md says."""
    launch = {"device": "cpu", "timeout_minutes": TIMEOUT_SECONDS / 60}
    environment = {
        "SAMS_JOB": Job.model_validate({"launch": launch, "tracking": False}).model_dump_json(),
        # A namespace has no name that resolves to its address.
        "GLOO_SOCKET_IFNAME": f"sams{number}",
    }
    place = ["--node-rank", str(number), "--endpoint", "10.77.0.1:29517"]
    log = folder / f"{out}{number}.log"
    with log.open("ab") as stream:
        process = subprocess.Popen(
            [
                *("ip", "netns", "exec", HOSTS[number], sys.executable, "-m", "sams.launch.nodes"),
                *("--nodes", str(nodes), "--processes", str(processes)),
                *([*place, "--local-addr", f"10.77.0.{number + 1}"] if nodes > 1 else []),
                *("-m", "sams.training.sft", "--recipe", RECIPE.model_dump_json(), "--tokens", str(tokens)),
                *("--out", str(folder / out), "--checkpoints", str(folder / f"{out}.checkpoints")),
            ],
            env={**os.environ, **environment},
            cwd=ROOT,
            stdout=stream,
            stderr=stream,
        )
    STARTED.append(process)
    return Node(process, log)


def wait(nodes: list[Node], seconds: float) -> None:
    """Wait until all nodes' parts have ended, and note when each did."""
    end = time.monotonic() + patience(seconds)
    while any(node.ended == 0 for node in nodes):
        if time.monotonic() > end:
            for node in nodes:
                node.process.kill()
            raise AssertionError("\n".join(node.log.read_text()[-3000:] for node in nodes))
        for node in nodes:
            if node.ended == 0 and node.process.poll() is not None:
                node.ended = time.monotonic()
        time.sleep(0.2)


def steps(folder: Path) -> list[int]:
    """Steps of the job's checkpoints."""
    return [int(mark.parent.name.split("-")[1]) for mark in folder.glob("both.checkpoints/*/step-*/COMPLETE")]


def test_a_cut_link_ends_the_job_on_both_hosts_and_it_goes_on_when_it_is_back(
    hosts: None, tokens: Path, tmp_path: Path
) -> None:
    nodes = [start(tmp_path, tokens, "both", number) for number in (0, 1)]
    end = time.monotonic() + patience(600)
    while not any(step >= 40 for step in steps(tmp_path)):
        assert time.monotonic() < end and not any(node.process.poll() for node in nodes), nodes[
            0
        ].log.read_text()
        time.sleep(0.05)
    cut = time.monotonic()
    ip("-n", HOSTS[1], "link", "set", "sams1", "down")
    wait(nodes, TIMEOUT_SECONDS + LEFT_SECONDS + 60)
    seconds = [node.ended - cut for node in nodes]
    print(f"\nended {seconds[0]:.0f} s and {seconds[1]:.0f} s after the cut")
    for node in nodes:
        assert node.process.returncode not in (0, 75)
        assert re.search(
            "waits for the others|nothing has moved|[Tt]imed out|Connection (closed|reset)|do(es)? not answer",
            node.log.read_text(),
        )
    assert max(steps(tmp_path)) < STEPS

    ip("-n", HOSTS[1], "link", "set", "sams1", "up")
    nodes = [start(tmp_path, tokens, "both", number) for number in (0, 1)]
    wait(nodes, 900)
    assert [node.process.returncode for node in nodes] == [0, 0], nodes[0].log.read_text()[-3000:]
    assert "resuming after step" in nodes[0].log.read_text()

    alone = start(tmp_path, tokens, "alone", 0, nodes=1, processes=2)
    wait([alone], 900)
    assert alone.process.returncode == 0, alone.log.read_text()[-3000:]
    assert sha256_of(tmp_path / "both/train.jsonl") == sha256_of(tmp_path / "alone/train.jsonl")
