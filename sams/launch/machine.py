"""Launch settings of jobs on this machine: GPUs, processes, environment. Imports no torch."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

from sams.runtime.processes import PARENT
from sams.runtime.source import IS_CHECKOUT, SOURCE
from sams.study.recipes import job_of, recipe_json
from sams.study.settings import Launch
from sams.study.study import Study

CPU_PROCESSES = 2


def gpus_here() -> int:
    """Return the number of NVIDIA GPUs that this process may use."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([device for device in visible.split(",") if device.strip() not in ("", "-1")])
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return 0
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


def processes(launch: Launch, gpus: int) -> int:
    """Return the number of processes of a training job: as set in the config, else one per GPU, else two."""
    if launch.nproc_per_node != "auto":
        return launch.nproc_per_node
    return gpus if gpus and launch.device != "cpu" else CPU_PROCESSES


def gpus_wanted(launch: Launch, gpus: int) -> int:
    """Return the number of GPUs of a training job.

    If the config sets a number of processes, it is that number also on a machine without GPUs, so that a dry run
    shows what the real run requests.
    """
    if launch.device == "cpu" or (launch.nproc_per_node == "auto" and not gpus):
        return 0
    return processes(launch, gpus)


def job_environment(study: Study) -> str:
    """Return shell commands that precede those of every job: strict mode, file permissions, environment variables.

    Launch and tracking settings reach the jobs as a variable, SAMS_JOB: they change no result, but as
    parameters of the rules they would run jobs again.
    """
    # Jobs run with the Python that runs Snakemake, also when its environment is not activated.
    python = shlex.quote(str(Path(sys.executable).parent))
    variables = {
        "PATH": f"{python}:$PATH",
        "HF_HUB_DISABLE_PROGRESS_BARS": "${HF_HUB_DISABLE_PROGRESS_BARS:-1}",
        "TOKENIZERS_PARALLELISM": "${TOKENIZERS_PARALLELISM:-false}",
        PARENT: str(os.getpid()),
        "SAMS_JOB": shlex.quote(recipe_json(job_of(study))),
    }
    if IS_CHECKOUT:  # which need not be installed
        variables["PYTHONPATH"] = f"{shlex.quote(str(SOURCE))}${{PYTHONPATH:+:$PYTHONPATH}}"
    exports = " ".join(f"{name}={value}" for name, value in variables.items())
    # As `restrict_umask` does: write permission for owner and group alone.
    return f"set -euo pipefail; umask o-w; export {exports}; "
