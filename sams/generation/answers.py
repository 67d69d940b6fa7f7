"""Sets of questions: read them, and answer them in the form that their readers expect.

A further set is a function that reads its rows, one that answers them, and an entry in `SETS`.
"""

import hashlib
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sams.data.prompts import TEST_PAIRS, test_prompts
from sams.data.records import Message
from sams.generation.facts import sample_label
from sams.runtime.errors import UserError
from sams.runtime.files import canonical_json, write_json
from sams.runtime.jsonl import write_lines
from sams.scoring.inputs import Row, read_json_lines, read_json_rows, text_of

if TYPE_CHECKING:
    from sams.generation.decode import Answer, Decoder

ALPACA_EVAL_QUESTIONS = "alpaca_eval.json"
MT_BENCH_QUESTIONS = "mt_bench_questions.jsonl"


# --- AlpacaEval -----------------------------------------------------------------------------------


def read_instructions(folder: Path) -> tuple[list[Row], Path]:
    """Read AlpacaEval's rows {instruction, dataset}; return them and their file."""
    path = folder / ALPACA_EVAL_QUESTIONS
    rows = read_json_rows(path)
    for number, row in enumerate(rows, start=1):
        text_of(row, "instruction", f"{path}, row {number}")
    return rows, path


def answer_instructions(
    decoder: "Decoder", rows: Sequence[Row], name: str
) -> tuple[list[Row], dict[str, "Answer"]]:
    """Return answers in AlpacaEval's form, in the order of the rows, and the answers by the name of their row.

    The form has one answer per row: of several samples the first, which does not depend on the number of samples.
    """
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
    return outputs, {f"row {number}": answer for number, answer in enumerate(answers, start=1)}


# --- MT-Bench -------------------------------------------------------------------------------------


def read_questions(folder: Path) -> tuple[list[Row], Path]:
    """Read MT-Bench's rows {question_id, category, turns}; return them and their file."""
    path = folder / MT_BENCH_QUESTIONS
    rows = read_json_lines(path)
    for number, row in enumerate(rows, start=1):
        where = f"{path}, line {number}"
        text_of(row, "category", where)
        turns = row.get("turns")
        if not (isinstance(turns, list) and turns and all(isinstance(turn, str) for turn in turns)):
            raise UserError(f"expected a list of texts, found {turns!r:.60}", where=f"{where}, key 'turns'")
    return rows, path


def answer_questions(
    decoder: "Decoder", rows: Sequence[Row], name: str
) -> tuple[list[Row], dict[str, "Answer"]]:
    """Return answers in FastChat's form, and the answers by the name of their turn; samples are `choices`.

    Each sample is a dialogue: the prompt of a turn holds the earlier questions and the sample's answers to them.
    """
    dialogues = [_dialogues(decoder, rows, sample) for sample in range(decoder.decoding.samples)]
    answers = {
        f"question {row['question_id']}, {sample_label(f'turn {turn}', sample)}": answer
        for sample, answered in enumerate(dialogues)
        for row, turns in zip(rows, answered, strict=True)
        for turn, answer in enumerate(turns, start=1)
    }
    outputs = [
        _fastchat_row(row, name, [[answer.text for answer in turns] for turns in samples])
        for row, *samples in zip(rows, *dialogues, strict=True)
    ]
    return outputs, answers


def _dialogues(decoder: "Decoder", rows: Sequence[Row], sample: int) -> list[list["Answer"]]:
    """Return the answers to all turns of each question."""
    settings = decoder.decoding
    temperatures = [settings.category_temperatures.get(row["category"], settings.temperature) for row in rows]
    conversations: list[list[Message]] = [[] for _ in rows]
    dialogues: list[list[Answer]] = [[] for _ in rows]
    for turn in range(max(len(row["turns"]) for row in rows)):
        indices = [index for index, row in enumerate(rows) if turn < len(row["turns"])]
        for index in indices:
            conversations[index].append(_user(rows[index]["turns"][turn]))
        answers = decoder.answer(
            [conversations[index] for index in indices],
            [temperatures[index] for index in indices],
            sample_label(f"mt_bench turn {turn + 1}", sample),
        )
        for index, answer in zip(indices, answers, strict=True):
            conversations[index].append({"role": "assistant", "content": answer.text})
            dialogues[index].append(answer)
    return dialogues


def _fastchat_row(question: Row, name: str, samples: list[list[str]]) -> Row:
    content = canonical_json([question["question_id"], name, samples])
    return {
        "question_id": question["question_id"],
        "answer_id": hashlib.sha256(content.encode()).hexdigest()[:22],
        "model_id": name,
        "choices": [{"index": index, "turns": turns} for index, turns in enumerate(samples)],
        "tstamp": 0.0,  # required by the form; a constant makes the files of equal answers equal
    }


# --- test prompts ---------------------------------------------------------------------------------


def read_test_prompts(folder: Path) -> tuple[list[Row], Path]:
    """Read the test pairs' different prompts {id, prompt}, each with the id of its first pair, and their file."""
    path = folder / TEST_PAIRS
    return list(test_prompts(path, ["id", "prompt"])), path


def answer_prompts(
    decoder: "Decoder", rows: Sequence[Row], name: str
) -> tuple[list[Row], dict[str, "Answer"]]:
    """Return rows {id, answer, tokens, truncated}, and the answers by the name of their row."""
    answers = decoder.answer(
        [row["prompt"] for row in rows], [decoder.decoding.temperature] * len(rows), "prompts"
    )
    outputs = [
        {"id": row["id"], "answer": answer.text, "tokens": answer.tokens, "truncated": answer.truncated}
        for row, answer in zip(rows, answers, strict=True)
    ]
    return outputs, {row["id"]: answer for row, answer in zip(rows, answers, strict=True)}


def fitting(decoder: "Decoder", rows: Sequence[Row], count: int | None) -> list[Row]:
    """Return the first `count` rows with a prompt that leaves room for an answer in the model's context.

    Raises:
        UserError: there is none.
    """
    found = list(itertools.islice((row for row in rows if decoder.fits(row["prompt"])), count))
    if not found:
        raise UserError(f"none of {len(rows)} prompts fits the model's context")
    return found


class QuestionSet(NamedTuple):
    """A set of questions.

    Args:
        read: reads the questions in a folder; returns the rows and their file.
        answer: answers rows with a decoder, under the name of the model; returns the answers in their form, and
            each answer by a name.
        write: writes them.
    """

    read: Callable[[Path], tuple[list[Row], Path]]
    answer: Callable[..., tuple[list[Row], dict[str, Any]]]
    write: Callable[[Path, Any], None]


PROMPTS = QuestionSet(read_test_prompts, answer_prompts, write_lines)
SETS = {
    "alpaca_eval": QuestionSet(read_instructions, answer_instructions, write_json),
    "mt_bench": QuestionSet(read_questions, answer_questions, write_lines),
    "samples": PROMPTS,
    "reward_model": PROMPTS,
}


def _user(content: str) -> Message:
    return {"role": "user", "content": content}
