"""Origin of a result: commit or version of the code, machine, library versions."""

import contextlib
import functools
import hashlib
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sams import __version__
from sams.runtime.source import PACKAGE, SOURCE

LIBRARIES = (
    "torch transformers accelerate peft datasets tokenizers safetensors pyarrow numpy "
    "alpaca-eval fschat openai scikit-learn snakemake mlflow"
).split()
ENVIRONMENT = "environment.json"
"""File next to a result with the `made_on` of its job."""


def commit() -> dict[str, str]:
    """Return the git commit of the source tree and whether files differ from it; else version and digest of the code.

    An installed package may lie in a repository that is not its own, such as that of the user's project.
    """
    if not (SOURCE / ".git").exists():
        return {"version": __version__, "code": _code_digest()}
    try:
        head, status = (
            subprocess.run(
                ["git", *command], cwd=SOURCE, capture_output=True, text=True, check=True, timeout=10
            ).stdout
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.SubprocessError):
        return {"version": __version__, "code": _code_digest()}
    return {"git_commit": head.strip(), "git_dirty": str(bool(status.strip())).lower()}


@functools.cache
def _code_digest() -> str:
    """Return a digest of all modules of the package, twelve hex digits."""
    digest = hashlib.sha256()
    for file in sorted(PACKAGE.rglob("*.py")):
        digest.update(f"{file.relative_to(PACKAGE)}\n".encode() + file.read_bytes())
    return digest.hexdigest()[:12]


def made_on() -> dict[str, Any]:
    """Content of `environment.json`: the environment and the commit."""
    return environment() | {"commit": commit()}


def environment() -> dict[str, Any]:
    """Hardware, driver and library versions of this process, without the names of machine and user."""
    versions = {}
    for library in LIBRARIES:
        try:
            versions[library] = version(library)
        except PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        **_hardware(),
        "libraries": versions,
    }


@functools.cache
def _hardware() -> dict[str, Any]:
    """Processor, memory, GPUs and GPU driver of this machine; the driver is null without GPUs."""
    import psutil

    processor = ""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        processor = next(
            (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), ""
        )
    hardware: dict[str, Any] = {
        "cpu": processor or platform.processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "gpus": [],
        "driver": None,
    }
    try:
        import pynvml
    except ImportError:
        return hardware
    with contextlib.suppress(OSError, pynvml.NVMLError):
        pynvml.nvmlInit()
        hardware["driver"] = pynvml.nvmlSystemGetDriverVersion()
        for number in range(pynvml.nvmlDeviceGetCount()):
            device = pynvml.nvmlDeviceGetHandleByIndex(number)
            memory = round(pynvml.nvmlDeviceGetMemoryInfo(device).total / 2**30)
            hardware["gpus"].append(f"{pynvml.nvmlDeviceGetName(device)}, {memory} GiB")
    return hardware
