"""Killed runs: decoded batches are not decoded again, and the answers are those of an undisturbed run."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sams.generation.engines import TransformersEngine
from sams.generation.facts import parts_path
from sams.generation.generate import generate_answers
from sams.generation.shards import Shards
from sams.scoring.inputs import meta_path
from sams.study.recipes import GenerateRecipe, recipe_json
from sams.study.settings import Decoding
from tests.conftest import ROOT

# Batches of an undisturbed run, of which the killed one finishes all but the torn one.
# 20 instructions by 6; 80 questions by 32 at two temperatures (70 and 10) in each of two turns.
BATCHES = {"alpaca_eval": 4, "mt_bench": 8}
TORN = {"alpaca_eval": 3, "mt_bench": 6}  # MT-Bench dies in the second turn
FILES = {"alpaca_eval": "answers.json", "mt_bench": "answers.jsonl"}


def recipe(benchmark: Any, **settings: Any) -> GenerateRecipe:
    decoding: dict[str, Any] = {
        "temperature": 1.0,
        "max_new_tokens": 6,
        "batch_size": 6 if benchmark == "alpaca_eval" else 32,
        "category_temperatures": {"math": 0.0},
    }
    return GenerateRecipe(
        seed=1,
        method="dpo",
        benchmark=benchmark,
        precision="float32",
        decoding=Decoding.model_validate(decoding | settings),
    )


@pytest.fixture(scope="module")
def killed(model: Path, questions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a run of each benchmark has been killed."""
    folder = tmp_path_factory.mktemp("killed")
    runs = [
        {
            "recipe": recipe_json(recipe(benchmark)),
            "paths": {"model": str(model), "questions": str(questions), "out": str(folder / name)},
            "batches": TORN[benchmark],
        }
        for benchmark, name in FILES.items()
    ]
    command = [sys.executable, "-m", "tests.generation.crash", json.dumps(runs)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["-9", "-9"], done.stderr
    return folder


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the batches that are decoded."""
    sizes: list[int] = []
    generate = TransformersEngine.generate

    def counted(self: Any, prompts: Any, temperature: float, seed: int) -> Any:
        sizes.append(len(prompts))
        return generate(self, prompts, temperature, seed)

    monkeypatch.setattr(TransformersEngine, "generate", counted)
    return sizes


@pytest.mark.parametrize("benchmark", FILES)
def test_a_killed_run_goes_on_to_the_same_answers(
    benchmark: str, killed: Path, model: Path, questions: Path, tmp_path: Path, decoded: list[int]
) -> None:
    whole, out = tmp_path / FILES[benchmark], killed / FILES[benchmark]
    undisturbed = generate_answers(recipe(benchmark), model, questions, whole)
    assert (len(decoded), undisturbed["n_resumed"]) == (BATCHES[benchmark], 0)
    assert parts_path(out).exists() and not out.exists() and not meta_path(out).exists()

    del decoded[:]
    meta = generate_answers(recipe(benchmark), model, questions, out)
    assert len(decoded) == BATCHES[benchmark] - (TORN[benchmark] - 1)
    assert meta["n_resumed"] == meta["n_answers"] - sum(decoded)
    assert out.read_bytes() == whole.read_bytes()
    timed = {"n_resumed": 0, "seconds": 0.0}
    assert meta | timed == undisturbed | timed
    assert not parts_path(out).exists()


def test_other_settings_another_model_and_other_questions_start_afresh(
    model: Path, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As if each run were killed before its answers were written.
    monkeypatch.setattr(Shards, "remove", lambda self: None)
    parts, out = tmp_path / "parts", tmp_path / "answers.json"

    def resumed(settings: GenerateRecipe, folder: Path = model, asked: Path = questions) -> int:
        return generate_answers(settings, folder, asked, out, parts)["n_resumed"]

    assert resumed(recipe("alpaca_eval")) == 0
    assert resumed(recipe("alpaca_eval")) == 20
    assert resumed(recipe("alpaca_eval", temperature=0.9)) == 0
    assert resumed(recipe("alpaca_eval")) == 0
    other = shutil.copytree(model, tmp_path / "other")
    (other / "README.md").write_text("another")
    assert resumed(recipe("alpaca_eval"), folder=other) == 0
    turned = tmp_path / "turned"
    turned.mkdir()
    rows = json.loads((questions / "alpaca_eval.json").read_text())
    (turned / "alpaca_eval.json").write_text(json.dumps(rows[::-1]))
    assert resumed(recipe("alpaca_eval"), folder=other, asked=turned) == 0
    assert resumed(recipe("alpaca_eval"), folder=other, asked=turned) == 20


def test_what_is_half_written_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "parts"
    facts = {"a": 1.5, "b": ["\u2028"]}
    shards = Shards(path, facts)
    assert not path.exists() and shards.get("one") is None
    shards.put("one", ["first\nline"])
    shards.put("two", ["zwei \u2028 ü"])
    whole = path.read_bytes()

    again = Shards(path, facts)
    assert (again.get("one"), again.get("two")) == (["first\nline"], ["zwei \u2028 ü"])
    third = whole.splitlines(keepends=True)[-1]
    for end in range(len(whole) - len(third), len(whole)):
        path.write_bytes(whole[:end])
        torn = Shards(path, facts)
        assert (torn.get("one"), torn.get("two")) == (["first\nline"], None)
        torn.put("two", ["zwei \u2028 ü"])
        assert path.read_bytes() == whole
    for end in range(len(whole.splitlines(keepends=True)[0])):
        path.write_bytes(whole[:end])
        assert Shards(path, facts).get("one") is None

    path.write_bytes(whole)
    other = Shards(path, facts | {"a": 2})
    assert other.get("one") is None
    other.put("one", [])
    assert Shards(path, facts).get("two") is None
    other.remove()
    assert not path.exists()
