"""Install the lock into .venv unless it is up to date (`make env`).

With --slurm: .venv-slurm, a separate environment with Snakemake's Slurm plugin (`make env-slurm`).

Standard library only, in a syntax that older Pythons can read: they get a message, not a SyntaxError.
"""

import argparse
import ast
import hashlib
import json
import os
import re
import shutil
import ssl
import subprocess
import sys
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOR_SLURM = "--slurm" in sys.argv
VENV = ROOT / (".venv-slurm" if FOR_SLURM else ".venv")
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "sams.json"  # written last: a .venv without it is incomplete
# Environment variable with an index of torch's CPU builds instead of PyTorch's own, such as a mirror of it.
TORCH_INDEX = "SAMS_TORCH_INDEX"
PYTORCH = "https://download.pytorch.org/whl/cpu"
# Sizes of the locked wheels for x86_64 and Python 3.11, and of the environment after its installation.
SIZES = {"cpu": "0.6 GB to download, 2.3 GB on disk", "cuda": "3.1 GB to download, 7 GB on disk"}


def main():
    parser = argparse.ArgumentParser(description="Install the lock into .venv unless it is up to date.")
    parser.add_argument("--torch", choices=["cpu", "cuda"], help="the export to install; see choose()")
    parser.add_argument("--slurm", action="store_true", help="make .venv-slurm, with the plugin for Slurm")
    torch = parser.parse_args().torch
    check_machine()

    made = json.loads(STAMP.read_text()) if STAMP.exists() and PYTHON.exists() else {}
    known = torch or made.get("torch")
    if known and made == stamp(known):
        say(f"{VENV.name} is up to date (torch: {known})")
        return

    create()
    bootstrap = pip_install_locked("setuptools")  # it builds the project and the one package without a wheel
    if bootstrap.returncode:
        fail(
            f"pip cannot fetch setuptools ({bootstrap.stderr.strip().splitlines()[-1]}): "
            "check the network, or give pip an index it can reach: pip config set global.index-url URL"
        )
    torch, why = (torch, "as requested") if torch else choose()
    say(f"installing {export(torch).relative_to(ROOT)}: {why}")
    say(f"{SIZES[torch]}; one to five minutes, as fast as the network")
    install(torch)
    STAMP.write_text(json.dumps(stamp(torch)))
    say(f"{VENV.name} is ready (torch: {torch})")


def say(message):
    print("make env:", message, flush=True)


def fail(message):
    sys.exit(f"make env: {message}")


def check_machine():
    """Refuse a Python or a system that the lock does not support."""
    found = ".".join(map(str, sys.version_info[:3]))
    if not (3, 11) <= sys.version_info[:2] < (3, 13):
        fail(
            f"found Python {found} ({sys.executable}), needed 3.11 or 3.12: "
            "install one of them, or name it: make env PYTHON=/path/to/python3.11"
        )
    if sys.platform != "linux":
        fail(f"found {sys.platform}, needed Linux, which the lock is for: use a Linux machine or container")


def export(torch):
    """Return the file of the locked packages with torch for `cpu` or `cuda`."""
    return ROOT / "envs" / "lock" / f"{torch}.txt"


def exports(torch):
    """Return all files of locked packages for this environment."""
    return [export(torch), *([ROOT / "envs" / "lock" / "slurm.txt"] if FOR_SLURM else [])]


def requirement(name, torch="cuda"):
    """Return one package's lines in an export: version and hashes."""
    return re.findall(rf"^{name}==.*\n(?: +--hash.*\n)+", export(torch).read_text(), re.M)[0]


def stamp(torch):
    """Return the inputs of .venv: an export, the project's metadata, a Python, and the path in its scripts."""
    import tomllib  # from Python 3.11 on

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    made_from = [*(file.read_text() for file in exports(torch)), project["project"], project["build-system"]]
    made_from += [sys.version_info[:2], str(ROOT)]
    return {"torch": torch, "digest": hashlib.sha256(json.dumps(made_from).encode()).hexdigest()}


def create():
    # The base interpreter: this one may be in an activated .venv, which is about to be emptied.
    base = getattr(sys, "_base_executable", sys.executable)
    name = VENV.name.replace(".venv", "sams")
    made = subprocess.run(
        [base, "-m", "venv", "--clear", "--prompt", name, str(VENV)], capture_output=True, text=True
    )
    if made.returncode:
        fail(
            f"{base} cannot make a virtual environment ({' '.join((made.stdout + made.stderr).split())}): "
            "install its venv module (Debian, Ubuntu: apt install python3-venv), "
            "or name another Python: make env PYTHON=/path/to/python3.11"
        )


def pip(*arguments, **options):
    command = [str(PYTHON), "-m", "pip", "--disable-pip-version-check", *arguments]
    return subprocess.run(command, text=True, **options)


