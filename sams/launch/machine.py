"""How jobs are launched on this machine: processes, GPUs, environment; told without importing torch."""

import os
import subprocess
import sys
from pathlib import Path

from sams.runtime.files import restrict_umask
from sams.runtime.interrupt import WORKFLOW
from sams.study.config import Study
from sams.study.recipes import job_of, recipe_json
from sams.study.settings import Launch

CPU_PROCESSES = 2


def gpus_here() -> int:
    """Number of NVIDIA GPUs that jobs of this process may use."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([device for device in visible.split(",") if device.strip() not in ("", "-1")])
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return 0
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


def processes(launch: Launch, gpus: int) -> int:
    """Processes of one training job: as set, else one per GPU, else two."""
    if launch.nproc_per_node != "auto":
        return launch.nproc_per_node
    return gpus if gpus and launch.device != "cpu" else CPU_PROCESSES


def gpus_wanted(launch: Launch, gpus: int) -> int:
    """GPUs that one training job holds. A number of processes set in the config counts even where there are none,
    so that a dry run shows what the real run will ask for."""
    if launch.device == "cpu" or (launch.nproc_per_node == "auto" and not gpus):
        return 0
    return processes(launch, gpus)


def set_job_environment(study: Study, source: str) -> None:
    """Set what the jobs of a workflow inherit.

    Args:
        study: how its jobs are launched and tracked. That changes no result: as a parameter of the rules it
            would run them again.
        source: folder of the source tree, found by jobs wherever the working directory is.
    """
    restrict_umask()
    # Jobs run with the Python that runs Snakemake, also when its environment is not activated.
    python = str(Path(sys.executable).parent)
    os.environ["PATH"] = os.pathsep.join([python, os.environ.get("PATH", "")])
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))
    os.environ[WORKFLOW] = str(os.getpid())
    os.environ["SAMS_JOB"] = recipe_json(job_of(study))
    os.environ["SAMS_STUDY"] = recipe_json(study)
    # A CPU job takes the cores that its rule asks for, no more.
    os.environ.setdefault("OMP_NUM_THREADS", str(study.launch.threads_per_process))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
