"""Reading people's data: preference pairs and supervised examples, from files or hub data sets.

Forms of a preference pair:

* ``{"chosen": "\\n\\nHuman: ...\\n\\nAssistant: ...", "rejected": ...}`` (hh-rlhf)
* ``{"prompt": text or messages, "chosen": text, "rejected": text}``
* ``{"chosen": messages, "rejected": messages}``, with or without ``prompt`` (OpenAI's message format)

Forms of a supervised example: ``{"prompt", "response"}``, ``{"messages": [...]}``, and
``{"instruction", "input", "output"}``. A pair may carry ``flipped`` (bool), an example ``imperfect``.
"""

import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from sams.data.records import Example, Message, Pair
from sams.errors import UserError

GZIP, PARQUET = b"\x1f\x8b", b"PAR1"
TURN = re.compile(r"\n\n(Human|Assistant):")
ROLES = {"Human": "user", "Assistant": "assistant"}

Row = dict[str, Any]


def read_pairs(source: str) -> Iterator[Pair]:
    """Preference pairs of a source.

    Raises:
        UserError: naming source, row (from 1) and key.
    """
    for where, row in numbered_rows(source, "train" if "test" not in source else "test"):
        pair = pair_of(row, where)
        if pair.chosen == pair.rejected:
            raise UserError("chosen and rejected are equal", where=where, remedy="drop the row or correct it")
        yield pair


def read_examples(source: str) -> Iterator[Example]:
    """Supervised examples of a source.

    Raises:
        UserError: naming source, row (from 1) and key.
    """
    for where, row in numbered_rows(source, "train"):
        yield example_of(row, where)


# --- rows -----------------------------------------------------------------------------------------


def numbered_rows(source: str, split: str) -> Iterator[tuple[str, Row]]:
    """Rows with their place, for messages. A hub id may name a split: `Anthropic/hh-rlhf@revision:test`."""
    rows = read_file(Path(source)) if Path(source).is_file() else read_hub(source, split)
    number = 0
    for number, row in enumerate(rows, start=1):
        where = f"{source}, row {number}"
        if not isinstance(row, dict):
            raise UserError(f"expected an object with keys, found {type(row).__name__}", where=where)
        yield where, row
    if not number:
        raise UserError("holds no row", where=source, remedy="give a file with at least one")


def read_file(file: Path) -> Iterator[Any]:
    """Rows of a JSONL, JSON or Parquet file, gzip or not; told apart by content, not by name."""
    with file.open("rb") as stream:
        start = stream.read(4)
    if start.startswith(PARQUET):
        yield from _read_parquet(file)
        return
    opener = gzip.open if start.startswith(GZIP) else open
    with opener(file, "rt", encoding="utf-8-sig") as text:
        try:
            first = text.read(1)
            while first.isspace():
                first = text.read(1)
            if first == "[":
                yield from _json_list(first + text.read(), file)
            else:
                yield from _json_lines(first, text, file)
        except (EOFError, gzip.BadGzipFile, OSError) as error:
            raise UserError(
                f"the gzip file is broken: {error}", where=str(file), remedy="fetch it again"
            ) from None
        except UnicodeDecodeError as error:
            raise UserError(f"not UTF-8: {error}", where=str(file), remedy="convert it to UTF-8") from None


def _read_parquet(file: Path) -> Iterator[Row]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        for batch in parquet.ParquetFile(file).iter_batches(1000):
            yield from batch.to_pylist()
    except pa.ArrowException as error:
        raise UserError(
            f"the Parquet file is broken: {error}", where=str(file), remedy="fetch it again"
        ) from None


def _json_list(text: str, file: Path) -> list[Any]:
    try:
        rows: list[Any] = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"no JSON: {error}", where=str(file), remedy="give JSON or JSON lines") from None
    return rows


def _json_lines(first: str, text: TextIO, file: Path) -> Iterator[Any]:
    for number, line in enumerate(text, start=1):
        line = first + line if number == 1 else line
        if not line.strip():
            continue
        try:
            yield json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(
                f"no JSON: {error.msg} at column {error.colno}",
                where=f"{file}, row {number}",
                remedy="every line must be one JSON object",
            ) from None


def read_hub(source: str, split: str) -> Iterator[Row]:
    """Rows of a hub data set (or a local folder of that form): `id`, `id@revision`, `id:split`."""
    import datasets

    name, _, named = source.partition(":")
    name, _, revision = name.partition("@")
    try:
        loaded = datasets.load_dataset(name, revision=revision or None, split=named or split)
    except (OSError, ValueError, datasets.exceptions.DatasetNotFoundError) as error:
        raise UserError(
            f"neither a file nor a data set that can be loaded: {str(error).splitlines()[0]}",
            where=source,
            remedy="correct the path, or check the id and the network",
        ) from error
    yield from loaded


# --- records --------------------------------------------------------------------------------------


