"""Commands, files and links in README and docs: each names what the project has, with options that it takes.

`make documents` runs the commands.
"""

import inspect
import json
import re
import subprocess
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
from typer.main import get_command

from benchmarks import readme
from sams.cli import app
from tests.conftest import ROOT
from tests.documents import PAGES, Command, commands

OTHER_PROGRAMS = {
    "$EDITOR", "apptainer", "vllm", "docker", "export", "pip", "rsync", "source", "squeue", "srun", "tmux",
}  # fmt: skip
SHOWN = [command for page in PAGES for command in commands(page)]


@cache
def targets() -> set[str]:
    """Return the targets of the Makefile."""
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))


@cache
def rules() -> set[str]:
    """Return the rules of the workflow."""
    texts = [path.read_text() for path in (ROOT / "Snakefile", *(ROOT / "rules").glob("*.smk"))]
    return {
        name for text in texts for name in re.findall(r"rule (\w+):|as (\w+) with:", text) for name in name
    }


def test_pages_show_commands() -> None:
    programs = {command.words[0] for command in SHOWN}
    assert {"make", "sams", "snakemake", "torchrun", "python"} <= programs and len(SHOWN) > 80


@pytest.mark.parametrize("command", SHOWN, ids=lambda command: f"{command.page}: {command.shown}")
def test_a_shown_command_is_one_that_the_project_has(command: Command) -> None:
    program, *words = command.words
    match Path(program).name:
        case "make":
            assert {word for word in words if "=" not in word} <= targets()
        case "sams":
            takes_options(words, whole=command.block)
        case "snakemake":
            takes_targets(words)
        case "python":
            if words[0] == "-m":
                assert find_spec(words[1])
                has_options(words[1], words[2:])
        case "torchrun":
            module = words.index("-m") + 1 if "-m" in words else None
            if module:
                has_options(words[module], words[module + 1 :], whole=True)
        case other:
            assert other in OTHER_PROGRAMS
    for word in words:
        if re.match(r"(config|profiles|envs|docs|sams|rules)/", word):
            assert (ROOT / word).exists(), word


def takes_options(words: list[str], *, whole: bool) -> None:
    """Parse the words of a `sams` command; those within a line may lack arguments."""
    command = get_command(app).commands[words[0]]
    command.make_context(words[0], list(words[1:]), resilient_parsing=not whole and len(words) == 1)


def takes_targets(words: list[str]) -> None:
    """Parse the words of a `snakemake` command."""
    from snakemake.cli import parse_args

    # A profile of another environment names a plugin that is not installed here.
    arguments = parse_args(re.sub(r"--profile \S+ ?", "", " ".join(words)).split())[1]
    assert set(arguments.targets) <= rules() | {"all"}
    for file in arguments.configfile or []:
        assert (ROOT / file).is_file() or str(file) in {"grid.yaml", "my.yaml"}, file


def has_options(module: str, words: list[str], *, whole: bool = False) -> None:
    """Compare the options of a stage's command with the parameters of its main."""
    if not module.startswith("sams.") or module in ("sams.launch.nodes", "sams.trl"):
        return
    parameters = inspect.signature(import_module(module).main).parameters
    given = {word.removeprefix("--").replace("-", "_") for word in words if word.startswith("--")}
    assert given <= set(parameters), given - set(parameters)
    required = {name for name, parameter in parameters.items() if parameter.default is parameter.empty}
    assert not whole or required <= given, required - given


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text):
        name, _, heading = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        if heading:
            titles = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.M)
            slugs = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
            assert heading in slugs, link


def test_each_page_of_docs_is_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    assert {page.name for page in PAGES if f"docs/{page.name}" not in readme} == {"README.md"}


def test_python_blocks_compile() -> None:
    for page in PAGES:
        for block in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S):
            entry = ": Entry(" in block  # of a table
            compile(f"{{\n{block}}}" if entry else block, page.name, "exec")


def test_the_demos_figures_are_the_recorded_ones_of_todays_settings() -> None:
    records = json.loads(readme.RECORD.read_text())
    text = readme.README.read_text()
    assert readme.rendered(text, records) == text, "run `make readme`"
    assert {record["settings"] for record in records} == {readme.settings_digest()}, "run `make readme`"


def test_makefile_runs_the_commands() -> None:
    shown = subprocess.run(["make", "-n", "documents"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "tests.documents" in shown.stdout
