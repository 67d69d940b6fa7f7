"""Stage `generate_answers`: a model's answers to AlpacaEval's instructions or MT-Bench's questions.

    python -m sams.generation.generate --recipe recipe.json --model R/dpo/seed0/model \
        --questions R/questions --out answers.json

AlpacaEval's answers are a JSON list {instruction, output, generator, dataset} in the order of the questions,
MT-Bench's JSON lines in FastChat's answer form. Beside them, <answers>.meta.json holds the recipe, the
model's digest and what was decoded.
"""

import hashlib
import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sams.errors import UserError
from sams.files import MANIFEST, canonical_json, manifest_digest, sha256_of, whole_file, write_json
from sams.recipes import GenerateRecipe
from sams.scoring.inputs import Row, read_json_lines, read_json_rows, text_of, versions
from sams.stage import read_recipe, run

if TYPE_CHECKING:
    from sams.generation.decode import Answer, Decoder

log = logging.getLogger("generate")

ALPACA_EVAL_QUESTIONS = "alpaca_eval.json"
MT_BENCH_QUESTIONS = "mt_bench_questions.jsonl"


def generate_answers(recipe: GenerateRecipe, model: Path, questions: Path, out: Path) -> dict[str, Any]:
    """Answer a benchmark's questions and write the answers.

    Args:
        recipe: benchmark, decode settings and seed; `method` and `seed` name the answers' model.
        model: exported model folder.
        questions: folder with the benchmark's questions.
        out: where the answers go.

    Returns:
        What is written to <out>.meta.json.

    Raises:
        UserError: unreadable questions or model, or a prompt that does not fit the model.
    """
    from sams.generation.decode import Decoder

    read, answer, write = {
        "alpaca_eval": (read_instructions, answer_instructions, write_json),
        "mt_bench": (read_questions, answer_questions, _write_json_lines),
    }[recipe.benchmark]
    asked, source = read(questions)
    decoder = Decoder(model, recipe.precision, recipe.decoding, recipe.seed)
    name = f"{recipe.method}-seed{recipe.seed}"
    started = time.monotonic()
    rows, answers = answer(decoder, asked, name)
    meta = {
        "recipe": recipe.model_dump(mode="json"),
        "model": model_digest(model),
        "questions": sha256_of(source),
        "stop_token_ids": decoder.stop_ids,
        "device": decoder.device,
        "n_answers": len(answers),
        "n_empty": sum(not found.text for found in answers),
        "n_truncated": sum(found.truncated for found in answers),
        "n_tokens": sum(found.tokens for found in answers),
        "seconds": round(time.monotonic() - started, 3),
        "versions": versions("torch", "transformers", "tokenizers"),
    }
    write(out, rows)
    write_json(meta_path(out), meta)
    return meta


def meta_path(answers: Path) -> Path:
    """Where the facts about a file of answers are: <answers>.meta.json."""
    return answers.with_name(f"{answers.name}.meta.json")


def model_digest(folder: Path) -> str:
    """Sixteen hex digits that stand for a model folder: by its manifest, or else by its files' content."""
    if (folder / MANIFEST).exists():
        return manifest_digest(folder)
    files = {path.name: sha256_of(path) for path in sorted(folder.glob("*")) if path.is_file()}
    return hashlib.sha256(canonical_json(files).encode()).hexdigest()[:16]


# --- AlpacaEval -----------------------------------------------------------------------------------


def read_instructions(folder: Path) -> tuple[list[Row], Path]:
    """AlpacaEval's rows {instruction, dataset}, in order, and their file."""
    path = folder / ALPACA_EVAL_QUESTIONS
    rows = read_json_rows(path)
    for number, row in enumerate(rows, start=1):
        text_of(row, "instruction", f"{path}, row {number}")
    return rows, path


def answer_instructions(
    decoder: "Decoder", rows: Sequence[Row], name: str
) -> tuple[list[Row], list["Answer"]]:
    """Answers in AlpacaEval's form, in the order of the rows."""
    conversations = [[_user(row["instruction"])] for row in rows]
    answers = decoder.answer(conversations, [decoder.decoding.temperature] * len(rows), "alpaca_eval")
    outputs = [
        {
            "instruction": row["instruction"],
            "output": answer.text,
            "generator": name,
            "dataset": row.get("dataset", ""),
        }
        for row, answer in zip(rows, answers, strict=True)
    ]
    return outputs, answers


# --- MT-Bench -------------------------------------------------------------------------------------


def read_questions(folder: Path) -> tuple[list[Row], Path]:
    """MT-Bench's rows {question_id, category, turns}, and their file."""
    path = folder / MT_BENCH_QUESTIONS
    rows = read_json_lines(path)
    for number, row in enumerate(rows, start=1):
        where = f"{path}, line {number}"
        text_of(row, "category", where)
        turns = row.get("turns")
        if not (isinstance(turns, list) and turns and all(isinstance(turn, str) for turn in turns)):
            raise UserError(f"expected a list of texts, found {turns!r:.60}", where=f"{where}, key 'turns'")
    return rows, path


def answer_questions(decoder: "Decoder", rows: Sequence[Row], name: str) -> tuple[list[Row], list["Answer"]]:
    """Answers in FastChat's form: each turn sees the questions so far and the model's own answers to them."""
    settings = decoder.decoding
    temperatures = [settings.category_temperatures.get(row["category"], settings.temperature) for row in rows]
    conversations: list[list[dict[str, str]]] = [[] for _ in rows]
    said: list[Answer] = []
    for turn in range(max(len(row["turns"]) for row in rows)):
        asked = [index for index, row in enumerate(rows) if turn < len(row["turns"])]
        for index in asked:
            conversations[index].append(_user(rows[index]["turns"][turn]))
        answers = decoder.answer(
            [conversations[index] for index in asked],
            [temperatures[index] for index in asked],
            f"mt_bench turn {turn + 1}",
        )
        for index, answer in zip(asked, answers, strict=True):
            conversations[index].append({"role": "assistant", "content": answer.text})
        said += answers
    now = time.time()
    return [
        _fastchat_row(row, name, conversation, now)
        for row, conversation in zip(rows, conversations, strict=True)
    ], said


def _fastchat_row(question: Row, name: str, conversation: list[dict[str, str]], now: float) -> Row:
    turns = [message["content"] for message in conversation if message["role"] == "assistant"]
    content = canonical_json([question["question_id"], name, turns])
    return {
        "question_id": question["question_id"],
        "answer_id": hashlib.sha256(content.encode()).hexdigest()[:22],
        "model_id": name,
        "choices": [{"index": 0, "turns": turns}],
        "tstamp": now,
    }


def _user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def _write_json_lines(path: Path, rows: Sequence[Row]) -> None:
    with whole_file(path) as part, part.open("w", encoding="utf-8") as stream:
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")


# --- command line ---------------------------------------------------------------------------------


def main(
    recipe: Annotated[str, typer.Option(help="GenerateRecipe, as JSON or a file.")],
    model: Annotated[Path, typer.Option(help="Exported model folder.")],
    questions: Annotated[Path, typer.Option(help="Folder with the benchmark's questions.")],
    out: Annotated[Path, typer.Option(help="Where the answers go.")],
) -> None:
    """Answer a benchmark's questions."""
    meta = generate_answers(read_recipe(recipe, GenerateRecipe), model, questions, out)
    log.info(
        "%d answers in %.1f s, %d cut off, %d empty",
        meta["n_answers"],
        meta["seconds"],
        meta["n_truncated"],
        meta["n_empty"],
    )


if __name__ == "__main__":
    run(main)
