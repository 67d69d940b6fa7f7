"""Start the processes of one training job with torchrun and watch them, on one node or on several.

    python -m sams.launch.nodes --processes 8 -m sams.training.sft --recipe ...         one node
    python -m sams.launch.nodes --nodes 2 --processes 8 -m sams.training.sft ...        in a Slurm job: all its nodes
    python -m sams.launch.nodes --nodes 2 --node-rank 1 --endpoint HOST:PORT ...        by hand, once on each node

A single process on one node is started directly; otherwise `sams.launch.torchrun` starts the processes. This module
adds two things. torchrun is killed if it has not ended a minute after its last worker, as it does not when another
node cannot be reached. A Slurm job that receives a request to stop (SIGTERM before its time limit) is requeued and
resumes from its checkpoint.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

import psutil

from sams.runtime.errors import UserError
from sams.runtime.processes import EXIT_INTERRUPTED, EXIT_USER_ERROR, PARENT, end_with_parent, on_stop

STOP_SECONDS = 290.0
"""Longest wait for workers after a request to stop. profiles/slurm sends SIGTERM 300 s before the time limit."""
CLOSING_SECONDS = 90
"""Longest wait of torchrun for its other workers after one has ended."""
LEFT_SECONDS = 60.0
"""Longest wait for torchrun after its last worker. Without reachable peers torchrun can wait for ever."""
JOIN_SECONDS = 600
"""Longest wait for the other nodes at the start."""
POLL_SECONDS = 2.0

ON_A_NODE = "SAMS_ON_A_NODE"


def main(arguments: Sequence[str]) -> int:
    """Run one job; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m sams.launch.nodes", description="Run torchrun and watch it."
    )
    parser.add_argument("--nodes", type=int, default=1, help="Nodes of the job.")
    parser.add_argument("--processes", type=int, required=True, help="Processes on each node.")
    parser.add_argument("--cpus", type=int, help="CPUs of each node that Slurm has allocated.")
    parser.add_argument("--node-rank", type=int, help="Rank of this node; read from Slurm in a Slurm job.")
    parser.add_argument("--endpoint", help="HOST:PORT of node 0; read from Slurm in a Slurm job.")
    parser.add_argument("--local-addr", help="Address of this node for the other nodes.")
    parser.add_argument(
        "-m", dest="module", nargs=argparse.REMAINDER, required=True, help="Module and its arguments."
    )
    options = parser.parse_args(arguments)

    in_slurm = "SLURM_JOB_ID" in os.environ
    if options.nodes == options.processes == 1 and not in_slurm:
        # Without torchrun, which would take as long to start as the worker.
        os.execv(sys.executable, [sys.executable, "-m", *options.module])
    end_with_parent()
    if options.nodes > 1 and options.endpoint is None:
        if not in_slurm:
            raise UserError(
                f"{options.nodes} nodes are set, but this is not a Slurm job",
                where="launch.nodes",
                remedy="run with --profile profiles/slurm, or start each node with --endpoint and --node-rank",
            )
        if ON_A_NODE not in os.environ:
            command = on_all_nodes(options.nodes, options.cpus, arguments)
            step = subprocess.Popen(command)
            on_stop(lambda *_: step.send_signal(signal.SIGTERM))  # srun sends it to all nodes
            return requeue(step.wait())
        options.node_rank, options.endpoint, options.local_addr = slurm_position()
    status = watch(
        [
            *(sys.executable, "-m", "sams.launch.torchrun", f"--nproc-per-node={options.processes}"),
            *rendezvous(options.nodes, options.node_rank, options.endpoint, options.local_addr),
            *("-m", *options.module),
        ],
        f"node {options.node_rank} of {options.nodes}, rendezvous at {options.endpoint}"
        if options.nodes > 1
        else "one node",
    )
    return status if ON_A_NODE in os.environ else requeue(status)


def rendezvous(nodes: int, rank: int | None, endpoint: str | None, address: str | None) -> list[str]:
    """Rendezvous options of torchrun. Node 0 hosts the store; torchrun would otherwise guess by host names."""
    if nodes == 1:
        return ["--standalone"]
    if rank is None:
        raise UserError("no rank of this node", where="--node-rank", remedy=f"pass 0 to {nodes - 1}")
    job = os.environ.get("SLURM_JOB_ID", "sams")
    return [
        f"--nnodes={nodes}",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint={endpoint}",
        f"--rdzv-id={job}.{os.environ.get('SLURM_RESTART_COUNT', '0')}",
        f"--rdzv-conf=is_host={int(rank == 0)},join_timeout={JOIN_SECONDS}",
        f"--node-rank={rank}",
        *([f"--local-addr={address}"] if address else []),
    ]


