"""Starts the processes of one training job with torchrun and watches them, on one node or on several.

    python -m sams.launch.nodes --processes 8 -m sams.training.sft --recipe ...         one node
    python -m sams.launch.nodes --nodes 2 --processes 8 -m sams.training.sft ...        in a Slurm job: all its nodes
    python -m sams.launch.nodes --nodes 2 --node-rank 1 --endpoint HOST:PORT ...        by hand, once on each node

One process on one node is started as it is; otherwise `sams.launch.torchrun` starts them. Two things are added. It
does not hang when another node is gone: once its workers have ended it has a minute to follow. And a Slurm job that
is told to stop (SIGTERM before its time limit) is queued again, so that it goes on from its checkpoint.
"""

import argparse
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

import psutil

from sams.runtime.errors import UserError
from sams.runtime.interrupt import EXIT_INTERRUPTED, STOP_SIGNALS, WORKFLOW, end_with_workflow

STOP_SECONDS = 290.0
"""Longest wait for workers told to stop. profiles/slurm has SIGTERM sent 300 s before a job's time is up."""
CLOSING_SECONDS = 90
"""Longest wait of torchrun for its other workers once one has ended."""
LEFT_SECONDS = 60.0
"""Longest wait for torchrun after its last worker. One whose peers cannot be reached was seen to wait for ever."""
JOIN_SECONDS = 600
"""Longest wait for the other nodes at the start."""
LOOK_EVERY = 2.0

ON_A_NODE = "SAMS_ON_A_NODE"
EXIT_USER_ERROR = 2