def pip_install_locked(name, *options, torch="cuda"):
    """Install one package of the lock quietly with pip."""
    arguments = ["install", "--no-deps", "--require-hashes", *options, "--requirement", "/dev/stdin"]
    return pip(*arguments, input=requirement(name, torch), capture_output=True)


def choose():
    """Return the export for this machine, and the reason."""
    smi = shutil.which("nvidia-smi")
    if smi and subprocess.run([smi, "-L"], capture_output=True, text=True).stdout.startswith("GPU "):
        return "cuda", "an NVIDIA GPU is present"
    # Without an index pip has find-links only, where a wheel must fit this Python and the hashes.
    dry_run = pip_install_locked("torch", "--dry-run", "--ignore-installed", "--no-index", torch="cpu")
    if dry_run.returncode == 0:
        return "cpu", "no NVIDIA GPU, and torch's CPU wheel is on pip's find-links"
    if index := cpu_index():
        return "cpu", f"no NVIDIA GPU, and torch's CPU wheel is on {index}"
    return "cuda", (
        "no NVIDIA GPU, but no CPU wheel of torch for this Python on pip's find-links and indexes (this one runs on "
        f"CPUs too). For the small one: export {TORCH_INDEX}=URL of a mirror of {PYTORCH}, or "
        "PIP_FIND_LINKS=folder with the wheel"
    )


def cpu_index():
    """Return the first index with a locked CPU wheel of torch for this Python, or None."""
    settings = pip_settings()
    listed = [os.environ.get(TORCH_INDEX, PYTORCH), settings.get("index-url", "")]
    hashes = re.findall(r"sha256:(\w+)", requirement("torch", "cpu"))
    tag = f"cp{sys.version_info[0]}{sys.version_info[1]}-"
    trusted = ssl.create_default_context(cafile=settings.get("cert"))
    for index in [*listed, *settings.get("extra-index-url", "").split()]:
        try:
            address = f"{index.rstrip('/')}/torch/" + ("index.html" if index.startswith("file:") else "")
            context = None if index.startswith("file:") else trusted
            with urllib.request.urlopen(address, timeout=20, context=context) as page:
                links = page.read().decode(errors="replace").split("<a ")
        except (OSError, ValueError):
            continue
        if any(tag in link and any(value in link for value in hashes) for link in links):
            return index
    return None


def install(torch):
    """Install an export and the project with uv, or with pip if uv fails."""
    arguments = ["--no-deps", "--no-build-isolation", "--require-hashes"]
    arguments += [word for file in exports(torch) for word in ("--requirement", str(file))]
    if not sys.stderr.isatty():
        arguments.append("--quiet")  # a terminal shows the downloads
    index = cpu_index() if torch == "cpu" else None
    if not uv_install(torch, arguments, index):
        say("uv could not install the lock; pip takes some minutes")
        if pip("install", *arguments, *(["--extra-index-url", index] if index else [])).returncode:
            fail(f"pip could not install {export(torch).relative_to(ROOT)}: its last lines above say why")
    itself = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--editable", str(ROOT)]
    if pip("install", *itself).returncode:
        fail("pip could not install the project itself: its last lines above say why")


def uv_install(torch, arguments, index=None):
    """Install with uv; return whether uv was available and succeeded."""
    if pip_install_locked("uv").returncode:
        return False
    command = [str(VENV / "bin" / "uv"), "pip", "install", "--python", str(PYTHON), *arguments]
    command += ["--compile-bytecode"]  # once here, not at every start where Python may not write its caches
    command += ["--no-config"]  # pyproject.toml's resolver settings do not apply
    command += ["--index-strategy", "unsafe-best-match"]  # indexes are equal, as for pip; safe with hashes
    settings = pip_settings()
    options = {"index-url": "--default-index", "extra-index-url": "--index"}
    if torch == "cpu":  # for CUDA, uv would take 2.13.0+cpu of find-links for 2.13.0, and refuse its hash
        options["find-links"] = "--find-links"
    for name, option in options.items():
        command += [word for address in settings.get(name, "").split() for word in (option, address)]
    command += ["--index", index] if index else []
    environment = dict(os.environ)
    if "cert" in settings:
        environment["SSL_CERT_FILE"] = settings["cert"]
    return subprocess.run(command, env=environment).returncode == 0


def pip_settings():
    """Return pip's settings by name; uv does not read them."""
    lines = pip("config", "list", capture_output=True).stdout.splitlines()
    values = {key: ast.literal_eval(value) for key, value in (line.split("=", 1) for line in lines)}
    settings = {}
    for section in ("global.", "install.", ":env:."):  # the later ones count
        settings.update({k[len(section) :]: v for k, v in values.items() if k.startswith(section)})
    return settings


if __name__ == "__main__":
    main()
