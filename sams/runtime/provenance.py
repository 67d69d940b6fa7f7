"""What a result came from: a digest of the code that computed it, the commit, the machine."""

import ast
import contextlib
import functools
import hashlib
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent

# Rooms whose edits cannot change a result: what they do is in the recipe already, or is only reported.
NOT_HASHED = ("sams.runtime", "sams.study", "sams.tracking")

LIBRARIES = (
    *(
        "torch",
        "transformers",
        "accelerate",
        "peft",
        "datasets",
        "tokenizers",
        "safetensors",
        "pyarrow",
        "numpy",
    ),
    *("alpaca-eval", "fschat", "openai", "scikit-learn", "snakemake", "mlflow"),
)
ENVIRONMENT = "environment.json"
"""File beside a result: `made_on` when it was made."""


def code_digest(module: str) -> str:
    """Twelve hex digits for what a module and the `sams` modules it imports do.

    Comments and layout do not count. `ast.unparse`, unlike `ast.dump`, gives the same text on every Python
    that the project supports.
    """
    digest = hashlib.sha256()
    for name in sorted(imported_modules(module)):
        digest.update(_code(name).text)
    return digest.hexdigest()[:12]


def imported_modules(module: str) -> set[str]:
    """The `sams` modules that a module imports, itself among them, however deep and wherever they are imported."""
    found: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in found or name.startswith(NOT_HASHED):
            continue
        found.add(name)
        waiting += _code(name).imports
    return {name for name in found if name != "sams"}


class _Code(NamedTuple):
    text: bytes
    imports: list[str]


@functools.cache  # the workflow asks for the digests of all rules, which share most modules
def _code(name: str) -> _Code:
    """A module's code without comments and layout, and the `sams` modules that it names."""
    tree = ast.parse(_file(name).read_text(encoding="utf-8"))
    imports: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports += [alias.name for alias in node.names if alias.name.split(".")[0] == "sams"]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "sams":
            base = node.module or ""
            below = [f"{base}.{alias.name}" for alias in node.names]
            imports += [base, *(name for name in below if _exists(name))]
    return _Code(ast.unparse(tree).encode(), imports)


def _path(name: str) -> Path:
    return ROOT.parent.joinpath(*name.split("."))


def _exists(name: str) -> bool:
    return _path(name).with_suffix(".py").is_file() or (_path(name) / "__init__.py").is_file()


def _file(name: str) -> Path:
    package = _path(name) / "__init__.py"
    return package if package.is_file() else _path(name).with_suffix(".py")


def commit() -> dict[str, str]:
    """The git commit of the source tree and whether files differ from it; empty outside a checkout."""
    try:
        head, status = (
            subprocess.run(
                ["git", *command], cwd=ROOT, capture_output=True, text=True, check=True, timeout=10
            ).stdout
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"git_commit": head.strip(), "git_dirty": str(bool(status.strip())).lower()}


def made_on() -> dict[str, Any]:
    """What stands in `environment.json`: the environment and the commit."""
    return environment() | {"commit": commit()}


def environment() -> dict[str, Any]:
    """Hardware, driver and library versions that a result was computed with, but no name of a machine or user."""
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
    """Processor, memory and GPUs of this machine, and the GPUs' driver (null where there are none)."""
    import psutil

    processor = ""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        processor = next(
            (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), ""
        )
    found: dict[str, Any] = {
        "cpu": processor or platform.processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "gpus": [],
        "driver": None,
    }
    try:
        import pynvml

        pynvml.nvmlInit()
        found["driver"] = pynvml.nvmlSystemGetDriverVersion()
        for number in range(pynvml.nvmlDeviceGetCount()):
            device = pynvml.nvmlDeviceGetHandleByIndex(number)
            memory = round(pynvml.nvmlDeviceGetMemoryInfo(device).total / 2**30)
            found["gpus"].append(f"{pynvml.nvmlDeviceGetName(device)}, {memory} GiB")
    except (ImportError, OSError, pynvml.NVMLError):
        pass
    return found
