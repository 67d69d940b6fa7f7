"""Write the lock (`make lock`): uv.lock from pyproject.toml, and the exports that are installed.

    envs/lock/cuda.txt   every package with its hashes; torch and NVIDIA's libraries from PyPI
    envs/lock/cpu.txt    the same versions without packages for CUDA; torch's CPU build
    envs/lock/slurm.txt  Snakemake's Slurm plugin and the packages that it adds to either
    envs/sams.yaml       the conda environment of the rules

Versions stay unless pyproject.toml changes; `make lock LOCK=--upgrade` takes the newest compatible ones.
"""

import hashlib
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ENVS = Path(__file__).resolve().parent
CUDA, CPU, CONDA = ENVS / "lock" / "cuda.txt", ENVS / "lock" / "cpu.txt", ENVS / "sams.yaml"
SLURM = ENVS / "lock" / "slurm.txt"
UV = Path(sys.executable).parent / "uv"
INSTALLED = "--extra=all"

CUDA_HEADER = """\
# Written by `make lock`: uv.lock as pip and uv install it. torch is PyPI's build, which is for CUDA.
"""
CPU_HEADER = """\
# Written by `make lock`: cuda.txt without what only CUDA needs, and with torch's CPU build.
# Its hash is that of the wheel for CPython 3.11 on x86_64; hashes of other CPU wheels can be added and stay.
"""
SLURM_HEADER = """\
# Written by `make lock`: what pyproject.toml's extra `slurm` adds to cpu.txt or cuda.txt (`make env-slurm`).
"""
CONDA_HEADER = """\
# Written by `make lock`: the conda environment of the rules (`snakemake --sdm conda`), pinned as uv.lock is.
# All from PyPI, as there. sams itself is not in it: the workflow puts its own folder on the path.
channels:
  - conda-forge
  - nodefaults
dependencies:
  - python=3.11
  - pip
  - pip:
"""


def main() -> None:
    uv("lock", "--default-index", "https://pypi.org/simple", *sys.argv[1:])
    CUDA.write_text(CUDA_HEADER + export(INSTALLED))

    # Packages that only torch for CUDA requires.
    packages = tomllib.loads((ENVS.parent / "uv.lock").read_text())["package"]
    torch = next(package for package in packages if package["name"] == "torch")
    names = [dependency["name"] for dependency in torch["dependencies"]]
    without_cuda = [f"--prune={name}" for name in names if re.match("nvidia-|cuda-|triton$", name)]
    cpu = re.sub(r"(?m)^torch==(\S+)(.*\n)(?: +--hash.*\n)+", cpu_torch, export(INSTALLED, *without_cuda))
    CPU.write_text(CPU_HEADER + cpu)

    added = re.findall(r"(?m)^\S+==.*\n(?: +--hash.*\n)+", export(INSTALLED, "--extra=slurm"))
    SLURM.write_text(SLURM_HEADER + "".join(package for package in added if package not in CUDA.read_text()))

    # torch stays 2.13.0 here for both builds; each lists its own CUDA requirements.
    of_rules = ["--no-dev", "--extra=workflow", "--extra=score", "--extra=gpu"]
    pins = re.findall(r"(?m)^\S+==\S+", export(*of_rules, "--no-hashes", *without_cuda))
    CONDA.write_text(CONDA_HEADER + "".join(f"      - {pin}\n" for pin in pins))


def uv(*arguments: str) -> str:
    done = subprocess.run([UV, *arguments], cwd=ENVS.parent, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.returncode)  # uv has printed the reason
    return done.stdout


def export(*options: str) -> str:
    return uv("export", "--frozen", "--quiet", "--no-emit-project", "--no-header", "--no-annotate", *options)


def cpu_torch(cuda: re.Match) -> str:
    """Return torch's lines for its CPU build, with the hashes of the wheel on pip's find-links and of cpu.txt."""
    version = cuda[1] + "+cpu"
    old = CPU.read_text() if CPU.exists() else ""
    lines = re.findall(rf"(?m)^torch=={re.escape(version)} .*\n((?: +--hash.*\n)+)", old)
    hashes = set(re.findall(r"sha256:\w+", "".join(lines)))
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "--no-index", "--no-deps", "--dest", folder]
        subprocess.run([*pip, f"torch=={version}"], capture_output=True)
        wheels = Path(folder).glob("*.whl")
        hashes |= {f"sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}" for wheel in wheels}
    if not hashes:
        sys.exit(f"make lock: torch {version} is not on pip's find-links: set PIP_FIND_LINKS to its folder")
    listed = " \\\n".join(f"    --hash={value}" for value in sorted(hashes))
    return f"torch=={version}{cuda[2]}{listed}\n"


if __name__ == "__main__":
    main()
