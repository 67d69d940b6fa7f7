"""AlpacaEval 2 compared with published figures: three models, their judgments and leaderboard rows."""

import csv
import gzip
import importlib.util
import json
import os
import random
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sams.runtime.errors import UserError
from sams.scoring.agreement import judge_agreement, read_record
from sams.scoring.alpaca_eval import score_alpaca_eval
from sams.study.recipes import ScoreRecipe, recipe_json
from sams.study.settings import Judge

Rows = list[dict[str, Any]]
Metrics = dict[str, Any]

FAST = "gemma-7b-it"
LC = 10.42576035
MODELS = [FAST, "OpenHermes-2.5-Mistral-7B", "FuseChat-Llama-3.1-8B-Instruct"]
EXACT = (
    "win_rate",
    "standard_error",
    "discrete_win_rate",
    "n_wins",
    "n_wins_base",
    "n_draws",
    "n_total",
    "avg_length",
)


@dataclass(frozen=True)
class Published:
    """Files and figures as published."""

    folder: Path

    @property
    def reference(self) -> Path:
        return self.folder / "common" / "gpt4_1106_preview.model_outputs.json.gz"

    @property
    def difficulty(self) -> Path:
        """Stands in for the official table, whose preferences are not in any repository."""
        return self.folder / "common" / "df_gamed.standin.csv"

    def outputs(self, model: str) -> Path:
        return self.folder / "open" / model / "model_outputs.json.gz"

    def annotations(self, model: str) -> Path:
        return self.folder / "open" / model / "annotations.json.gz"

    def check(self, model: str, metrics: Metrics) -> None:
        """Compare with the leaderboard's row of a model."""
        with (self.folder / "open" / "published.csv").open() as stream:
            row = {row["model"]: row for row in csv.DictReader(stream)}[model]
        for key in EXACT:
            assert metrics[key] == pytest.approx(float(row[key]), abs=1e-6), key
        lc = metrics["length_controlled_winrate"]
        assert lc == pytest.approx(float(row["length_controlled_winrate"]), abs=0.2)
        # Of the order of the win rate's own, and not that of one number repeated.
        assert 0.4 < metrics["lc_standard_error"] / metrics["standard_error"] < 2.5


@pytest.fixture(scope="session")
def published(shared_data: Path) -> Published:
    return Published(shared_data / "alpaca_eval")


def read(path: Path) -> Rows:
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        rows: Rows = json.load(stream)
    return rows


