"""Mistakes in benchmark inputs, recipes and commands: each is reported in one line with a remedy."""

import json
from pathlib import Path
from typing import Any

from sams.data import prepare
from sams.scoring import fetch, questions
from sams.world.judge_prompts import judge_prompts
from tests.bad_input.refused import Case, Refused, cases, lines, refused

__all__ = ["refused"]

OUTPUT = {"instruction": "a", "output": "b", "generator": "c"}
QUESTION = {"question_id": 1, "category": "writing", "turns": ["a", "b"]}
REFERENCE = {"question_id": 1, "choices": [{"turns": ["a", "b"]}]}

INPUTS: list[Any] = [
    (
        "an output that is missing",
        {"reference_outputs": [{"instruction": "a"}]},
        "row 1: expected text at `output`",
    ),
    (
        "an instruction twice",
        {"reference_outputs": [OUTPUT, OUTPUT]},
        "row 2: the same `instruction` as in .*; drop one",
    ),
    (
        "a question without id",
        {"questions": [{"turns": ["a", "b"]}]},
        "row 1: expected an integer `question_id`; correct",
    ),
    (
        "a question twice",
        {"questions": [QUESTION, QUESTION]},
        "row 2: the same `question_id` as in .*; drop one",
    ),
    (
        "a question of one turn",
        {"questions": [{**QUESTION, "turns": ["a"]}]},
        "row 1: expected `turns` of two texts",
    ),
    (
        "a reference without answers",
        {"references": [{"question_id": 1}]},
        "row 1: expected `choices` with `turns`",
    ),
    (
        "a question without reference",
        {"questions": [{**QUESTION, "category": "math", "question_id": 2}]},
        "references: .*question 2 .math. has no reference answer; ",
    ),
    ("judge prompts that lack some", {"judge_prompts": [{"name": "x"}]}, "row 1: expected text at `type`"),
    (
        "a questions file that is not there",
        {"questions": None},
        "mt_bench.questions: no such file: .*; correct",
    ),
]


@cases(*INPUTS)
def test_benchmark_inputs(case: Case, refused: Refused, tmp_path: Path) -> None:
    files = {"questions": [QUESTION], "references": [REFERENCE], "judge_prompts": judge_prompts()} | case.made
    given = {name: str(tmp_path / f"{name}.jsonl") for name in files}
    for name, rows in files.items():
        if rows is not None:
            Path(given[name]).write_bytes(lines(*rows))
    outputs = given.pop("reference_outputs", None)
    recipe = {
        "world": None,
        "alpaca_eval": {"reference_outputs": outputs} if outputs else None,
        "mt_bench": None if outputs else given,
    }
    refused(questions.main, recipe=json.dumps(recipe), out=tmp_path / "out", says=case.says)


COMMANDS = [
    ("a recipe that is not there", ("DIR/no.json",), "no.json: no such file; give a JSON file"),
    ("a recipe that is a folder", ("DIR",), "cannot be read .*; give a JSON file"),
    ("a recipe of another stage", ('{"dta": 1}',), "--recipe: key 'data': Field required; "),
    ("a recipe that is no JSON", ("{",), "--recipe: Invalid JSON.*; "),
]


@cases(*COMMANDS)
def test_recipes(case: Case, refused: Refused, tmp_path: Path) -> None:
    [recipe] = (word.replace("DIR", str(tmp_path)) for word in case.made)
    refused(prepare.main, recipe=recipe, out=tmp_path / "out", says=case.says)


SAMS: list[Any] = [
    (
        "a stage that is not there",
        ("recipe", "train_sftt"),
        r"stage: no stage 'train_sftt'; did you mean train_sft\?; choose",
    ),
    (
        "a method that is not there",
        ("recipe", "train_preference", "--method", "x"),
        "--method: no method 'x'; the",
    ),
    (
        "a study that is not there",
        ("plan", "--study", "tabel2_hh"),
        r"did you mean table2_hh.yaml\?; name a file, or a study of the package \(baselines, ",
    ),
    ("a GPU that is not known", ("plan", "--gpu", "H1000"), "--gpu: no GPU 'H1000'; choose one of"),
    ("results that are not there", ("verify", "nowhere"), "nowhere: no such folder; give results/"),
    ("a bundle that is none", ("verify", "pyproject.toml"), "pyproject.toml: expected a name that ends in"),
    ("a grid that is not there", ("grid", "--method", "dpo"), "--method: method 'dpo' has no grid; choose"),
]


@cases(*SAMS)
def test_commands(case: Case, refused: Refused) -> None:
    refused(None, *case.made, says=case.says)


def test_a_published_file_that_is_another_one(refused: Refused, tmp_path: Path) -> None:
    refused(fetch.main, out=tmp_path / "mine.jsonl", says="--out .*: no published file has this name; one of")