def pair_of(row: Row, where: str) -> Pair:
    """One preference pair, whatever its form."""
    chosen, rejected = (_wanted(row, key, where) for key in ("chosen", "rejected"))
    flipped = row.get("flipped")
    if isinstance(chosen, list) or isinstance(rejected, list):
        sides = [
            messages_of(side, f"{where}, key '{key}'")
            for side, key in ((chosen, "chosen"), (rejected, "rejected"))
        ]
        responses = [_last_answer(side, where) for side in sides]
        given = row.get("prompt")
        # Some data sets repeat the first user message as `prompt`; the conversation itself says more.
        prompts = [side[:-1] for side in sides]
        prompt = messages_of(given, f"{where}, key 'prompt'") if not prompts[0] and given else prompts[0]
        if prompts[0] != prompts[1]:
            raise UserError("chosen and rejected follow different prompts", where=where)
        return Pair(checked_prompt(prompt, where), responses[0], responses[1], flipped)
    if "prompt" not in row and "instruction" not in row:
        prompt, ends = split_dialogue(
            text_of(chosen, "chosen", where), text_of(rejected, "rejected", where), where
        )
        return Pair(prompt, *ends, flipped)
    prompt = prompt_of(row, where)
    return Pair(prompt, text_of(chosen, "chosen", where), text_of(rejected, "rejected", where), flipped)


def example_of(row: Row, where: str) -> Example:
    """One supervised example, whatever its form."""
    if "messages" in row:
        messages = messages_of(row["messages"], f"{where}, key 'messages'")
        response = _last_answer(messages, where)
        return Example(checked_prompt(messages[:-1], where), response, row.get("imperfect"))
    key = "response" if "response" in row else "output"
    return Example(prompt_of(row, where), text_of(_wanted(row, key, where), key, where), row.get("imperfect"))


def prompt_of(row: Row, where: str) -> list[Message]:
    """The prompt: text, a dialogue in hh-rlhf's form, messages, or instruction and input."""
    if "instruction" in row:
        parts = [text_of(row["instruction"], "instruction", where), row.get("input") or ""]
        return [{"role": "user", "content": "\n\n".join(part for part in parts if part)}]
    prompt = _wanted(row, "prompt", where)
    if isinstance(prompt, list):
        return checked_prompt(messages_of(prompt, f"{where}, key 'prompt'"), where)
    text = text_of(prompt, "prompt", where)
    if text.lstrip().startswith("Human:"):
        return checked_prompt(dialogue("\n\n" + text.strip(), where), where)
    return [{"role": "user", "content": text}]


def split_dialogue(chosen: str, rejected: str, where: str) -> tuple[list[Message], tuple[str, str]]:
    """Split hh-rlhf's two dialogues into their common prompt and the two last answers."""
    ends = []
    for key, text in (("chosen", chosen), ("rejected", rejected)):
        cut = text.rfind("\n\nAssistant:")
        if cut < 0:
            raise UserError(
                "expected a dialogue of '\\n\\nHuman:' and '\\n\\nAssistant:' turns",
                where=f"{where}, key '{key}'",
                remedy="or give the prompt in a key of its own, 'prompt'",
            )
        ends.append((text[:cut], text_of(text[cut + len("\n\nAssistant:") :].strip(), key, where)))
    if ends[0][0] != ends[1][0]:
        raise UserError("chosen and rejected follow different prompts", where=where)
    return checked_prompt(dialogue(ends[0][0], where), where), (ends[0][1], ends[1][1])


def dialogue(text: str, where: str) -> list[Message]:
    """Turns of a dialogue in hh-rlhf's form; an empty `Assistant:` at the end is the one to be filled."""
    parts = TURN.split(text)
    turns = [
        {"role": ROLES[speaker], "content": content.strip()}
        for speaker, content in zip(parts[1::2], parts[2::2], strict=True)
    ]
    if turns and turns[-1] == {"role": "assistant", "content": ""}:
        turns.pop()
    return turns


def messages_of(value: Any, where: str) -> list[Message]:
    """Messages in OpenAI's format, checked."""
    if not isinstance(value, list):
        raise UserError(f"expected a list of messages, found {type(value).__name__}", where=where)
    messages = []
    for place, message in enumerate(value, start=1):
        ok = isinstance(message, dict) and message.get("role") in ("system", "user", "assistant")
        if not ok or not isinstance(message.get("content"), str):
            raise UserError(
                f"message {place} needs `role` (system, user or assistant) and `content` (text)", where=where
            )
        messages.append({"role": message["role"], "content": message["content"]})
    return messages


def checked_prompt(messages: list[Message], where: str) -> list[Message]:
    """See that a prompt is an optional system message, then user and assistant in turn, the user last."""
    turns = messages[1:] if messages and messages[0]["role"] == "system" else messages
    expected = [("user", "assistant")[place % 2] for place in range(len(turns))]
    if not turns or [turn["role"] for turn in turns] != expected or turns[-1]["role"] != "user":
        raise UserError(
            f"roles out of order: {[message['role'] for message in messages]}",
            where=f"{where}, prompt",
            remedy="a prompt goes from user to user, the assistant between",
        )
    for turn in turns:
        if not turn["content"].strip():
            raise UserError("empty message", where=f"{where}, prompt", remedy="drop the row or fill it")
    return messages


def text_of(value: Any, key: str, where: str) -> str:
    """Text that is not empty."""
    if not isinstance(value, str):
        raise UserError(f"expected text, found {type(value).__name__}", where=f"{where}, key '{key}'")
    if not value.strip():
        raise UserError("empty", where=f"{where}, key '{key}'", remedy="drop the row or fill it")
    return value


def _last_answer(messages: list[Message], where: str) -> str:
    if not messages or messages[-1]["role"] != "assistant":
        raise UserError("a conversation must end with the assistant's answer", where=where)
    return text_of(messages[-1]["content"], "content", where)


def _wanted(row: Row, key: str, where: str) -> Any:
    if key not in row:
        raise UserError(
            f"no such key; the row has {sorted(row)}",
            where=f"{where}, key '{key}'",
            remedy="README.md, 'Your own data', shows the forms",
        )
    return row[key]
