import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from sams.generation import decode
from sams.generation.facts import model_digest, parts_path
from sams.generation.generate import generate_answers
from sams.runtime.errors import UserError
from sams.runtime.files import manifest_digest, write_manifest
from sams.scoring.inputs import meta_path
from sams.study.recipes import GenerateRecipe
from sams.study.settings import Decoding


def recipe(benchmark: str, **decoding: Any) -> GenerateRecipe:
    return GenerateRecipe(
        seed=3,
        method="dpo",
        benchmark=benchmark,  # type: ignore[arg-type]
        precision="float32",
        decoding=Decoding.model_validate({"max_new_tokens": 8} | decoding),
    )


def test_alpaca_eval_answers_come_in_its_form_and_order(model: Path, questions: Path, tmp_path: Path) -> None:
    out = tmp_path / "answers.json"
    meta = generate_answers(recipe("alpaca_eval"), model, questions, out)
    asked = json.loads((questions / "alpaca_eval.json").read_text())
    rows = json.loads(out.read_text())
    assert [row["instruction"] for row in rows] == [row["instruction"] for row in asked]
    assert [row["dataset"] for row in rows] == [row["dataset"] for row in asked]
    assert {tuple(row) for row in rows} == {("instruction", "output", "generator", "dataset")}
    assert {row["generator"] for row in rows} == {"dpo-seed3"}
    assert json.loads(meta_path(out).read_text()) == meta
    assert (meta["n_answers"], meta["recipe"]["seed"], meta["device"]) == (20, 3, "cpu")
    assert meta["stop_token_ids"] == [2] and 20 < meta["n_tokens"] <= 160
    assert (meta["n_resumed"], meta["recipe"]["decoding"]["max_new_tokens"]) == (0, 8)
    assert meta["model"] == model_digest(model) and set(meta["versions"]) >= {"torch", "transformers"}
    assert 0 < meta["n_truncated"] == len(meta["truncated"]) and set(meta["truncated"]) <= {
        f"row {number}" for number in range(1, 21)
    }
    assert not parts_path(out).exists()

    generate_answers(recipe("alpaca_eval"), model, questions, tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == out.read_bytes()


def test_mt_bench_second_turns_see_the_first_answer(
    model: Path, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, list[tuple[Any, float]]] = {}
    answer = decode.Decoder.answer

    def listen(self: Any, conversations: Any, temperatures: Any, label: str) -> Any:
        copies = [[dict(message) for message in conversation] for conversation in conversations]
        asked[label] = list(zip(copies, temperatures, strict=True))
        return answer(self, conversations, temperatures, label)

    monkeypatch.setattr(decode.Decoder, "answer", listen)
    out = tmp_path / "answers.jsonl"
    settings = recipe("mt_bench", temperature=0.9, category_temperatures={"math": 0.0, "writing": 0.7})
    meta = generate_answers(settings, model, questions, out)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    given = [json.loads(line) for line in (questions / "mt_bench_questions.jsonl").read_text().splitlines()]
    assert meta["n_answers"] == 160 and len(rows) == 80
    for row, question, (second, temperature) in zip(rows, given, asked["mt_bench turn 2"], strict=True):
        assert row["question_id"] == question["question_id"] and row["model_id"] == "dpo-seed3"
        [choice] = row["choices"]
        assert [message["content"] for message in second] == [
            question["turns"][0],
            choice["turns"][0],
            question["turns"][1],
        ]
        assert [message["role"] for message in second] == ["user", "assistant", "user"]
        assert temperature == {"math": 0.0, "writing": 0.7}.get(question["category"], 0.9)
    assert len({row["answer_id"] for row in rows}) == 80

    again = tmp_path / "again.jsonl"
    generate_answers(settings, model, questions, again)
    assert again.read_bytes() == out.read_bytes()


def test_several_samples_are_choices_of_their_own(model: Path, questions: Path, tmp_path: Path) -> None:
    settings = {"temperature": 1.0, "category_temperatures": {"math": 0.0}, "max_new_tokens": 4}

    def choices(samples: int) -> list[Any]:
        out = tmp_path / "answers.jsonl"
        meta = generate_answers(recipe("mt_bench", samples=samples, **settings), model, questions, out)
        assert meta["n_answers"] == 160 * samples
        return [json.loads(line)["choices"] for line in out.read_text().splitlines()]

    asked = [json.loads(line) for line in (questions / "mt_bench_questions.jsonl").read_text().splitlines()]
    one, three = choices(1), choices(3)
    for question, [alone], found in zip(asked, one, three, strict=True):
        assert found[0] == alone
        assert [choice["index"] for choice in found] == [0, 1, 2]
        dialogues = {tuple(choice["turns"]) for choice in found}
        assert len(dialogues) == (1 if question["category"] == "math" else 3)
    first = generate_answers(recipe("alpaca_eval"), model, questions, tmp_path / "one.json")
    generate_answers(recipe("alpaca_eval", samples=3), model, questions, tmp_path / "three.json")
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "three.json").read_bytes()
    assert first["n_answers"] == 20


def test_a_model_is_known_by_its_files(model: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(model, tmp_path / "copy")
    assert model_digest(copy) == model_digest(model)
    (copy / "config.json").write_text("{}")
    assert model_digest(copy) != model_digest(model)
    write_manifest(copy)
    assert model_digest(copy) == manifest_digest(copy)  # a sealed folder's manifest stands for it
    (copy / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"model\.safetensors"):
        model_digest(copy)


@pytest.mark.parametrize(
    ("benchmark", "name", "content", "problem"),
    [
        ("alpaca_eval", "alpaca_eval.json", '[{"dataset": "d"}]', "row 1, key 'instruction'"),
        (
            "mt_bench",
            "mt_bench_questions.jsonl",
            '{"question_id": 1, "category": "c", "turns": "t"}',
            "row 1, key 'turns'",
        ),
        (
            "mt_bench",
            "mt_bench_questions.jsonl",
            '{"question_id": 1, "turns": ["t"]}',
            "row 1, key 'category'",
        ),
        ("mt_bench", "elsewhere.jsonl", "{}", "mt_bench_questions.jsonl: no such file"),
    ],
)
def test_bad_questions_are_named_before_a_model_is_loaded(
    tmp_path: Path, benchmark: str, name: str, content: str, problem: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=problem):
        generate_answers(recipe(benchmark), tmp_path / "no-model", tmp_path, tmp_path / "answers.json")
