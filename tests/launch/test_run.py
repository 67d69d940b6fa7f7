"""`sams run`: the view of a running study, from Snakemake's own events."""

import io
import json
import os
import pty
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from sams.cli import app
from sams.launch.run import FIRST_LINE, PLUGINS, View
from sams.runtime.processes import EXIT_INTERRUPTED
from tests.conftest import ROOT

SNAKEFILE = """
rule all:
    input: "run/train.jsonl", "done"

rule train_preference:
    output: "{folder}/train.jsonl"
    log: "{folder}.log"
    shell: "touch {output} # --checkpoints ck/{wildcards.folder}"

rule fails:
    output: "done"
    log: "fails.log"
    shell: "echo 'error: row 7 has no prompt' > {log}; exit 1"
"""


def test_snakemakes_terminal_has_a_line_for_each_job_and_the_end_of_a_failed_ones_log(tmp_path: Path) -> None:
    """With `quiet: [host]`, as profiles/default has it; with `--verbose` the terminal has Snakemake's own log."""
    rules = SNAKEFILE.replace("echo 'error", "seq 100 > {log}; echo 'error").replace(
        "> {log}; exit", ">> {log}; exit"
    )
    head = "from sams.launch.brief import shorten_log\nshorten_log(workflow)\n"
    (tmp_path / "Snakefile").write_text(head + rules, encoding="utf-8")
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "--keep-going", "--quiet", "host"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    brief, own = (
        subprocess.run(
            [*command, *more], cwd=tmp_path, env=environment, capture_output=True, text=True
        ).stderr
        for more in ([], ["--verbose"])
    )
    assert "2 jobs to run" in brief and "done    train_preference run in " in brief and "(1 of 2)" in brief
    assert "FAILED  fails: row 7 has no prompt (log: fails.log)" in brief
    assert "    100\n    error: row 7" in brief and "\n    50\n" not in brief
    assert len(brief.splitlines()) < 30 and "Command '" not in brief and "Complete log" in brief
    assert "rule fails:" in own and "done    " not in own
    [first, *_] = sorted((tmp_path / ".snakemake" / "log").iterdir())
    assert "rule train_preference:" in first.read_text(), "Snakemake's own log is complete"


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Events of a workflow of two jobs, of which one fails, as Snakemake gives them to the plugin."""
    folder = tmp_path_factory.mktemp("workflow")
    (folder / "Snakefile").write_text(SNAKEFILE, encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(PLUGINS), "SAMS_EVENTS": str(folder / "events.jsonl")}
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "--keep-going", "--logger", "sams"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "RuleException" in done.stderr, "Snakemake's own log goes on"
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def test_jobs_start_end_and_fail_with_the_line_that_says_why(
    events: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("fails.log").write_text("Traceback ...\nerror: row 7 has no prompt\n", encoding="utf-8")
    view = View()
    lines = [line for event in events for line in view.take(event)]
    assert "start   train_preference run" in lines
    assert any(line.startswith("done    train_preference run in ") and "1 of 2" in line for line in lines)
    assert "FAILED  fails: row 7 has no prompt (log: fails.log)" in lines
    assert not view.running and [job.rule for job in view.failed] == ["fails"]


def test_the_view_shows_what_a_running_job_writes(
    events: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    view = View()
    for event in events:
        if event["event"] in ("run_info", "job_info") and event.get("rule_name") != "fails":
            view.take(event)
    Path("ck/run/0123").mkdir(parents=True)  # a folder for each recipe, as training jobs have it
    Path("run.log").write_text(
        "x\ntrain_preference: 3 of 40 steps (8 %), 2.0 s each, 1 min 14 s left\n", encoding="utf-8"
    )
    step = {
        "step": 3,
        "pairs_seen": 96,
        "loss": 0.6712,
        "rewards/margins": 0.0523,
        "rewards/accuracies": 0.5625,
    }
    # A line that is being written is not read.
    Path("ck/run/0123/train.jsonl").write_text(json.dumps(step) + '\n{"step": 4, "lo', encoding="utf-8")
    Path("ck/run/0123/costs.jsonl").write_text('{"seconds": 2.0, "peak_memory_mb": 2048}\n', encoding="utf-8")
    shown = io.StringIO()
    Console(file=shown, width=80).print(view.table("mine, world", Path("results/mine/run.log")))
    text = shown.getvalue()
    expected = "step 3/40 · loss 0.671 · margin 0.052 · accuracy 56% · 16 pairs/s · 1 min 14 s left · 2.0 GB"
    assert expected in " ".join(text.replace("\n", " ").split())
    assert max(map(len, text.splitlines())) <= 80
    assert "next: fails" in text and "0 of 2 jobs" in text and "results/mine/run.log" in text
    # Off a terminal, a line from time to time.
    assert list(view.lines()) == []
    later = time.monotonic() + 2 * FIRST_LINE
    monkeypatch.setattr(time, "monotonic", lambda: later)
    (line,) = view.lines()
    assert line.startswith("running train_preference run: step 3/40, loss 0.671")


def test_a_mistake_in_the_study_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["run", "table2_hh", "preference.betta=0.3"])
    assert result.exception is not None and "preference.betta" in str(result.exception)
    assert not Path("results").exists()


def on_terminal(command: list[str], folder: Path, *, stop_at: str) -> tuple[int, str]:
    """Run a command on a terminal of its own, with Ctrl-C when a text appears; return exit status and output."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(folder)
        os.execve(
            command[0], command, os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "100", "TERM": "xterm"}
        )
    shown, pressed = b"", False
    while True:
        try:
            part = os.read(terminal, 4096)
        except OSError:  # Linux: the last process of the terminal has ended
            part = b""
        if not part:
            break
        shown += part
        if not pressed and stop_at.encode() in shown:
            os.write(terminal, b"\x03")
            pressed = True
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), shown.decode(errors="replace")


@pytest.mark.slow
def test_a_study_stops_at_ctrl_c_and_goes_on_to_its_table(tmp_path: Path) -> None:
    small = "{sft_examples: 512, train_pairs: 256, test_pairs: 64}"
    command = [
        *(
            str(Path(sys.executable).with_name("sams")),
            "run",
            "study=quick",
            "methods=[sft, dpo]",
            f"data.world={small}",
        ),
        *("sft.epochs=1", "benchmarks.alpaca_eval=null", "benchmarks.mt_bench=null"),
    ]
    status, shown = on_terminal(command, tmp_path, stop_at="start   train_sft")
    assert status == EXIT_INTERRUPTED, shown
    assert shown.count("Stopped; all is saved. To go on: sams run study=quick") == 1
    assert "Traceback" not in shown and "FAILED" not in shown and "Error" not in shown
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "start   train_preference dpo seed 0" in done.stdout and "main table" in done.stdout
    assert "open     results/quick/tables/main.html" in done.stdout
    assert "prepare_data" not in done.stdout, "finished stages do not run again"
    assert len(done.stdout.splitlines()) < 150
