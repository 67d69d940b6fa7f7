"""The lock, its exports and the conda environments agree; `make env` takes the right one."""

import ast
import importlib.util
import re
import subprocess
import sys
import tomllib
import zipfile
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from sams.runtime.errors import UserError
from sams.runtime.extras import MODULES, not_installed, require

ROOT = Path(__file__).resolve().parent.parent
FOR_CUDA = re.compile(r"nvidia-(?!ml-py$)|cuda-|triton$")  # nvidia-ml-py asks the driver, where there is one
OUR_VENV = pytest.mark.skipif(Path(sys.prefix) != ROOT / ".venv", reason="not in the .venv of `make env`")


def read_export(name: str) -> dict[str, tuple[Version, set[str]]]:
    """An export's packages by name, each with its version and its hashes."""
    text = (ROOT / "envs" / "lock" / name).read_text()
    found = re.findall(r"(?m)^([a-z]\S*)==(\S+) .*\n((?: +--hash=sha256:[0-9a-f]{64}(?: \\)?\n)*)", text)
    assert len(found) == len(re.findall("(?m)^[^ #]", text))
    return {name: (Version(release), set(re.findall(r"sha256:\w+", rest))) for name, release, rest in found}


CPU, CUDA = read_export("cpu.txt"), read_export("cuda.txt")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = {
    extra: [Requirement(line) for line in lines]
    for extra, lines in PYPROJECT["project"]["optional-dependencies"].items()
}
CORE = [Requirement(line) for line in PYPROJECT["project"]["dependencies"]]
RUNTIME = [*CORE, *EXTRAS["workflow"], *EXTRAS["score"], *EXTRAS["gpu"]]
DEVELOPMENT = [Requirement(line) for line in PYPROJECT["dependency-groups"]["dev"]]


