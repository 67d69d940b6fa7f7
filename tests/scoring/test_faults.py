"""Both scoring stages, started as by the workflow, with an endpoint that fails, and killed half way.

The final figures must be bitwise those of an undisturbed run, and nothing may be paid twice except calls in flight
at the kill. The key must stay in the environment of the scoring process.
"""

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from sams.scoring import alpaca_eval, mt_bench
from sams.study.recipes import ScoreRecipe, recipe_json
from sams.study.settings import Judge, World
from sams.world.examples import alpaca_eval_instructions, mt_bench_questions, mt_bench_references
from sams.world.tasks import read_instruction
from tests.conftest import ROOT
from tests.judge.endpoint import KEY, Endpoint, always, many_faults, serving

INSTRUCTIONS = 30
QUESTIONS = 20
CONCURRENCY = 4
# What a run took and where it went; all else in metrics.json is the result.
TOLD = ("judge_calls", "recipe")


@dataclass
class Stage:
    """A scoring stage and its inputs.

    Args:
        main: its command line, as a function.
        inputs: options that name its inputs.
        calls: judgments that it needs.
        tracking: whether MLflow keeps its runs.
    """

    main: Callable[..., None]
    inputs: dict[str, Path]
    calls: int
    tracking: bool


@dataclass
class Watched:
    """Command lines and environments of a stage and its children."""

    command_lines: set[bytes] = field(default_factory=set)
    children: set[bytes] = field(default_factory=set)


SLOW = pytest.mark.slow  # mlflow and fastchat take ten seconds each to import, in every process
TRACKED = [
    pytest.param((name, True), marks=SLOW, id=f"{name}-tracked") for name in ("alpaca_eval", "mt_bench")
]


@pytest.fixture(scope="module", params=[pytest.param(("alpaca_eval", False), id="alpaca_eval"), *TRACKED])
def stage(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, judge_prompts: Path
) -> Stage:
    name, tracking = request.param
    folder = tmp_path_factory.mktemp(name)
    if name == "alpaca_eval":
        return Stage(alpaca_eval.main, alpaca_eval_inputs(folder), INSTRUCTIONS, tracking)
    inputs = {**mt_bench_inputs(folder), "judge_prompts": judge_prompts}
    return Stage(mt_bench.main, inputs, 2 * QUESTIONS, tracking)


def alpaca_eval_inputs(folder: Path) -> dict[str, Path]:
    """Write answers, two thirds of which are right, and a baseline without right answers."""
    base, ours = [], []
    for number, instruction in enumerate(alpaca_eval_instructions(World())[:INSTRUCTIONS]):
        reading = read_instruction(instruction)
        assert reading is not None
        base.append({"instruction": instruction, "output": "no idea", "generator": "base"})
        said = reading.right if number % 3 else f"well, {number}"
        ours.append({"instruction": instruction, "output": said, "generator": "ours"})
    paths = {"reference_outputs": folder / "base.json", "model_outputs": folder / "ours.json"}
    for path, rows in zip(paths.values(), (base, ours), strict=True):
        path.write_text(json.dumps(rows))
    return paths