def on_all_nodes(nodes: int, cpus: int | None, arguments: Sequence[str]) -> list[str]:
    """Return the command that runs this module once on each node of the Slurm job."""
    return [
        *("srun", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", "--cpu-bind=none"),
        *([f"--cpus-per-task={cpus}"] if cpus else []),
        f"--wait={int(2 * LEFT_SECONDS)}",  # after one node has ended, srun kills the others
        f"--export=ALL,{ON_A_NODE}=1,{PARENT}=",  # process ids of this machine are invalid on the others
        *(sys.executable, "-m", "sams.launch.nodes", *arguments),
    ]


def slurm_position() -> tuple[int, str, str]:
    """Return the rank of this node in its Slurm job, the endpoint of node 0, and the address of this node."""
    names = subprocess.run(
        ["scontrol", "show", "hostnames", os.environ["SLURM_STEP_NODELIST"]],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    rank = int(os.environ["SLURM_NODEID"])
    addresses = [address_of(name) for name in names]
    port = 20000 + int(os.environ["SLURM_JOB_ID"]) % 20000  # jobs that share a node use different ports
    return rank, f"{addresses[0]}:{port}", addresses[rank]


def address_of(node: str) -> str:
    """Return the address of a node, which may differ from its name."""
    shown = subprocess.run(
        ["scontrol", "show", "node", node], capture_output=True, text=True, check=True
    ).stdout
    return next(word.partition("=")[2] for word in shown.split() if word.startswith("NodeAddr="))


def watch(command: Sequence[str], where: str) -> int:
    """Run `sams.launch.torchrun` and return its exit status.

    torchrun is killed if it has not ended `STOP_SECONDS` after a request to stop or `LEFT_SECONDS` after its last
    worker.
    """
    requested: list[float] = []
    on_stop(lambda *_: requested.append(time.monotonic()))
    # torchrun ends the other workers when one has ended with 75; its 30 s are too short for a large checkpoint.
    environment = {
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(CLOSING_SECONDS),
        **os.environ,
        PARENT: str(os.getpid()),
    }
    torchrun = subprocess.Popen(command, env=environment)
    passed_on = False
    seen_workers = False
    left = None
    while True:
        try:
            status = torchrun.wait(POLL_SECONDS)
            break
        except subprocess.TimeoutExpired:
            pass
        workers = workers_of(torchrun.pid)
        now = time.monotonic()
        seen_workers |= bool(workers)
        left = None if workers or not seen_workers else left or now
        if requested and not passed_on:
            passed_on = True
            torchrun.send_signal(signal.SIGTERM)
        if requested and now - requested[0] > STOP_SECONDS:
            say(f"{where}: still running {STOP_SECONDS:.0f} s after the request to stop: killed")
            torchrun.kill()
        elif left is not None and now - left > LEFT_SECONDS:
            say(
                f"{where}: torchrun is still running {LEFT_SECONDS:.0f} s after its last worker, because another "
                "node does not answer: killed. The same command resumes from the last checkpoint"
            )
            torchrun.kill()
    if requested and status < 0:  # torchrun had no handler yet, or was killed above
        say(f"{where}: stopped on request; run the same command to resume")
        return EXIT_INTERRUPTED
    return status if status >= 0 else 128 - status


def workers_of(torchrun: int) -> list[psutil.Process]:
    """Return the running workers of torchrun."""
    try:
        children = psutil.Process(torchrun).children()
        return [process for process in children if process.status() != psutil.STATUS_ZOMBIE]
    except psutil.NoSuchProcess:
        return []


def requeue(status: int) -> int:
    """Requeue the Slurm job if it was interrupted, and return the exit status."""
    job = os.environ.get("SLURM_JOB_ID")
    if status == EXIT_INTERRUPTED and job is not None:
        state = subprocess.run(
            ["squeue", "--noheader", "--format=%T", f"--jobs={job}"], capture_output=True, text=True
        )
        # A cancelled job stays cancelled, and Slurm requeues a pre-empted job itself.
        if state.stdout.strip() == "RUNNING":
            result = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True)
            say(f"Slurm job {job}: {result.stderr.strip() or 'requeued'}")
    return status


def say(message: str) -> None:
    """Print a line to the log of the job."""
    print(f"sams.launch.nodes: {message}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