def written(path: Path, rows: Rows) -> Path:
    """Write rows to a file, gzip or not by its suffix."""
    text = json.dumps(rows, ensure_ascii=False).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def scored(folder: Path, *arguments: object, **environment: str) -> Metrics:
    """Score by the command line of the rule."""
    out = folder / "seed0" / "alpaca_eval" / "metrics.json"
    done = subprocess.run(
        [sys.executable, "-m", "sams.scoring.alpaca_eval", *map(str, arguments), "--out", str(out)],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    metrics: Metrics = json.loads(out.read_text())
    return metrics


def test_recorded_judgments_of_shuffled_outputs_give_the_published_figures(
    published: Published, tmp_path: Path
) -> None:
    """By the command line, with outputs in another order."""
    outputs = written(tmp_path / "outputs.json.gz", shuffled(read(published.outputs(FAST))))
    metrics = scored(
        tmp_path,
        *("--model-outputs", outputs),
        *("--reference-outputs", published.reference),
        *("--annotations", published.annotations(FAST)),
        *("--difficulty", published.difficulty),
    )
    published.check(FAST, metrics)
    # The same to the last digit on every version of the libraries.
    assert metrics["length_controlled_winrate"] == pytest.approx(LC, abs=1e-4)
    assert metrics["order_repaired"]


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_recorded_judgments_give_the_published_figures(
    published: Published, tmp_path: Path, model: str
) -> None:
    metrics = scored(
        tmp_path,
        *("--model-outputs", published.outputs(model)),
        *("--reference-outputs", published.reference),
        *("--annotations", published.annotations(model)),
        *("--difficulty", published.difficulty),
    )
    published.check(model, metrics)
    assert (metrics["generator"], metrics["judge"]) == (model, "gpt-4-1106-preview")
    assert not metrics["order_repaired"]


# --- disturbed files -------------------------------------------------------------------------------


def shuffled(rows: Rows) -> Rows:
    return random.Random(0).sample(rows, len(rows))


def renamed(rows: Rows, name: str) -> Rows:
    return [{**row, "generator": name} for row in rows]


def without(rows: Rows, number: int, key: str) -> Rows:
    cut = {name: value for name, value in rows[number - 1].items() if name != key}
    return [*rows[: number - 1], cut, *rows[number:]]


def replaced(rows: Rows, number: int, **values: Any) -> Rows:
    return [*rows[: number - 1], {**rows[number - 1], **values}, *rows[number:]]


FIRST = "What are the names of some famous actors that start"

REFUSED: dict[str, tuple[str, Callable[[Rows], Rows], str]] = {
    "outputs: first row dropped": ("outputs", lambda r: r[1:], f"no output for 1 of the 805 .*'{FIRST}"),
    "outputs: last row dropped": ("outputs", lambda r: r[:-1], "no output for 1 of the 805"),
    "outputs: one row doubled": ("outputs", lambda r: [*r, r[0]], f"more than once: '{FIRST}"),
    "outputs: one row put for another": ("outputs", lambda r: [r[1], *r[1:]], "more than once: '"),
    "outputs: doubled with another answer": (
        "outputs",
        lambda r: [*r, {**r[0], "output": "x"}],
        f"more than once: '{FIRST}",
    ),
    "outputs: no generator": (
        "outputs",
        lambda r: without(r, 7, "generator"),
        "row 7, key 'generator': expected text, found nothing",
    ),
    "outputs: two generators": ("outputs", lambda r: replaced(r, 7, generator="x"), "expected one generator"),
    "outputs: the baseline's name": ("outputs", lambda r: renamed(r, "gpt4_1106_preview"), "baseline's name"),
    "outputs: no output": ("outputs", lambda r: without(r, 7, "output"), "row 7, key 'output'"),
    "outputs: all empty": (
        "outputs",
        lambda r: [{**row, "output": ""} for row in r],
        "all outputs are empty",
    ),
    # The recorded judgment is one of the output that was there.
    "outputs: one emptied": ("outputs", lambda r: replaced(r, 1, output=""), f"1 judgments .*'{FIRST}"),
    "outputs: an instruction reworded": (
        "outputs",
        lambda r: replaced(r, 1, instruction="Hello?"),
        f"no output for 1 of the 805 .*'{FIRST}",
    ),
    "outputs: another model's": ("outputs", lambda r: [{**row, "output": "I"} for row in r], "805 judgments"),
    "reference: shuffled": ("reference", shuffled, "not AlpacaEval's 805 in their order"),
    "reference: shuffled, renamed": (
        "reference",
        lambda r: renamed(shuffled(r), "ours"),
        "belongs to AlpacaEval's 805 instructions in their order",
    ),
    "reference: first row dropped": ("reference", lambda r: r[1:], "its 804 instructions are not"),
    "reference: one row doubled": ("reference", lambda r: [*r, r[0]], f"more than once: '{FIRST}"),
    "reference: other outputs": (
        "reference",
        lambda r: replaced(r, 1, output="Hello."),
        f"1 judgments are missing: '{FIRST}",
    ),
    "annotations: first row dropped": ("annotations", lambda r: r[1:], f"1 judgments .* '{FIRST}"),
    "annotations: one failed": ("annotations", lambda r: replaced(r, 1, preference=None), "1 judgments are"),
    "annotations: one contradicted": (
        "annotations",
        lambda r: [*r, {**r[0], "preference": 1.9}],
        "row 806: contradicts an earlier judgment",
    ),
    "annotations: counted from 0": (
        "annotations",
        lambda r: [{**row, "preference": row["preference"] - 1} for row in r],
        "row 1, key 'preference': expected a number from 1 to 2",
    ),
    "annotations: sides swapped": (
        "annotations",
        lambda r: [{**row, "output_1": row["output_2"], "output_2": row["output_1"]} for row in r],
        "805 judgments are missing",
    ),
}


def paths(published: Published) -> dict[str, Path]:
    return {
        "outputs": published.outputs(FAST),
        "reference": published.reference,
        "annotations": published.annotations(FAST),
    }


def score(files: dict[str, Path], difficulty: Path) -> Metrics:
    return score_alpaca_eval(
        files["outputs"], files["reference"], annotations=files["annotations"], difficulty=difficulty
    )


@pytest.mark.parametrize("name", REFUSED)
def test_a_disturbed_file_is_refused(published: Published, tmp_path: Path, name: str) -> None:
    which, disturb, problem = REFUSED[name]
    files = paths(published)
    file = written(tmp_path / "disturbed.json", disturb(read(files[which])))
    with pytest.raises(UserError, match=problem) as error:
        score({**files, which: file}, published.difficulty)
    assert "\n" not in str(error.value) and len(str(error.value)) < 600


REPAIRED: dict[str, tuple[str, str, Callable[[Rows], Rows]]] = {
    "outputs: reversed": ("outputs", "outputs.json", lambda r: r[::-1]),
    "annotations: shuffled": ("annotations", "annotations.json", shuffled),
    "annotations: one doubled": ("annotations", "annotations.json.gz", lambda r: [*r, r[0]]),
    "annotations: no annotator": (
        "annotations",
        "annotations.json",
        lambda r: [{key: value for key, value in row.items() if key != "annotator"} for row in r],
    ),
    "reference: unpacked": ("reference", "reference.json", lambda r: r),
    # As some tools write it: packed, and not called so.
    "outputs: packed without the suffix": ("outputs", "outputs", lambda r: r),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REPAIRED)
def test_a_disturbed_file_is_repaired(published: Published, tmp_path: Path, name: str) -> None:
    which, file_name, disturb = REPAIRED[name]
    files = paths(published)
    file = written(tmp_path / file_name, disturb(read(files[which])))
    if not file.suffix:
        file.write_bytes(gzip.compress(file.read_bytes()))
    metrics = score({**files, which: file}, published.difficulty)
    published.check(FAST, metrics)
    assert metrics["length_controlled_winrate"] == pytest.approx(LC, abs=1e-4)
    assert metrics["order_repaired"] == (which == "outputs" and disturb(list("ab")) != list("ab"))


# --- a judge that says again what GPT-4 Turbo said -------------------------------------------------


@contextmanager
def replaying_judge(program: Path, annotations: Path) -> Iterator[str]:
    """Run the judge on a free port; yield its base URL."""
    package = importlib.util.find_spec("alpaca_eval")
    assert package is not None and package.origin is not None
    template = (
        Path(package.origin).parent / "evaluators_configs/alpaca_eval_clf_gpt4_turbo/alpaca_eval_clf.txt"
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen([sys.executable, program, annotations, template, str(port)])
    try:
        deadline = time.monotonic() + 60
        while not stats(f"http://127.0.0.1:{port}"):
            assert server.poll() is None and time.monotonic() < deadline, "the judge does not start"
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


def stats(address: str) -> dict[str, int]:
    """Return the numbers of calls with and without an answer; empty while the judge starts."""
    try:
        with urllib.request.urlopen(f"{address}/stats", timeout=10) as answer:
            found: dict[str, int] = json.load(answer)
            return found
    except OSError:
        return {}


@pytest.mark.slow
@pytest.mark.parametrize("model", ["OpenHermes-2.5-Mistral-7B", FAST])
def test_replayed_judgments_give_the_published_preferences(
    published: Published, tmp_path: Path, model: str
) -> None:
    """The complete path of the rule: our answers, the package's prompts, a judge behind an endpoint."""
    program = published.folder.parent.parent / "tools" / "judge_replay_server.py"
    if not program.is_file():
        pytest.skip(f"the replaying judge is not on this machine ({program})")
    recorded = {row["instruction"]: row["preference"] for row in read(published.annotations(model))}
    answers = renamed(read(published.outputs(model)), "dpo-seed0")
    judgments = tmp_path / "annotations.json"
    with replaying_judge(program, published.annotations(model)) as address:
        recipe = ScoreRecipe(
            judge=Judge(kind="openai", base_url=f"{address}/v1", model="gpt-4-1106-preview"), world=None
        )
        metrics = scored(
            tmp_path,
            *("--recipe", recipe_json(recipe)),
            *("--model-outputs", written(tmp_path / "answers.json", answers)),
            *("--reference-outputs", published.reference),
            *("--difficulty", published.difficulty),
            *("--annotations-out", judgments),
            OPENAI_API_KEY="dummy",
        )
        asked = stats(address)
    # Identical answers are a draw without a call; no other prompt than the published ones was sent.
    assert (asked["hits"], asked["misses"]) == (805 - metrics["n_identical"], 0)
    found = {row["instruction"]: row["preference"] for row in json.loads(judgments.read_text())}
    # The published ones are rounded to ten places.
    assert {key: round(value, 10) for key, value in found.items()} == recorded
    published.check(model, metrics)
    assert metrics["generator"] == "dpo-seed0"


@pytest.mark.slow
def test_a_judge_that_repeats_gpt_4_turbo_agrees_fully_with_it(
    published: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recorded judgments of two models, replayed: the figures of full agreement. One order costs half the calls."""
    program = published.folder.parent.parent / "tools" / "judge_replay_server.py"
    if not program.is_file():
        pytest.skip(f"the replaying judge is not on this machine ({program})")
    monkeypatch.setenv("OPENAI_API_KEY", "dummy")
    record = read_record([published.annotations(FAST)])
    with replaying_judge(program, published.annotations(FAST)) as address:
        judge = Judge(kind="openai", base_url=f"{address}/v1", model="replay")
        recipe = ScoreRecipe(judge=judge, world=None)
        found, _ = judge_agreement(
            record, recipe, both_orders=False, store=tmp_path / "calls.jsonl", resamples=100
        )
        both, _ = judge_agreement(record, recipe, store=tmp_path / "calls.jsonl", resamples=100)
        asked = stats(address)
    figures = {name: each["value"] for name, each in found["figures"].items()}
    exact = {"agreement": 100, "kappa": 1, "pearson": 1, "spearman": 1, "difference": 0, "longer_shift": 0}
    # The recorded preferences are rounded to ten places.
    assert {name: figures[name] for name in exact} == pytest.approx(exact, abs=1e-5)
    assert found["win_rates"][FAST]["judge"]["value"] == pytest.approx(6.937294, abs=1e-6)
    assert (found["n"]["pairs"], found["judge_calls"]["n_calls"]) == (805, 805)
    # It says the same label whatever the order: never the same output.
    assert both["judge_calls"]["n_calls"] == 805 == both["judge_calls"]["n_cached"] == asked["hits"] - 805
    assert both["figures"]["agreement"] == found["figures"]["agreement"]
    assert both["figures"]["consistency"]["value"] < 1