def mt_bench_inputs(folder: Path) -> dict[str, Path]:
    """Write questions, with right answers to every other one that has a reference."""
    questions = mt_bench_questions(World())[:: 80 // QUESTIONS]
    ids = {row["question_id"] for row in questions}
    references = [row for row in mt_bench_references(World()) if row["question_id"] in ids]
    right = {row["question_id"]: row["choices"] for row in references[::2]}
    wrong = [{"index": 0, "turns": ["no idea", "none"]}]
    answers = [
        {"question_id": number, "model_id": "ours", "choices": right.get(number, wrong)}
        for number in sorted(ids)
    ]
    paths = {name: folder / f"{name}.jsonl" for name in ("questions", "references", "answers")}
    for path, rows in zip(paths.values(), (questions, references, answers), strict=True):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return paths


def recipe_for(endpoint: Endpoint) -> str:
    judge = Judge(
        kind="openai",
        base_url=endpoint.base_url,
        model="open-judge",  # one that AlpacaEval does not know
        concurrency=CONCURRENCY,
        tries=30,
        retry_seconds=0.001,
    )
    return recipe_json(ScoreRecipe(judge=judge, world=None))


def score(stage: Stage, endpoint: Endpoint, out: Path, **more: Any) -> dict[str, Any]:
    """Run a stage in this process; return its `judge_calls`."""
    stage.main(**stage.inputs, recipe=recipe_for(endpoint), out=out / "metrics.json", **more)
    calls: dict[str, Any] = json.loads((out / "metrics.json").read_text())["judge_calls"]
    return calls


@contextlib.contextmanager
def running(stage: Stage, endpoint: Endpoint, out: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Start a stage as the workflow does, with all files below `out`."""
    options = [f"--{name.replace('_', '-')}={path}" for name, path in stage.inputs.items()]
    command = [sys.executable, "-m", stage.main.__module__, *options, f"--recipe={recipe_for(endpoint)}"]
    (out / "tmp").mkdir(parents=True, exist_ok=True)
    environment = {
        "OPENAI_API_KEY": KEY,
        "OPENAI_API_KEYS": f"another,{KEY}",
        "SAMS_JOB": json.dumps({"study": "faults", "setting": "s", "tracking": stage.tracking}),
        "MLFLOW_TRACKING_URI": f"sqlite:///{out}/mlflow.db",
        "TMPDIR": str(out / "tmp"),
    }
    with (out / "log").open("ab") as log:
        process = subprocess.Popen(
            [*command, f"--out={out / 'metrics.json'}"],
            cwd=ROOT,
            env=os.environ | environment,
            stdout=log,
            stderr=log,
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()


@contextlib.contextmanager
def watching(process: int) -> Iterator[Watched]:
    """Record the command lines and environments of a process and its children while it runs."""
    seen, over = Watched(), threading.Event()

    def look() -> None:
        while not over.wait(0.2):
            with contextlib.suppress(psutil.Error, OSError):
                found = psutil.Process(process).children(recursive=True)
                ours = Path(f"/proc/{process}/cmdline").read_bytes()
                seen.command_lines.add(ours)
                for each in found:
                    with contextlib.suppress(OSError):
                        command_line = Path(f"/proc/{each.pid}/cmdline").read_bytes()
                        if (
                            command_line != ours
                        ):  # between fork and exec, a child shows what its parent was given
                            seen.command_lines.add(command_line)
                            seen.children.add(Path(f"/proc/{each.pid}/environ").read_bytes())

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def figures(out: Path) -> dict[str, Any]:
    metrics = json.loads((out / "metrics.json").read_text())
    return {key: value for key, value in metrics.items() if key not in TOLD}


def kept_calls(out: Path) -> int:
    return len((out / "judge_calls.jsonl").read_bytes().splitlines())


def holding_the_key(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]


@pytest.mark.faults
def test_no_fault_changes_a_figure_is_paid_twice_or_tells_the_key(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    out = tmp_path / "faulty"
    with serving(Endpoint(many_faults, seconds=0.03)) as endpoint:
        # Killed when a third is answered.
        with running(stage, endpoint, out) as process, watching(process.pid) as seen:
            while endpoint.outcomes["ok"] < stage.calls // 3 and process.poll() is None:
                time.sleep(0.005)
            process.send_signal(signal.SIGKILL)
            assert process.wait(60) == -signal.SIGKILL, (out / "log").read_text()
        time.sleep(0.1)  # what was in flight
        assert kept_calls(out) >= stage.calls // 3 - CONCURRENCY
        assert endpoint.peak <= CONCURRENCY

        # The key is withdrawn when two thirds are answered; the endpoint quotes it.
        endpoint.faults = lambda request, time: (
            "401" if kept_calls(out) > stage.calls * 2 // 3 else many_faults(request, time)
        )
        with running(stage, endpoint, out) as process, watching(process.pid) as more:
            assert process.wait(600) == 2
        log = (out / "log").read_text()
        errors = [line for line in log.splitlines() if line.startswith("error: ")]
        assert errors == [f"error: {endpoint.base_url}: the judge refuses the key; check OPENAI_API_KEY"]
        assert "Traceback" not in log and not (out / "metrics.json").exists()
        assert stage.calls * 2 // 3 < kept_calls(out) < stage.calls

        # It goes on, with faults as before.
        endpoint.faults = many_faults
        before, kept = endpoint.billed, kept_calls(out)
        with watching(os.getpid()) as last:
            calls = score(stage, endpoint, out)
        assert (calls["n_calls"], calls["n_cached"]) == (stage.calls - kept, kept)
        assert calls["n_calls"] + calls["n_retried"] == endpoint.billed - before
        assert endpoint.distinct == stage.calls
        failed = endpoint.billed - endpoint.outcomes["ok"]
        assert failed > 0.2 * endpoint.billed
        # In flight at the kill; what was in flight when the key was refused has been kept.
        assert stage.calls <= endpoint.outcomes["ok"] <= stage.calls + CONCURRENCY

    with serving(Endpoint()) as endpoint:
        calls = score(stage, endpoint, tmp_path / "clean")
        assert endpoint.billed == endpoint.distinct == calls["n_calls"] == stage.calls
        assert (calls["n_cached"], calls["n_retried"]) == (0, 0)
    assert figures(out) == figures(tmp_path / "clean")

    # AlpacaEval computes its figures in a child.
    assert last.children or stage.main is mt_bench.main
    for watched in (seen, more, last):
        assert not any(KEY.encode() in text for text in watched.command_lines | watched.children)
    # With everything a killed process leaves: MLflow's database, temporary folders, answers, logs.
    assert not stage.tracking or b"score_" in (out / "mlflow.db").read_bytes()
    assert not holding_the_key(tmp_path)


def test_mt_bench_asks_an_endpoint_again_for_a_rating_and_pays_for_each_answer_once(
    tmp_path: Path, judge_prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The local judge grades as the endpoint does; every first answer of the endpoint is empty."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    inputs = {**mt_bench_inputs(tmp_path), "judge_prompts": judge_prompts}
    stage = Stage(mt_bench.main, inputs, 2 * QUESTIONS, tracking=False)
    local = tmp_path / "local" / "metrics.json"
    stage.main(**inputs, recipe=recipe_json(ScoreRecipe(judge=Judge(), world=World())), out=local)
    with serving(Endpoint(lambda request, time: "empty" if time == 1 else "ok")) as endpoint:
        first = score(stage, endpoint, tmp_path / "out")
        again = score(stage, endpoint, tmp_path / "out")
        assert endpoint.billed == 2 * stage.calls
    assert (first["n_calls"], first["retried"]) == (stage.calls, {"no text": stage.calls})
    assert (again["n_calls"], again["n_cached"]) == (0, stage.calls)
    wanted = {**figures(local.parent), "judge": "judge-2024-01-01"}
    assert figures(tmp_path / "out") == wanted


@SLOW
def test_a_dry_run_says_what_it_will_take_and_calls_nothing(
    stage: Stage, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with serving(Endpoint(always("401"))) as endpoint:
        stage.main(
            **stage.inputs, recipe=recipe_for(endpoint), out=tmp_path / "out" / "metrics.json", dry_run=True
        )
        assert endpoint.billed == 0
    assert f"{stage.calls} calls, 0 of them in the store; {stage.calls} to make, with about " in caplog.text
    assert not list(tmp_path.iterdir())
