"""A Slurm installation on this machine from Debian's packages: a controller and two nodes, removed afterwards."""

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from tests.conftest import patience

PACKAGES = ("slurm-wlm", "munge")
HERE = Path(__file__).resolve().parent


def refuse() -> str:
    """Return the reason why Slurm cannot be installed here, or an empty text."""
    if os.geteuid() != 0:
        return "installing Slurm needs root"
    if shutil.which("apt-get") is None:
        return "Slurm is installed with apt-get, which is not here"
    if any(shutil.which(name) for name in ("sbatch", "slurmd", "munged")):
        return "this machine has a Slurm of its own, which the test leaves alone"
    return ""


class Slurm:
    """Debian's Slurm while a test runs. All its files except the packages' are in `state`."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.daemons: list[subprocess.Popen[bytes]] = []
        self.before = installed()

    def install(self) -> None:
        """Install the packages; their daemons are not started."""
        apt = [
            "apt-get",
            "-o",
            "DPkg::Lock::Timeout=120",
            "install",
            "-y",
            "--no-install-recommends",
            *PACKAGES,
        ]
        quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
        done = subprocess.run(apt, env=quiet, capture_output=True, text=True, timeout=patience(300))
        if done.returncode:
            pytest.skip(
                f"apt-get cannot install {' and '.join(PACKAGES)}: {done.stderr.strip().splitlines()[-1]}"
            )

    def start(self) -> None:
        """Start munge, controller and nodes, and wait until they are idle."""
        host = socket.gethostname()
        ports = [free_port() for _ in range(3)]
        conf = (HERE / "slurm.conf").read_text()
        conf = conf.format(
            host=host,
            port=ports[0],
            port1=ports[1],
            port2=ports[2],
            state=self.state,
            cpus=os.cpu_count(),
            memory=psutil.virtual_memory().total // 2**20 - 1000,
        )
        (self.state / "slurm.conf").write_text(conf)
        # Snakemake's plugin takes SLURM_CONF from the jobs that it starts: they look here.
        Path("/etc/slurm").mkdir(exist_ok=True)
        Path("/etc/slurm/slurm.conf").symlink_to(self.state / "slurm.conf")
        (self.state / "save").mkdir()
        key = self.state / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        kinds = {"socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        places = [f"--{option}={self.state}/munge.{ending}" for option, ending in kinds.items()]
        self.daemon("munged", f"--key-file={key}", *places, "--force", "--foreground")
        time.sleep(1)
        self.daemon("slurmctld", "-D")
        for node in ("n1", "n2"):
            self.daemon("slurmd", "-D", "-N", node)
        self.wait("idle", lambda: self.run("sinfo", "--noheader", "--format=%t %D") == "idle 2", 60)

    def daemon(self, *command: str) -> None:
        """Start a daemon in the foreground, in a separate session, without a terminal's signals."""
        with (self.state / f"{command[0]}.{command[-1]}.out").open("wb") as out:
            self.daemons.append(subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True))

    def run(self, *command: str) -> str:
        """Return the output of one of Slurm's commands."""
        done = subprocess.run(command, capture_output=True, text=True, timeout=patience(60))
        return (done.stdout or done.stderr).strip()

    def wait(self, what: str, condition: object, seconds: float) -> None:
        """Wait for a condition."""
        assert callable(condition)
        end = time.monotonic() + patience(seconds)
        while not condition():
            if time.monotonic() > end:
                logs = "".join(file.read_text()[-2000:] for file in sorted(self.state.glob("*.log")))
                raise AssertionError(f"not {what} after {seconds} s\n{self.run('squeue')}\n{logs}")
            time.sleep(0.5)

    def stop(self) -> None:
        """End all jobs and daemons."""
        if self.daemons:
            self.run("scancel", "--user=root")
            time.sleep(2)
        for daemon in reversed(self.daemons):
            daemon.send_signal(signal.SIGTERM)
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def purge(self) -> None:
        """Remove what `install` brought, settings and users included."""
        new = sorted(installed() - self.before)
        if new:
            apt = ["apt-get", "-o", "DPkg::Lock::Timeout=120", "purge", "-y", *new]
            quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
            subprocess.run(apt, env=quiet, capture_output=True, check=True, timeout=patience(300))
        for user in ("munge", "slurm"):
            subprocess.run(["userdel", user], capture_output=True)
        for place in (
            "/etc/slurm",
            "/etc/munge",
            "/var/lib/slurm",
            "/var/lib/munge",
            "/var/log/munge",
            "/run/munge",
        ):
            shutil.rmtree(place, ignore_errors=True)


def installed() -> set[str]:
    """Names of the installed packages; none where there is no dpkg."""
    if shutil.which("dpkg-query") is None:
        return set()
    form = "--showformat=${binary:Package} ${db:Status-Status}\n"
    listed = subprocess.run(["dpkg-query", "--show", form], capture_output=True, text=True, check=True).stdout
    return {line.split()[0] for line in listed.splitlines() if line.endswith((" installed", " config-files"))}


def free_port() -> int:
    """A port that is free now."""
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        return int(asked.getsockname()[1])
