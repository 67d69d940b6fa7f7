"""Commands in README and docs: read from the pages, and run (`python -m tests.documents`, `make documents`).

The commands of a page are those of its ``sh`` blocks, and code within lines that begins with the name of a program
of this project. Running them needs a finished default study in results/ (`make demo`). The outcome of each is
printed, and the exit status is 1 if one has failed. Commands of Snakemake that would train are dry runs; the
chain's tests run them.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted(p for p in (ROOT / "docs").glob("*.md") if p.name != "log.md")]
BLOCK = re.compile(r"^```sh\n(.*?)^```", re.M | re.S)
INLINE = re.compile(r"`((?:\.venv/bin/|\.venv-slurm/bin/)?(?:sams|snakemake|make|torchrun|python -m) [^`]+)`")
PLACES = {
    r"results/STUDY\b": "results/tiny",
    r"\bSTUDY\b(?!\.)": "config/studies/own_data.yaml",
    r"\bRUN RUN\b": "results/tiny/world/dpo/seed0 results/tiny/world/dpo-sams/seed0",
    r"\bRUN\b": "results/tiny/world/dpo/seed0",
    r"\bR/": "results/tiny/world/",
    r"\bFILE\b": "config/studies/own_data/test.jsonl",
    r" \.\.\.(?= |$)": "",
}
"""Placeholders in commands, and their values."""


class Command(NamedTuple):
    """A command of a page.

    Attributes:
        page: name of the page.
        shown: text on the page, without its comment.
        text: the same with values in place of the placeholders.
        block: whether a block shows it; within a line, two words such as `sams plan` name a command.
    """

    page: str
    shown: str
    text: str
    block: bool

    @property
    def words(self) -> list[str]:
        """Words of the command, without variables in front of it and the folder of its program."""
        words = shlex.split(re.sub(r" [<>|] .*", "", self.text))
        while re.fullmatch(r"[A-Z_]+=.*|time", words[0]):
            del words[0]
        return [words[0].removeprefix(".venv/bin/"), *words[1:]]


def commands(page: Path) -> Iterator[Command]:
    """Yield the commands of a page: those of its blocks, then those within lines."""
    text = page.read_text(encoding="utf-8")
    for block in BLOCK.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            if shown := re.sub(r"\s+", " ", re.sub(r"(^|\s+)# .*$", "", line)).strip():
                yield Command(page.name, shown, with_values(shown), True)
    for shown in INLINE.findall(BLOCK.sub("", text)):
        yield Command(page.name, shown, with_values(shown), False)


def with_values(shown: str) -> str:
    """Return a command with values in place of its placeholders."""
    for pattern, value in PLACES.items():
        shown = re.sub(pattern, value, shown)
    return shown


ELSEWHERE = [
    (r"^make (demo|test|lint|env|mlflow)\b|sams mlflow", "continuous integration and tests/tracking"),
    (
        r"^make (test-slurm|test-hosts|env-slurm|audit|gpu|test-gpu)\b",
        "by hand: needs root, a network or a GPU",
    ),
    (r"^make ", "by hand: minutes to hours"),
    (r"\.venv-slurm|squeue|srun|--nodes 2|--nnodes 2|sams.launch.nodes|nproc-per-node 8", "tests/cluster"),
    (r"docker|apptainer|rsync|tmux|--sdm|EDITOR|pip install|http://", "needs another program or a network"),
    (r"benchmarks\.", "by hand: minutes"),
    (
        r"sams (chat|run|init|mirror)\b|my\.yaml|results/my/",
        "tests/real, tests/generation, tests/launch, tests/tracking",
    ),
    (r"0123456789abcdef|--dry-run", "tests/tables, tests/scoring"),
    (r"on_policy$|--rehearse$", "need a setting or a rehearsal: tests/chain"),
]
"""Commands that are not run here: pattern, and where they are run or why they are not."""


def main() -> int:
    """Run the commands; print the outcome of each."""
    done: set[str] = set()
    failed = 0
    for command in (command for page in PAGES for command in commands(page)):
        if command.shown in done or (not command.block and len(command.words) < 3 + ("-m" in command.words)):
            continue
        done.add(command.shown)
        outcome = next((why for pattern, why in ELSEWHERE if re.search(pattern, command.shown)), "")
        if not outcome:
            began = time.monotonic()
            dry = " -n" * (command.words[0] == "snakemake" and not {"-n", "--report"} & set(command.words))
            status, last = execute(command.text + dry)
            failed += status != 0
            outcome = f"status {status}{dry}, {time.monotonic() - began:.0f} s" + (
                f": {last}" if status else ""
            )
        print(f"{command.page}: {command.shown}\n    {outcome}", flush=True)
    print(f"{len(done)} commands, {failed} failed")
    return bool(failed)


def execute(text: str) -> tuple[int, str]:
    """Run one command in a shell; return its exit status and its last line."""
    environment = os.environ | {"PATH": f"{ROOT / '.venv/bin'}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["bash", "-c", text],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    said = (done.stdout + done.stderr).strip().splitlines() or [""]
    return done.returncode, said[-1]


if __name__ == "__main__":
    sys.exit(main())
