"""Answers to the prompts of the test pairs."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from sams.generation.generate import generate_answers
from sams.runtime.errors import UserError
from sams.scoring.inputs import meta_path
from sams.study.recipes import GenerateRecipe
from sams.study.settings import ModelDecoding

PROMPTS = ["sort this list", "a " * 200, "what is a", "sort this list", "reverse a b c", "a"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Prepared test pairs; the second prompt is longer than the model's context, the fourth repeats the first."""
    rows = {
        "id": [f"p{number}" for number in range(len(PROMPTS))],
        "prompt": [[{"role": "user", "content": text.strip()}] for text in PROMPTS],
        "chosen": ["yes"] * len(PROMPTS),
    }
    parquet.write_table(pa.table(rows), tmp_path / "test.parquet")
    return tmp_path


def recipe(prompts: int, **decoding: Any) -> GenerateRecipe:
    settings = ModelDecoding.model_validate(
        {"temperature": 0.0, "repetition_penalty": 1.0, "max_new_tokens": 8} | decoding
    )
    made = GenerateRecipe(
        seed=3, method="dpo", benchmark="samples", prompts=prompts, precision="float32", decoding=settings
    )
    return GenerateRecipe.model_validate_json(made.model_dump_json())  # as the job reads it


def test_the_first_different_prompts_that_fit_are_answered(model: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    meta = generate_answers(recipe(3), model, data, out)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["id"] for row in rows] == ["p0", "p2", "p4"]
    assert meta["n_truncated"] == sum(row["truncated"] for row in rows) and meta["n_answers"] == 3
    assert sum(row["tokens"] for row in rows) == meta["n_tokens"]
    assert len({row["answer"] for row in rows}) > 1
    decoding = json.loads(meta_path(out).read_text())["decoding"]
    assert (decoding["temperature"], decoding["top_k"]) == (0.0, 2), "top_k is the model's own"


def test_prompts_that_all_fill_the_context_are_named(model: Path, data: Path, tmp_path: Path) -> None:
    table = parquet.read_table(data / "test.parquet").slice(1, 1)
    parquet.write_table(table, data / "test.parquet")
    with pytest.raises(UserError, match="none of 1 prompts fits the model's context"):
        generate_answers(recipe(3), model, data, tmp_path / "answers.jsonl")
    (data / "test.parquet").unlink()
    with pytest.raises(UserError, match=r"test\.parquet: no test pairs"):
        generate_answers(recipe(3), model, data, tmp_path / "answers.jsonl")