@pytest.fixture
def make_env():
    spec = importlib.util.spec_from_file_location("make_env", ROOT / "envs" / "make_env.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_exports_hold_the_lock_with_hashes():
    lock = tomllib.loads((ROOT / "uv.lock").read_text())
    locked = {package["name"]: package for package in lock["package"]}
    sources = {package["source"].get("registry") for name, package in locked.items() if name != "sams"}
    assert sources == {"https://pypi.org/simple"}
    for name, (release, hashes) in CUDA.items():
        files = [*locked[name].get("wheels", []), *filter(None, [locked[name].get("sdist")])]
        assert release == Version(locked[name]["version"]), name
        assert hashes and hashes <= {file["hash"] for file in files}, name


def test_exports_differ_by_cuda_alone():
    assert CUDA.keys() - CPU.keys() == {name for name in CUDA if FOR_CUDA.match(name)}
    assert CPU.keys() <= CUDA.keys()
    assert {name for name in CPU if CPU[name] != CUDA[name]} == {"torch"}
    (cpu, cpu_hashes), (cuda, cuda_hashes) = CPU["torch"], CUDA["torch"]
    assert (cpu.public, cpu.local, cuda.local) == (cuda.public, "cpu", None)
    assert cpu_hashes and cpu_hashes.isdisjoint(cuda_hashes)


def test_lock_covers_what_the_project_asks_for():
    for needed in RUNTIME + EXTRAS["trl"] + DEVELOPMENT:
        assert CPU[canonicalize_name(needed.name)][0] in needed.specifier, needed


def test_slurm_plugin_is_in_an_environment_of_its_own():
    assert not [name for name in CUDA if "slurm" in name]
    added = read_export("slurm.txt")
    locked = {
        package["name"]: package for package in tomllib.loads((ROOT / "uv.lock").read_text())["package"]
    }
    (extra,) = EXTRAS["slurm"]
    assert added[extra.name][0] in extra.specifier
    for name, (release, hashes) in added.items():
        files = [*locked[name].get("wheels", []), *filter(None, [locked[name].get("sdist")])]
        assert release == Version(locked[name]["version"]) and name not in CUDA
        assert hashes == {file["hash"] for file in files}
    # The plugin's other requirements are in the other exports.
    needed = {dependency["name"] for name in added for dependency in locked[name]["dependencies"]}
    assert needed <= CUDA.keys() | added.keys()


@pytest.mark.parametrize(
    ("name", "base", "installs"),
    [
        ("Dockerfile", r"(?m)^FROM (\S+)$", r"(?m)^RUN (make env .*)$"),
        ("apptainer.def", r"(?m)^From: (\S+)$", r"(?m)^ +(make env .*)$"),
    ],
)
def test_images_install_the_lock_and_nothing_else(name, base, installs):
    text = (ROOT / "envs" / name).read_text()
    ((image),) = re.findall(base, text)
    python = re.fullmatch(r"python:(3\.\d+)-slim-bookworm", image)[1]
    assert f"python={python}" in (ROOT / "envs" / "sams.yaml").read_text()
    assert f"{python}.1" in SpecifierSet(PYPROJECT["project"]["requires-python"])
    ((command),) = re.findall(installs, text)
    assert command.split()[2] == f"PYTHON=python{python}"
    code = re.sub(r"(?m)^#.*", "", text)
    assert not re.search(r"\b(pip3?|uv|conda|curl|wget) ", code)
    assert set(re.findall(r"recommends (.*?)(?: \\)?\n", code)) == {"git make"}


@pytest.mark.parametrize("path", sorted((ROOT / "envs").glob("*.yaml")), ids=lambda path: path.name)
def test_conda_environments_pin_what_the_lock_pins(path):
    *packages, pip = yaml.safe_load(path.read_text())["dependencies"]
    assert packages == ["python=3.11", "pip"]
    pins = dict(pin.split("==") for pin in pip["pip"])
    assert {name: str(CPU[name][0].public) for name in pins} == pins
    assert {canonicalize_name(needed.name) for needed in RUNTIME} <= pins.keys()


@OUR_VENV
def test_this_environment_is_the_lock():
    wanted = CUDA if Version(version("torch")).local != "cpu" else CPU
    found = {}
    for name in CUDA:
        try:
            found[name] = Version(version(name))
        except PackageNotFoundError:
            continue
    found["torch"] = Version(found["torch"].public)
    assert found == {name: Version(release.public) for name, (release, _) in wanted.items()}


@OUR_VENV
def test_the_project_asks_for_what_it_imports():
    trees = [ast.parse(path.read_text()) for path in (ROOT / "sams").rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    imported = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    imported += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
    modules = {name.partition(".")[0] for name in imported} - sys.stdlib_module_names - {"sams"}
    # Of an extra, so perhaps not installed: an error in one line says so. vLLM brings its own torch.
    extras = [needed for lines in EXTRAS.values() for needed in lines]
    asked_for = {canonicalize_name(needed.name) for needed in CORE + extras}
    distributions = packages_distributions()  # reads the metadata of all packages
    origins = {module: distributions.get(module, [module]) for module in modules}
    assert [name for name in origins if not asked_for & set(map(canonicalize_name, origins[name]))] == []


@OUR_VENV
def test_errors_about_missing_modules_name_the_extra_that_brings_them():
    distributions = packages_distributions()
    brought = {
        extra: {canonicalize_name(name) for module in modules for name in distributions[module]}
        for extra, modules in MODULES.items()
        if extra in ("workflow", "score", "trl", "gpu")
    }
    for extra, names in brought.items():
        assert {canonicalize_name(needed.name) for needed in EXTRAS[extra]} <= names, extra
    assert MODULES.keys() == EXTRAS.keys() - {"all", "slurm", "mutants"}


def test_a_missing_module_is_one_line_with_the_command(monkeypatch):
    require("workflow")
    monkeypatch.setitem(MODULES, "score", ["alpaca_eval", "no_such_judge", "none_either"])
    with pytest.raises(UserError, match=r"benchmarks: no_such_judge, none_either are not .*'sams\[score\]'"):
        require("score", where="benchmarks")
    missing = not_installed(ModuleNotFoundError(name="no_such_judge.client"))
    assert str(missing) == "no_such_judge is not installed; run `pip install 'sams[score]'`"
    assert (
        not_installed(ModuleNotFoundError(name="sams.nothing")) is None and not_installed(OSError()) is None
    )


@pytest.fixture
def bare_machine(make_env, monkeypatch, tmp_path):
    """make_env with this interpreter's pip, no nvidia-smi on the PATH and nothing in pip's settings."""
    monkeypatch.setattr(make_env, "PYTHON", Path(sys.executable))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setenv(make_env.TORCH_INDEX, (tmp_path / "no-index").as_uri())
    return make_env


def put_cpu_wheel(machine, folder: Path, monkeypatch, locked: bool) -> None:
    """A wheel of torch's CPU build on pip's find-links, and a CPU export that has its hash, or another."""
    wheel = folder / "torch-2.13.0+cpu-py3-none-any.whl"
    info = "torch-2.13.0+cpu.dist-info/"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(info + "METADATA", "Metadata-Version: 2.1\nName: torch\nVersion: 2.13.0+cpu\n")
        archive.writestr(info + "WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(info + "RECORD", "")
    digest = sha256(wheel.read_bytes()).hexdigest() if locked else "0" * 64
    (folder / "cpu.txt").write_text(f"torch==2.13.0+cpu \\\n    --hash=sha256:{digest}\n")
    monkeypatch.setattr(machine, "export", lambda torch: folder / f"{torch}.txt")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))


def put_nvidia_smi(folder: Path, says: str) -> None:
    (folder / "nvidia-smi").write_text(f"#!/bin/sh\necho '{says}'\n")
    (folder / "nvidia-smi").chmod(0o755)


def test_cpu_export_where_the_locked_cpu_wheel_is(bare_machine, monkeypatch, tmp_path):
    put_cpu_wheel(bare_machine, tmp_path, monkeypatch, locked=True)
    put_nvidia_smi(tmp_path, "NVIDIA-SMI has failed")
    assert bare_machine.choose()[0] == "cpu"


def test_cuda_export_where_the_cpu_wheel_is_another_one(bare_machine, monkeypatch, tmp_path):
    put_cpu_wheel(bare_machine, tmp_path, monkeypatch, locked=False)
    assert bare_machine.choose()[0] == "cuda"


@pytest.mark.parametrize("tag", ["cp{}{}-".format(*sys.version_info), "cp310-"])
def test_cpu_export_where_an_index_has_the_locked_wheel_for_this_python(
    bare_machine, monkeypatch, tmp_path, tag
):
    put_cpu_wheel(bare_machine, tmp_path, monkeypatch, locked=False)
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    (tmp_path / "torch").mkdir()
    link = f'<a href="torch-2.13.0%2Bcpu-{tag}x-linux_x86_64.whl#sha256={"0" * 64}">torch</a>'
    (tmp_path / "torch" / "index.html").write_text(f"<html>{link}</html>")
    monkeypatch.setenv(bare_machine.TORCH_INDEX, tmp_path.as_uri())
    chosen, why = bare_machine.choose()
    assert (chosen == "cpu" and tmp_path.as_uri() in why) == ("310" not in tag)
    assert chosen == "cpu" or bare_machine.TORCH_INDEX in why


def test_cuda_export_on_a_bare_machine(bare_machine):
    assert bare_machine.choose()[0] == "cuda"


def test_cuda_export_with_a_gpu(bare_machine, tmp_path):
    put_nvidia_smi(tmp_path, "GPU 0: NVIDIA H100")
    assert bare_machine.choose() == ("cuda", "an NVIDIA GPU is present")


def test_uv_is_told_pips_settings(bare_machine, monkeypatch, tmp_path):
    (tmp_path / "pip.conf").write_text(
        "[global]\nindex-url = https://a.example\nextra-index-url =\n  https://b.example\n  https://c.example\n"
        "[install]\nindex-url = https://d.example\n"
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    monkeypatch.setenv("PIP_FIND_LINKS", "/wheels")
    settings = bare_machine.pip_settings()
    assert settings["index-url"] == "https://d.example"
    assert settings["extra-index-url"].split() == ["https://b.example", "https://c.example"]
    assert settings["find-links"] == "/wheels"


@pytest.mark.parametrize("found", [(3, 10, 13), (3, 13, 0)])
def test_another_python_is_refused_in_one_line(found, make_env, monkeypatch):
    monkeypatch.setattr(sys, "version_info", found)
    with pytest.raises(SystemExit, match=r"found Python 3\.1\d\.\d+ .*, needed 3\.11 or 3\.12: install .*$"):
        make_env.check_machine()


def test_python_finder_passes_over_names_that_do_not_run(tmp_path):
    """A version manager leaves names such as python3.12 on the PATH for Pythons that are switched off."""
    (tmp_path / "python3.11").write_text("#!/bin/sh\nexit 127\n")
    (tmp_path / "python3.12").symlink_to(sys.executable)
    (tmp_path / "python3.11").chmod(0o755)
    path = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    shown = subprocess.run(["make", "-n", "env"], cwd=ROOT, env=path, capture_output=True, text=True)
    assert shown.stdout.split()[0] == "python3.12"