def main(arguments: Sequence[str]) -> int:
    """Run one job; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m sams.launch.nodes", description="torchrun, watched")
    parser.add_argument("--nodes", type=int, default=1, help="nodes of the job")
    parser.add_argument("--processes", type=int, required=True, help="processes on each node")
    parser.add_argument("--cpus", type=int, help="CPUs of each node that Slurm has given to the job")
    parser.add_argument("--node-rank", type=int, help="this node's number; Slurm says it itself")
    parser.add_argument("--endpoint", help="HOST:PORT of node 0; Slurm says it itself")
    parser.add_argument("--local-addr", help="this node's address, as the others reach it")
    parser.add_argument(
        "-m", dest="module", nargs=argparse.REMAINDER, required=True, help="module, arguments"
    )
    options = parser.parse_args(arguments)

    in_slurm = "SLURM_JOB_ID" in os.environ
    if options.nodes == options.processes == 1 and not in_slurm:
        # No torchrun, whose own start would cost as much as the worker's.
        os.execv(sys.executable, [sys.executable, "-m", *options.module])
    end_with_workflow()
    if options.nodes > 1 and options.endpoint is None:
        if not in_slurm:
            raise UserError(
                f"{options.nodes} nodes, but this is no Slurm job",
                where="launch.nodes",
                remedy="run with --profile profiles/slurm, or start each node with --endpoint and --node-rank",
            )
        if ON_A_NODE not in os.environ:
            command = on_all_nodes(options.nodes, options.cpus, arguments)
            step = subprocess.Popen(command)
            for number in STOP_SIGNALS:  # srun passes it on to the nodes; what they say decides here
                signal.signal(number, lambda _number, _frame: step.send_signal(signal.SIGTERM))
            return ended(step.wait())
        options.node_rank, options.endpoint, options.local_addr = place_in_job()
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
    return status if ON_A_NODE in os.environ else ended(status)


def rendezvous(nodes: int, rank: int | None, endpoint: str | None, address: str | None) -> list[str]:
    """torchrun's options for how the nodes meet. Node 0 keeps the store; it is not guessed from its name."""
    if nodes == 1:
        return ["--standalone"]
    if rank is None:
        raise UserError("which of the nodes is this?", where="--node-rank", remedy=f"give 0 to {nodes - 1}")
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
    """This very command as one task on each node of the Slurm job."""
    return [
        *("srun", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", "--cpu-bind=none"),
        *([f"--cpus-per-task={cpus}"] if cpus else []),
        f"--wait={int(2 * LEFT_SECONDS)}",  # one node has ended: the others follow, or are ended
        f"--export=ALL,{ON_A_NODE}=1,{WORKFLOW}=",  # a process of this machine says nothing on the others
        *(sys.executable, "-m", "sams.launch.nodes", *arguments),
    ]


def place_in_job() -> tuple[int, str, str]:
    """Rank of this node in its Slurm job, the endpoint that node 0 opens, and this node's address."""
    names = subprocess.run(
        ["scontrol", "show", "hostnames", os.environ["SLURM_STEP_NODELIST"]],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    rank = int(os.environ["SLURM_NODEID"])
    addresses = [address_of(name) for name in names]
    port = 20000 + int(os.environ["SLURM_JOB_ID"]) % 20000  # jobs that share a node do not meet
    return rank, f"{addresses[0]}:{port}", addresses[rank]


def address_of(node: str) -> str:
    """Address of a node, which need not be its name."""
    told = subprocess.run(
        ["scontrol", "show", "node", node], capture_output=True, text=True, check=True
    ).stdout
    return next(word.partition("=")[2] for word in told.split() if word.startswith("NodeAddr="))


def watch(command: Sequence[str], where: str) -> int:
    """Run `sams.launch.torchrun` to its end, which comes in bounded time after a request to stop or its last worker.

    Returns:
        Its exit status.
    """
    told: list[float] = []
    for number in STOP_SIGNALS:
        signal.signal(number, lambda _number, _frame: told.append(time.monotonic()))
    # torchrun ends the others when one worker has ended with 75: those that still write get longer than its 30 s.
    environment = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(CLOSING_SECONDS), **os.environ}
    torchrun = subprocess.Popen(command, env=environment, preexec_fn=end_with_parent)
    asked = False
    seen_workers = False
    left = None
    while True:
        try:
            status = torchrun.wait(LOOK_EVERY)
            break
        except subprocess.TimeoutExpired:
            pass
        workers = workers_of(torchrun.pid)
        now = time.monotonic()
        seen_workers |= bool(workers)
        left = None if workers or not seen_workers else left or now
        if told and not asked:
            asked = True
            torchrun.send_signal(signal.SIGTERM)
        if told and now - told[0] > STOP_SECONDS:
            say(f"{where}: told to stop {STOP_SECONDS:.0f} s ago, and still there: killed")
            torchrun.kill()
        elif left is not None and now - left > LEFT_SECONDS:
            say(
                f"{where}: the workers ended {LEFT_SECONDS:.0f} s ago, and torchrun waits for a node that does not "
                "answer: killed. The same command goes on from the last checkpoint"
            )
            torchrun.kill()
    if told and status < 0:  # it had not begun, or was killed above
        say(f"{where}: stopped as told; the same command goes on")
        return EXIT_INTERRUPTED
    return status if status >= 0 else 128 - status


def end_with_parent() -> None:
    """Let the kernel end torchrun when this process ends, however it ends; its workers end with it."""
    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def workers_of(torchrun: int) -> list[psutil.Process]:
    """torchrun's living workers."""
    try:
        found = psutil.Process(torchrun).children()
        return [process for process in found if process.status() != psutil.STATUS_ZOMBIE]
    except psutil.NoSuchProcess:
        return []


def ended(status: int) -> int:
    """Pass the exit status of a job on; one that was told to stop is queued again where that is Slurm's to do."""
    job = os.environ.get("SLURM_JOB_ID")
    if status == EXIT_INTERRUPTED and job is not None:
        state = subprocess.run(
            ["squeue", "--noheader", "--format=%T", f"--jobs={job}"], capture_output=True, text=True
        )
        # A job that is being cancelled stays so; one that is pre-empted is queued again by Slurm itself.
        if state.stdout.strip() == "RUNNING":
            asked = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True)
            say(f"Slurm job {job}: {asked.stderr.strip() or 'queued again'}")
    return status


def say(message: str) -> None:
    """A line in the job's log."""
    print(f"sams.launch.nodes: {message}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
