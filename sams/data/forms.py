"""Readers of preference pairs and supervised examples in the usual row formats.

A preference pair:

* ``{"chosen": "\\n\\nHuman: ...\\n\\nAssistant: ...", "rejected": ...}`` (hh-rlhf): the prompt is what both have
  in common, up to the last `Assistant:`
* ``{"prompt": text or messages, "chosen": text, "rejected": text}``
* ``{"chosen": messages, "rejected": messages}`` (OpenAI's format), with or without ``prompt``
* ``{"instruction": text, "input": text, "chosen": text, "rejected": text}``

A supervised example: ``{"prompt": text or messages, "response": text}``, ``{"messages": messages}`` or
``{"instruction": text, "input": text, "output": text}``.

The first row decides the format, and all rows must have it. A prompt given as text is one user message or, if it
begins with `Human:`, a dialogue in hh-rlhf's format. White space around messages and responses is removed.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from sams.data.records import Example, Message, Pair
from sams.data.sources import Row, numbered_rows
from sams.runtime.errors import UserError

T = TypeVar("T")

TURN = re.compile(r"\n\n(Human|Assistant):")
ROLES = {"Human": "user", "Assistant": "assistant"}
KNOWN_ROLES = ("system", "user", "assistant")

PAIR_FORMS = (("prompt", "chosen", "rejected"), ("instruction", "chosen", "rejected"), ("chosen", "rejected"))
EXAMPLE_FORMS = (("messages",), ("prompt", "response"), ("instruction", "output"))

NAMED_BROKEN_ROWS = 10


class Reading:
    """Counts of the rows read, for the report.

    Args:
        drop: whether to skip a row that cannot be read, instead of raising its error.

    Attributes:
        rows: number of rows read.
        left_out: number of rows or pairs that the data set's own rules exclude, by rule.
        broken: error messages of the first skipped rows.
        n_broken: number of skipped rows.
    """

    def __init__(self, *, drop: bool = False) -> None:
        self.drop = drop
        self.rows = 0
        self.left_out: Counter[str] = Counter()
        self.n_broken = 0
        self.broken: list[str] = []

    def each(self, rows: Iterator[tuple[str, Row]], read: Callable[[Row, str], T]) -> Iterator[T]:
        """Yield the result of `read` for each row and its location.

        Raises:
            UserError: a row cannot be read and `drop` is False, or no row can be read.
        """
        for where, row in rows:
            self.rows += 1
            try:
                record = read(row, where)
            except UserError as error:
                if not self.drop:
                    raise
                self.n_broken += 1
                if len(self.broken) < NAMED_BROKEN_ROWS:
                    self.broken.append(str(error))
            else:
                yield record
        if self.n_broken == self.rows:
            raise UserError(f"none of {self.rows} rows can be read, the first: {self.broken[0]}")

    @property
    def counts(self) -> dict[str, Any]:
        """Number of rows, and of those left out, by reason."""
        broken = {"broken_rows": self.n_broken, "first_broken": self.broken} if self.n_broken else {}
        return {"rows": self.rows, **self.left_out, **broken}


def read_pairs(source: str, split: str, reading: Reading | None = None) -> Iterator[Pair]:
    """Yield the preference pairs of a file or hub data set (of `split`, unless the source names one).

    Raises:
        UserError: a row cannot be read; the message names source, row (from 1) and key.
    """
    keys: tuple[str, ...] | None = None

    def pair_of(row: Row, where: str) -> Pair:
        nonlocal keys
        keys = keys or _form(row, PAIR_FORMS, where)
        pair = _pair(row, keys, where)
        if pair.chosen == pair.rejected:
            raise UserError("chosen and rejected are equal", where=where, remedy="drop the row or correct it")
        return pair

    return (reading or Reading()).each(numbered_rows(source, split), pair_of)


def read_examples(source: str, split: str, reading: Reading | None = None) -> Iterator[Example]:
    """Yield the supervised examples of a file or hub data set (of `split`, unless the source names one).

    Raises:
        UserError: a row cannot be read; the message names source, row (from 1) and key.
    """
    keys: tuple[str, ...] | None = None

    def example_of(row: Row, where: str) -> Example:
        nonlocal keys
        keys = keys or _form(row, EXAMPLE_FORMS, where)
        return _example(row, keys, where)

    return (reading or Reading()).each(numbered_rows(source, split), example_of)


def _form(row: Row, forms: tuple[tuple[str, ...], ...], where: str) -> tuple[str, ...]:
    for keys in forms:
        if set(keys) <= set(row):
            return keys
    known = " or ".join("{" + ", ".join(keys) + "}" for keys in forms)
    raise UserError(
        f"unknown form with keys {sorted(map(str, row))}, expected {known}",
        where=where,
        remedy="rename the keys",
    )


def _pair(row: Row, keys: tuple[str, ...], where: str) -> Pair:
    chosen, rejected = value_of(row, "chosen", where), value_of(row, "rejected", where)
    if isinstance(chosen, list):
        return _pair_of_conversations(row, chosen, rejected, where)
    texts = text_of(chosen, f"{where}, key 'chosen'"), text_of(rejected, f"{where}, key 'rejected'")
    if keys[0] == "chosen":
        return _pair_of_dialogues(*texts, where)
    return Pair(prompt_of(row, keys[0], where), *texts)


def _pair_of_conversations(row: Row, chosen: list[Any], rejected: Any, where: str) -> Pair:
    """Read a pair whose sides are lists of messages: complete conversations, or the answers to `prompt` alone."""
    sides = [
        _messages(side, f"{where}, key '{key}'") for key, side in (("chosen", chosen), ("rejected", rejected))
    ]
    responses = []
    for key, side in zip(("chosen", "rejected"), sides, strict=True):
        if side[-1]["role"] != "assistant":
            raise UserError(
                f"ends with a message of the {side[-1]['role']}, expected the assistant's answer",
                where=f"{where}, key '{key}'",
                remedy="drop the row or correct it",
            )
        responses.append(side[-1]["content"])
    if sides[0][:-1] != sides[1][:-1]:
        raise UserError(
            "chosen and rejected differ before the last answer",
            where=where,
            remedy="both must answer the same prompt",
        )
    given = row.get("prompt")
    prompt = sides[0][:-1]
    if not prompt:
        prompt = prompt_of(row, "prompt", where)
    elif given and not _same_question(given, prompt, f"{where}, key 'prompt'"):
        raise UserError(
            "is not in the conversation that chosen and rejected hold",
            where=f"{where}, key 'prompt'",
            remedy="drop the key or correct it",
        )
    return Pair(_checked(prompt, where), responses[0], responses[1])


def _same_question(given: Any, prompt: list[Message], where: str) -> bool:
    """Return whether `prompt`, which some data sets give in addition to complete conversations, agrees with them."""
    if isinstance(given, str):
        return given.strip() in (message["content"] for message in prompt)
    return _messages(given, where) == prompt


def _pair_of_dialogues(chosen: str, rejected: str, where: str) -> Pair:
    """Read a pair whose sides are complete dialogues in hh-rlhf's format."""
    (start, good), (other, bad) = (
        _last_answer(text, f"{where}, key '{key}'")
        for key, text in (("chosen", chosen), ("rejected", rejected))
    )
    if start != other:
        raise UserError(
            "chosen and rejected differ before the last 'Assistant:'",
            where=where,
            remedy="both must answer the same prompt",
        )
    return Pair(_checked(_dialogue(start, where), where), good, bad)


