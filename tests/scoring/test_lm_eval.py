"""Tasks of lm-eval: figures of its results, checks before a run, and the harness itself where it is installed."""

import json
import statistics
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from sams.launch.preflight import check_lm_eval
from sams.runtime.errors import UserError
from sams.scoring.lm_eval import BENCHMARK, check_tasks, figures_of, items_of, main, readable
from sams.study.recipes import LmEvalRecipe
from sams.study.settings import LmEval
from sams.tables.main_table import main_table
from sams.tables.results import Cell
from tests.generation.conftest import make_model
from tests.study.test_config import tiny_study

INSTALLED = find_spec("lm_eval") is not None


def sample(item: int, chosen: str, **scores: Any) -> dict[str, Any]:
    return {"doc_id": item, "doc_hash": f"{item:064x}", "filter": chosen, **scores}


# As lm-eval 0.4.13 returns them, without what is not read.
RESULTS: dict[str, Any] = {
    "results": {
        "gsm8k": {
            "alias": "gsm8k",
            "exact_match,strict-match": 0.25,
            "exact_match_stderr,strict-match": "N/A",
            "exact_match,flexible-extract": 0.75,
            "exact_match_stderr,flexible-extract": "N/A",
        },
        "mmlu": {"alias": "mmlu", "acc,none": 0.5, "acc_stderr,none": "N/A"},
        "mmlu_law": {"alias": " - law", "acc,none": 0.5, "acc_stderr,none": "N/A"},
    },
    "group_subtasks": {"mmlu": ["mmlu_law"]},
    "samples": {
        "gsm8k": [
            sample(item, chosen, exact_match=float(right))
            for chosen, found in (("strict-match", "1000"), ("flexible-extract", "1101"))
            for item, right in enumerate(found)
        ],
        "mmlu_law": [sample(0, "none", acc=0.5)],
    },
}


def test_a_task_shows_its_first_metric_or_the_one_that_is_set() -> None:
    items = dict(items_of(RESULTS, {}))
    assert list(items["gsm8k"].values()) == [100.0, 0.0, 0.0, 0.0] and items.keys() == {"gsm8k"}
    figures = figures_of(RESULTS, {}, items)
    assert figures["gsm8k"] == 25.0
    assert figures["gsm8k_se"] == pytest.approx(statistics.stdev([100, 0, 0, 0]) / 2)
    assert figures["mmlu"] == 50.0 and "mmlu_law" not in figures and "mmlu_se" not in figures
    assert figures["tasks"]["gsm8k"] == {"metric": "exact_match,strict-match", "n": 4}

    chosen = {"gsm8k": "exact_match,flexible-extract"}
    assert figures_of(RESULTS, chosen, dict(items_of(RESULTS, chosen)))["gsm8k"] == 75.0
    with pytest.raises(
        UserError, match=r"gsm8k has no metric 'exact_match'.*choose one of exact_match,strict"
    ):
        figures_of(RESULTS, {"gsm8k": "exact_match"}, {})


def test_tasks_are_columns_of_the_main_table() -> None:
    cells = {
        Cell("sft", 0, "lm_eval"): {"gsm8k": 25.0, "gsm8k_se": 2.0, "tasks": {"gsm8k": {}}},
        Cell("dpo", 0, "lm_eval"): {"gsm8k": 20.0, "gsm8k_se": 1.5, "tasks": {"gsm8k": {}}},
    }
    table = main_table(cells, ["sft", "dpo"], [0])
    assert list(table["lm_eval_gsm8k"]) == [25.0, 20.0] and list(table["lm_eval_gsm8k_se_items"]) == [
        2.0,
        1.5,
    ]
    assert "lm_eval_gsm8k" not in main_table({}, ["sft"], [0])


def test_results_are_written_without_functions() -> None:
    written = readable({"a": len, "b": (1, float("nan")), 3: [True, None, "x"]})
    assert json.loads(json.dumps(written)) == {"a": str(len), "b": [1, None], "3": [True, None, "x"]}


@pytest.mark.skipif(INSTALLED, reason="lm-eval is installed")
def test_a_missing_package_is_named_with_the_command_that_installs_it() -> None:
    with pytest.raises(
        UserError, match=r"benchmarks\.lm_eval: lm-eval is not installed; `pip install 'lm-eval"
    ):
        check_lm_eval(tiny_study(benchmarks__lm_eval={"tasks": ["ifeval"]}))


# --- the harness ------------------------------------------------------------------------------------

ROWS = [("what is a", "a"), ("sort this list", "which"), ("reverse a b c", "a"), ("a", "which")]
CHOICES = ["a", "which"]
TASK = """
task: fruit
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
doc_to_choice: ["a", "which"]
metric_list: [{{metric: acc}}]
"""


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A folder with a task of four questions."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    lines = [json.dumps({"question": question, "answer": CHOICES.index(answer)}) for question, answer in ROWS]
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "fruit.yaml").write_text(TASK.format(rows=folder / "rows.jsonl"))
    return folder


@torch.no_grad()
def right(folder: Path, question: str, answer: str) -> float:
    """Whether transformers gives the right choice the larger log-prob after the templated question."""
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt"
    )["input_ids"]
    logits = model(input_ids=ids).logits[0, -1]
    first, second = (logits[tokenizer.convert_tokens_to_ids(choice)] for choice in CHOICES)
    return float((first > second) == (answer == CHOICES[0]))


@pytest.mark.skipif(not INSTALLED, reason="lm-eval is not installed (extra lm-eval)")
def test_the_harness_scores_an_own_task_as_transformers_does(tasks: Path, tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    settings = LmEval(tasks=["fruit"], include_path=str(tasks), batch_size=2)
    recipe = LmEvalRecipe(precision="float32", lm_eval=settings)
    out, items, results = (tmp_path / name for name in ("metrics.json", "items.jsonl", "results.json"))
    main(model, recipe.model_dump_json(), out, items, results)
    expected = [100 * right(model, *row) for row in ROWS]
    assert list(BENCHMARK.items(items)["lm_eval_fruit"].values()) == expected
    found = json.loads(out.read_text())
    assert found["fruit"] == statistics.fmean(expected) and found["tasks"]["fruit"]["n"] == 4
    assert json.loads(results.read_text())["results"]["fruit"]["acc,none"] == statistics.fmean(expected) / 100
    with pytest.raises(
        UserError, match=r"lm_eval\.tasks: lm-eval has no task 'fruits'; did you mean fruit\?"
    ):
        check_tasks(LmEval(tasks=["fruits"], include_path=str(tasks)))
    (tasks / "rows.jsonl").unlink()
    with pytest.raises(UserError, match="the data of fruit cannot be read: "):
        check_tasks(settings)
