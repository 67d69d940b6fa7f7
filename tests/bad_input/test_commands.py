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
REFERENCE = {"question_id": 1, "model_id": "someone", "choices": [{"turns": ["a", "b"]}]}
PROMPT, *PROMPTS = judge_prompts()


def template(old: str, new: str) -> dict[str, Any]:
    """Judge prompts, the first of them edited."""
    return {
        "judge_prompts": [
            {**PROMPT, "prompt_template": PROMPT["prompt_template"].replace(old, new)},
            *PROMPTS,
        ]
    }


INPUTS: list[Any] = [
    (
        "an output that is missing",
        {"reference_outputs": [{"instruction": "a"}]},
        "reference_outputs: .*row 1, key 'output': expected text, found nothing; correct",
    ),
    (
        "an instruction twice",
        {"reference_outputs": [OUTPUT, OUTPUT]},
        "1 instructions occur more than once: 'a'; give",
    ),
    (
        "baselines that are all empty",
        {"reference_outputs": [{**OUTPUT, "output": " "}]},
        "all outputs are empty",
    ),
    (
        "a part of the official baseline",
        {"reference_outputs": [{**OUTPUT, "generator": "gpt4_1106_preview"}]},
        "its 1 instructions are not AlpacaEval's 805 in their order; use",
    ),
    (
        "half a character",
        {"reference_outputs": [{**OUTPUT, "output": "\ud800"}]},
        "row 1: .*half a surrogate pair",
    ),
    (
        "a question without id",
        {"questions": [{"turns": ["a", "b"]}]},
        "row 1, key 'question_id': expected an integer, found None; correct",
    ),
    (
        "a question twice",
        {"questions": [QUESTION, QUESTION]},
        "questions occur more than once: 1; drop",
    ),
    (
        "a question of one turn",
        {"questions": [{**QUESTION, "turns": ["a"]}]},
        "row 1, key 'turns': expected 2 texts",
    ),
    (
        "a category in capitals",
        {"questions": [{**QUESTION, "category": "Math"}]},
        r"row 1, key 'category': unknown category 'Math'; did you mean 'math'\?",
    ),
    (
        "a reference without answers",
        {"references": [{"question_id": 1}]},
        "row 1, key 'choices': expected a list with the answer's turns",
    ),
    (
        "a reference of nobody",
        {"references": [{key: value for key, value in REFERENCE.items() if key != "model_id"}]},
        "references: .*row 1, key 'model_id': expected text, found nothing; correct",
    ),
    (
        "a question without reference",
        {"questions": [{**QUESTION, "category": "math", "question_id": 2}]},
        "references: .*has no reference answer to questions 2; ",
    ),
    ("judge prompts that lack some", {"judge_prompts": PROMPTS}, "has no prompt 'single-v1'; add"),
    (
        "a judge prompt twice",
        {"judge_prompts": [PROMPT, PROMPT, *PROMPTS]},
        "row 2: a second prompt single-v1; drop",
    ),
    (
        "a judge prompt without the answer",
        template("{answer}", ""),
        r"judge_prompts: .*, prompt single-v1: the template has no \{answer\}; correct",
    ),
    (
        "a judge prompt with JSON",
        template("{answer}", '{answer} {"rating": 1}'),
        "unknown placeholder .*doubled; ",
    ),
    (
        "a judge prompt with a brace",
        template("{answer}", "{answer} {"),
        "single-v1: .*braces .* must be doubled; ",
    ),
    (
        "a questions file that is not there",
        {"questions": None},
        "mt_bench.questions: .*: no such file; correct",
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
    chosen = {"alpaca_eval": {"reference_outputs": outputs}} if outputs else {"mt_bench": given}
    recipe = {"world": None, "benchmarks": chosen}
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
