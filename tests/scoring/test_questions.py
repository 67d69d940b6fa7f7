"""Inputs of the benchmarks: those of the world in the packages' formats, and checks of the user's files."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from sams.runtime.errors import UserError
from sams.runtime.files import read_json, sha256_of
from sams.scoring import questions
from sams.scoring.mt_bench_inputs import PROMPTS
from sams.study.settings import World
from sams.world import examples as world
from sams.world.judge_prompts import judge_prompts

QUESTION = {"question_id": 7, "category": "math", "turns": ["One?", "Two?"]}
REFERENCE = {"question_id": 7, "model_id": "someone", "choices": [{"index": 0, "turns": ["1", "2"]}]}
OUTPUT = {"instruction": "Why?", "output": "So.", "generator": "someone", "dataset": "own"}


def run(out: Path, **recipe: Any) -> Path:
    world = recipe.pop("world", None)
    questions.main(json.dumps({"world": world, "benchmarks": recipe}), out)
    return out


def lines(file: Path) -> list[Any]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def write(file: Path, *rows: Any) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def test_the_worlds_own(tmp_path: Path) -> None:
    out = run(tmp_path / "q", world={}, alpaca_eval={}, mt_bench={})
    assert read_json(out / "alpaca_eval.json") == world.baseline_outputs(World())
    assert lines(out / "mt_bench_questions.jsonl") == world.mt_bench_questions(World())
    assert lines(out / "mt_bench_references.jsonl") == world.mt_bench_references(World())
    assert len(lines(out / "judge_prompts.jsonl")) == 4
    assert set(read_json(out / "source.json")) == {
        "alpaca_eval.json",
        "mt_bench_questions.jsonl",
        "mt_bench_references.jsonl",
        "judge_prompts.jsonl",
    }


def test_a_benchmark_that_is_left_out_has_no_files(tmp_path: Path) -> None:
    assert {file.name for file in run(tmp_path / "a", world={}, alpaca_eval={}).iterdir()} == {
        "alpaca_eval.json",
        "source.json",
        "environment.json",
        "manifest.json",
    }
    assert not (run(tmp_path / "b", world={}, mt_bench={}) / "alpaca_eval.json").exists()
    assert {file.name for file in run(tmp_path / "c").iterdir()} == {
        "source.json",
        "environment.json",
        "manifest.json",
    }


def test_files_are_taken_as_they_are(tmp_path: Path) -> None:
    outputs = tmp_path / "outputs.json.gz"
    outputs.write_bytes(gzip.compress(json.dumps([OUTPUT, OUTPUT | {"instruction": "Who?"}]).encode()))
    mt_bench = {
        "questions": write(tmp_path / "q.jsonl", QUESTION, QUESTION | {"question_id": 8, "category": "stem"}),
        "references": write(tmp_path / "r.jsonl", REFERENCE),
        "judge_prompts": write(tmp_path / "p.jsonl", *judge_prompts()),
    }
    out = run(tmp_path / "q", alpaca_eval={"reference_outputs": str(outputs)}, mt_bench=mt_bench)
    assert [row["instruction"] for row in read_json(out / "alpaca_eval.json")] == ["Why?", "Who?"]
    assert lines(out / "mt_bench_questions.jsonl")[0] == QUESTION
    assert lines(out / "mt_bench_references.jsonl") == [REFERENCE]
    given = read_json(out / "source.json")
    assert given["alpaca_eval.json"] == {"file": str(outputs), "sha256": sha256_of(outputs)}


def test_the_published_files(tmp_path: Path, shared_data: Path) -> None:
    common = shared_data / "mt_bench" / "common"
    mt_bench = {
        "questions": str(common / "question.jsonl"),
        "references": str(common / "reference_answer" / "gpt-4.jsonl"),
        "judge_prompts": str(common / "judge_prompts.jsonl"),
    }
    outputs = shared_data / "alpaca_eval" / "common" / "gpt4_1106_preview.model_outputs.json.gz"
    out = run(tmp_path / "q", alpaca_eval={"reference_outputs": str(outputs)}, mt_bench=mt_bench)
    assert len(read_json(out / "alpaca_eval.json")) == 805
    assert len(lines(out / "mt_bench_questions.jsonl")) == 80
    assert len(lines(out / "mt_bench_references.jsonl")) == 30


def test_judge_prompts_have_fastchats_placeholders_and_give_the_texts_back() -> None:
    prompts = {prompt["name"]: prompt for prompt in judge_prompts()}
    assert set(prompts) == {*PROMPTS}
    texts = {
        "single-v1": ["question", "answer"],
        "single-math-v1": ["question", "ref_answer_1", "answer"],
        "single-v1-multi-turn": ["question_1", "answer_1", "question_2", "answer_2"],
        "single-math-v1-multi-turn": [
            *("question_1", "ref_answer_1", "question_2", "ref_answer_2"),
            *("question_1", "answer_1", "question_2", "answer_2"),
        ],
    }
    for name, keys in texts.items():
        prompt = prompts[name]
        assert set(prompt) == {
            *("name", "type", "system_prompt", "prompt_template"),
            *("description", "category", "output_format"),
        }
        assert prompt["type"] == "single" and prompt["output_format"] == "[[rating]]"
        filled = prompt["prompt_template"].format(**{key: f"@{key}@" for key in keys})
        assert filled.split("@")[1::2] == keys, "each text once, in order, between marks"


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    (
        "no world, no outputs",
        {"alpaca_eval": {}},
        "benchmarks.alpaca_eval.reference_outputs: a file is required",
    ),
    ("no world, no questions", {"mt_bench": {}}, "benchmarks.mt_bench.questions: a file is required"),
    (
        "missing file",
        {"alpaca_eval": {"reference_outputs": "nowhere.json"}},
        "benchmarks.alpaca_eval.reference_outputs: nowhere.json: no such file",
    ),
    (
        "questions alone",
        {"world": {}, "mt_bench": {"questions": [QUESTION]}},
        "benchmarks.mt_bench.references: questions and references belong together",
    ),
    (
        "references alone",
        {"world": {}, "mt_bench": {"references": [REFERENCE]}},
        "benchmarks.mt_bench.questions: questions and references belong together",
    ),
    (
        "no judge prompts",
        {"mt_bench": {"questions": [QUESTION], "references": [REFERENCE]}},
        "benchmarks.mt_bench.judge_prompts: a file is required",
    ),
    (
        "a judge prompt lacks",
        {"world": {}, "mt_bench": {"judge_prompts": judge_prompts()[:3]}},
        r"benchmarks.mt_bench.judge_prompts: .*: has no prompt 'single-math-v1-multi-turn'",
    ),
    (
        "no generator",
        {"alpaca_eval": {"reference_outputs": [OUTPUT, {"instruction": "Who?", "output": "Me."}]}},
        "row 2, key 'generator': expected text, found nothing",
    ),
    (
        "an instruction twice",
        {"alpaca_eval": {"reference_outputs": [OUTPUT, OUTPUT]}},
        "1 instructions occur more than once: 'Why\\?'; give one row per instruction",
    ),
    ("empty", {"alpaca_eval": {"reference_outputs": []}}, "the data has no row"),
    (
        "an id of text",
        {"mt_bench": {"questions": [QUESTION | {"question_id": "7"}], "references": [REFERENCE]}},
        "row 1, key 'question_id': expected an integer, found '7'",
    ),
    (
        "one turn",
        {"mt_bench": {"questions": [QUESTION | {"turns": ["One?"]}], "references": [REFERENCE]}},
        r"row 1, key 'turns': expected 2 texts, found \['One\?'\]",
    ),
    (
        "a reference without choices",
        {"mt_bench": {"questions": [QUESTION], "references": [{"question_id": 7, "choices": []}]}},
        "row 1, key 'choices': expected a list with the answer's turns",
    ),
    (
        "a question without its reference",
        {
            "world": {},
            "mt_bench": {"questions": [QUESTION | {"question_id": 9}], "references": [REFERENCE]},
        },
        "has no reference answer to questions 9",
    ),
]


@pytest.mark.parametrize(
    ("recipe", "message"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED]
)
def test_refused(recipe: dict[str, Any], message: str, tmp_path: Path) -> None:
    for benchmark in ("alpaca_eval", "mt_bench"):
        for key, rows in (recipe.get(benchmark) or {}).items():
            if isinstance(rows, list):
                benchmark_settings = recipe[benchmark] | {key: write(tmp_path / f"{key}.jsonl", *rows)}
                recipe = recipe | {benchmark: benchmark_settings}
    with pytest.raises(UserError, match=message) as error:
        run(tmp_path / "out" / "q", **recipe)
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "out").iterdir()), "nothing half-written is left"