def _last_answer(text: str, where: str) -> tuple[str, str]:
    start, turn, answer = f"\n\n{text}".rpartition("\n\nAssistant:")
    if not turn:
        raise UserError(
            "expected a dialogue with turns '\\n\\nHuman:' and '\\n\\nAssistant:'",
            where=where,
            remedy="or give the prompt in a separate key 'prompt'",
        )
    return start, text_of(answer, where)


def _example(row: Row, keys: tuple[str, ...], where: str) -> Example:
    if keys[0] == "messages":
        messages = _messages(value_of(row, "messages", where), f"{where}, key 'messages'")
        if messages[-1]["role"] != "assistant":
            raise UserError(
                f"ends with a message of the {messages[-1]['role']}, expected the assistant's answer",
                where=f"{where}, key 'messages'",
                remedy="drop the row or correct it",
            )
        return Example(_checked(messages[:-1], where), messages[-1]["content"])
    response = text_of(value_of(row, keys[1], where), f"{where}, key '{keys[1]}'")
    return Example(prompt_of(row, keys[0], where), response)


# --- parts ----------------------------------------------------------------------------------------


def value_of(row: Row, key: str, where: str) -> Any:
    """Return the value of a key that the row must have."""
    if key not in row:
        raise UserError(
            f"missing; the row has {sorted(map(str, row))}",
            where=f"{where}, key '{key}'",
            remedy="all rows must have the form of the first",
        )
    return row[key]


