"""The page of all methods' answers to test prompts."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from sams.tables.samples import page
from tests.tables import made
from tests.tables.test_side_by_side import ATTACK, readable

STUDY = made.study(["dpo", "dpo-sams"], [0, 1])
DECODING = {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0, "max_new_tokens": 9}
ANSWERS = {
    "sft": [("plum", False), ("pear pear pear", True), ("x", False)],
    "dpo": [("plum", False), (ATTACK, False), ("", False)],
    "dpo-sams": [("plums", False), ("pear", False), ("x", False)],
}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A setting's folder; only `sft` and `dpo-sams` answered the last prompt."""
    files: dict[str, Any] = {}
    for method, given in ANSWERS.items():
        rows = [
            {"id": f"p{number}", "answer": text, "tokens": len(text.split()), "truncated": cut}
            for number, (text, cut) in enumerate(given)
        ]
        rows += [{"id": "p3", "answer": "y", "tokens": 1, "truncated": False}] * (method != "dpo")
        files[f"{method}/seed0/samples/answers.jsonl"] = rows
        files[f"{method}/seed0/samples/answers.jsonl.meta.json"] = {"decoding": DECODING}
    root = made.write(tmp_path / "results", files)
    first = {"role": "user", "content": "Which fruit?"}
    again = [first, {"role": "assistant", "content": "A plum."}, {"role": "user", "content": "Another?"}]
    pairs = {
        "id": ["p0", "p1", "p2", "p3"],
        "prompt": [[first], again, [{"role": "user", "content": ATTACK}], [{"role": "user", "content": "?"}]],
        "chosen": ["a plum", "a pear", "none", "y"],
    }
    (root / "data").mkdir()
    parquet.write_table(pa.table(pairs), root / "data/test.parquet")
    return root


def test_the_page_shows_start_methods_and_chosen_answers_of_shared_prompts(results: Path) -> None:
    said = readable(page(STUDY, results, results / "data"))
    assert "Study tiny, world, seed 0: the first 3 prompts of the test pairs." in said
    # Lengths in characters, by hand: start 4, 14, 1; dpo-sams 5, 4, 1; chosen 6, 6, 4.
    assert "mean length longest empty cut changed start 6 14 0 1 – dpo" in said
    assert f"dpo {(4 + len(ATTACK)) / 3:.0f} {len(ATTACK)} 1 0 2 dpo-sams 3 5 0 0 2 chosen 5 6 0 – –" in said
    assert "Greedy; at most 9 tokens." in said
    same = "dpo 4 characters, 1 token same answer as start plum"
    assert f"start 4 characters, 1 token plum {same} dpo-sams 5 characters, 1 token plums" in said
    assert (
        "user: Which fruit? assistant: A plum. user: Another? start 14 characters, 3 tokens, cut pear pear pear"
        in said
    )
    assert "chosen 6 characters a plum" in said


def test_answers_are_shown_and_not_run(results: Path) -> None:
    text = page(STUDY, results, results / "data")
    assert readable(text).count(" ".join(ATTACK.split())) == 2
    assert "<img" not in text and text.count("<script>") == 1


def test_methods_of_different_decoding_are_named(results: Path, tmp_path: Path) -> None:
    sampled = DECODING | {"temperature": 0.6, "top_p": 0.9, "top_k": 20}
    made.write(results, {"dpo/seed0/samples/answers.jsonl.meta.json": {"decoding": sampled}})
    text = page(STUDY, results, results / "data")
    said = readable(text)
    assert "start, dpo-sams: greedy; at most 9 tokens." in said
    assert "dpo: sampled at temperature 0.6, top-p 0.9, top-k 20; at most 9 tokens." in said
    out = tmp_path / "p.html"
    made.run_script(
        "samples_page", STUDY, results, {"html": out}, {"data": str(results / "data/manifest.json")}
    )
    assert out.read_text(encoding="utf-8") == text