def text_of(value: Any, where: str) -> str:
    """Return a text without surrounding white space, or raise if it is empty or not valid text."""
    if not isinstance(value, str):
        raise UserError(
            f"expected text, found {type(value).__name__}", where=where, remedy="drop the row or correct it"
        )
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(
            "holds half of a surrogate pair", where=where, remedy="write the file again as valid Unicode"
        ) from None
    if "\0" in value:
        raise UserError("holds a NUL character", where=where, remedy="drop the row or the character")
    if not value.strip():
        raise UserError("empty", where=where, remedy="drop the row or fill it")
    return value.strip()


def prompt_of(row: Row, key: str, where: str) -> list[Message]:
    """Return the messages of a prompt given as text, as messages, or as instruction and input."""
    value, location = value_of(row, key, where), f"{where}, key '{key}'"
    if key == "instruction":
        parts = [text_of(value, location)]
        if row.get("input"):
            parts.append(text_of(row["input"], f"{where}, key 'input'"))
        return [{"role": "user", "content": "\n\n".join(parts)}]
    if isinstance(value, list):
        return _checked(_messages(value, location), where)
    text = text_of(value, location)
    if text.startswith("Human:"):
        return _checked(_dialogue(f"\n\n{text}", where), where)
    return [{"role": "user", "content": text}]


def _messages(value: Any, where: str) -> list[Message]:
    """Check messages in OpenAI's format and return them stripped."""
    if not isinstance(value, list) or not value:
        found = "an empty list" if value == [] else type(value).__name__
        raise UserError(
            f"expected a list of messages, found {found}", where=where, remedy="drop the row or correct it"
        )
    messages = []
    for number, message in enumerate(value, start=1):
        location = f"{where}, message {number}"
        if not isinstance(message, dict) or message.get("role") not in KNOWN_ROLES:
            role = message.get("role") if isinstance(message, dict) else message
            raise UserError(
                f"expected a `role` of {', '.join(KNOWN_ROLES)}, found {role!r:.40}",
                where=location,
                remedy="drop the row or correct it",
            )
        messages.append({"role": message["role"], "content": text_of(message.get("content"), location)})
    return messages


def _dialogue(text: str, where: str) -> list[Message]:
    """Return the messages of a dialogue in hh-rlhf's format, without an empty `Assistant:` at the end.

    Consecutive turns of one speaker, which hh-rlhf contains, become one message.
    """
    before, *parts = TURN.split(text)
    if before.strip():
        raise UserError(
            f"expected '\\n\\nHuman:' at the start of the dialogue, found {before.strip()!r:.40}",
            where=where,
            remedy="drop the row or correct it",
        )
    messages: list[Message] = []
    for speaker, content in zip(parts[::2], parts[1::2], strict=True):
        role, content = ROLES[speaker], content.strip()
        if messages and messages[-1]["role"] == role:
            messages[-1]["content"] += f"\n\n{content}"
        else:
            messages.append({"role": role, "content": content})
    if messages and messages[-1] == {"role": "assistant", "content": ""}:
        messages.pop()
    return messages


def _checked(prompt: list[Message], where: str) -> list[Message]:
    """Check that a prompt has at most one system message, then user and assistant in turn, the user last."""
    roles = [message["role"] for message in prompt]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    if turns != [("user", "assistant")[number % 2] for number in range(len(turns))] or len(turns) % 2 == 0:
        raise UserError(
            f"roles out of order: {', '.join(roles) or 'none'}",
            where=f"{where}, prompt",
            remedy="a prompt begins and ends with the user, the assistant between",
        )
    for message in prompt:
        text_of(message["content"], f"{where}, prompt, a message of the {message['role']}")
    return prompt
