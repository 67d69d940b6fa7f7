"""Readers of preference pairs and supervised examples in the usual row formats.

A preference pair has `chosen` and `rejected`, each an answer as text, as one message, as a complete conversation, or
as a complete dialogue in hh-rlhf's format (``"\\n\\nHuman: ...\\n\\nAssistant: ..."``); and its prompt, unless the
conversations hold it. A supervised example has a prompt and `response` (or `output`, `completion`, `answer`), or
one conversation.

The prompt is `prompt`, `question`, `query`, `instruction` with `input`, `input` alone, or a conversation: `messages`
in OpenAI's format, `conversations` in ShareGPT's. `system` becomes the first message, `history` the turns before the
prompt. Messages may be written to a text as JSON. A prompt that is one text is one user message or, if it begins with
`Human:`, a dialogue. Everything that is given twice must agree. A column that no reader uses is refused, unless it is
known to be harmless (`sams.data.columns`).

The first row decides where the prompt is, and all rows must have it there. White space around messages and responses
is removed.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Literal, TypeVar

from sams.data.columns import (
    CONVERSATIONS,
    HISTORY,
    PROMPTS,
    RESPONSES,
    SIDES,
    SYSTEM,
    Row,
    is_empty,
    number_of,
    refuse_unknown,
    renamed,
)
from sams.data.messages import (
    DROP,
    answered_dialogue,
    dialogue,
    history_of,
    is_dialogue,
    messages_of,
    refuse_other_dialogue,
    text_of,
    unpacked,
)
from sams.data.records import Example, Message, Pair
from sams.data.sources import numbered_rows
from sams.runtime.errors import UserError, nearest

T = TypeVar("T")

PAIR_FORMS = "{prompt, chosen, rejected} or {instruction, chosen, rejected} or {chosen, rejected}"
EXAMPLE_FORMS = "{messages} or {prompt, response} or {instruction, output}"

NAMED_BROKEN_ROWS = 10


class Reading:
    """How rows are read, and the counts of those read, for the report.

    Args:
        drop: whether to skip a row that cannot be read, instead of raising its error.
        columns: own name of each known column.
        ignored: columns that are left out.
        turns: assistant turns of a conversation that become supervised examples.

    Attributes:
        kept: columns with numbers that pairs keep, for selectors.
        rows: number of rows read.
        left_out: number of rows or pairs that the data set's own rules exclude, by rule.
        broken: error messages of the first skipped rows.
        n_broken: number of skipped rows.
    """

    def __init__(
        self,
        *,
        drop: bool = False,
        columns: Mapping[Any, str] | None = None,
        ignored: frozenset[str] = frozenset(),
        turns: Literal["all", "last"] = "all",
    ) -> None:
        self.drop = drop
        self.columns = columns or {}
        self.ignored = ignored
        self.turns = turns
        self.kept: tuple[str, ...] = ()
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
                record = read(renamed(row, self.columns), where)
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
    reading = reading or Reading()
    form: list[str | None] = []

    def pair_of(row: Row, where: str) -> Pair:
        if not form:
            form.append(_form_of_pair(row, where, reading))
        refuse_unknown(row, where, reading.ignored | frozenset(reading.kept))
        pair = _pair(row, form[0], where)
        if reading.kept:
            kept = {
                key: number_of(value_of(row, key, where), f"{where}, key '{key}'") for key in reading.kept
            }
            pair = replace(pair, kept=kept)
        if pair.chosen == pair.rejected:
            raise UserError("chosen and rejected are equal", where=where, remedy=DROP)
        return pair

    return reading.each(numbered_rows(source, split), pair_of)


def read_examples(source: str, split: str, reading: Reading | None = None) -> Iterator[Example]:
    """Yield the supervised examples of a file or hub data set (of `split`, unless the source names one).

    A conversation gives one example for each assistant turn, whose prompt is the conversation before it, or with
    `reading.turns` "last" one example for its last turn.

    Raises:
        UserError: a row cannot be read; the message names source, row (from 1) and key.
    """
    reading = reading or Reading()
    form: list[tuple[str, str | None]] = []

    def examples_of(row: Row, where: str) -> list[Example]:
        if not form:
            form.append(_form_of_example(row, where, reading))
        refuse_unknown(row, where, reading.ignored)
        return _examples(row, *form[0], where, reading.turns)

    for examples in reading.each(numbered_rows(source, split), examples_of):
        yield from examples


def read_prompts(source: str, split: str) -> Iterator[list[Message]]:
    """Yield the prompts of `numbered_prompts`."""
    return (prompt for _, _, prompt in numbered_prompts(source, split))


def numbered_prompts(source: str, split: str) -> Iterator[tuple[str, Row, list[Message]]]:
    """Yield location, row and prompt of each row of a file or hub data set; rows may also hold answers.

    Raises:
        UserError: a row cannot be read; the message names source, row (from 1) and key.
    """
    column = ""
    for where, row in numbered_rows(source, split):
        column = column or next((key for key in PROMPTS if key in row), "prompt")
        refuse_unknown(row, where)
        yield where, row, _checked(_prompt(row, column, where), where)


# --- forms ----------------------------------------------------------------------------------------


def _form_of_pair(row: Row, where: str, reading: Reading) -> str | None:
    """Return the column of the prompt; None for complete conversations alone."""
    if not set(SIDES) <= set(row):
        raise _unknown_form(row, PAIR_FORMS, where, reading)
    return next((key for key in PROMPTS if key in row), None)


def _form_of_example(row: Row, where: str, reading: Reading) -> tuple[str, str | None]:
    """Return the columns of prompt and response; None for a conversation that holds both."""
    conversation = next((key for key in CONVERSATIONS if key in row), None)
    response = next((key for key in RESPONSES if key in row), None)
    if conversation is not None:
        return conversation, response
    prompt = next((key for key in PROMPTS if key in row), None)
    if prompt is None or response is None:
        raise _unknown_form(row, EXAMPLE_FORMS, where, reading)
    return prompt, response


def _unknown_form(row: Row, known: str, where: str, reading: Reading) -> UserError:
    names = sorted(map(str, row))
    missing = [
        f"'{own}'{nearest(own, names)}"
        for key, own in reading.columns.items()
        if key not in row and own not in row
    ]
    mapped = f"; data.columns names {missing[0]}" if missing else ""
    return UserError(
        f"unknown form with keys {names}, expected {known}{mapped}",
        where=where,
        remedy="rename the keys, or name yours in data.columns",
    )


# --- pairs ----------------------------------------------------------------------------------------


def _pair(row: Row, prompt_key: str | None, where: str) -> Pair:
    given = {key: unpacked(value_of(row, key, where), f"{where}, key '{key}'") for key in SIDES}
    if isinstance(given["chosen"], list | dict):
        sides, last = [_conversation(given[key], f"{where}, key '{key}'") for key in SIDES], "answer"
    else:
        texts = {key: text_of(given[key], f"{where}, key '{key}'") for key in SIDES}
        sides, last = (
            [_text_side(texts[key], prompt_key, f"{where}, key '{key}'", where) for key in SIDES],
            "'Assistant:'",
        )
    (start, chosen), (other, rejected) = sides
    if start != other:
        raise UserError(
            f"chosen and rejected differ before the last {last}",
            where=where,
            remedy="both must answer the same prompt",
        )
    if prompt_key is not None:
        value_of(row, prompt_key, where)
    prompt = _completed(row, start, where) if start else _prompt(row, prompt_key or "prompt", where)
    _refuse_others(row, prompt, chosen, where, used=None if start else prompt_key)
    return Pair(_checked(prompt, where), chosen, rejected)


def _conversation(value: Any, where: str) -> tuple[list[Message], str]:
    """Split a conversation, or the answer alone, into the messages before the answer and the answer."""
    messages = messages_of(value, where)
    if messages[-1]["role"] != "assistant":
        raise UserError(
            f"ends with a message of the {messages[-1]['role']}, expected the assistant's answer",
            where=where,
            remedy=DROP,
        )
    return messages[:-1], messages[-1]["content"]


def _text_side(text: str, prompt_key: str | None, where: str, row: str) -> tuple[list[Message], str]:
    """Split a text into the messages before the answer, if it is a complete dialogue, and the answer."""
    if prompt_key is not None and not is_dialogue(text):
        refuse_other_dialogue(text, where)
        return [], text
    start, answer = answered_dialogue(text, where)
    return dialogue(start, row), answer


# --- examples -------------------------------------------------------------------------------------


def _examples(
    row: Row, prompt_key: str, response_key: str | None, where: str, turns: Literal["all", "last"]
) -> list[Example]:
    start: list[Message] = []
    response = None
    answered = f"{where}, key '{response_key}'"
    if response_key is not None and (prompt_key not in CONVERSATIONS or not is_empty(row.get(response_key))):
        value = unpacked(value_of(row, response_key, where), answered)
        if isinstance(value, list | dict):
            start, response = _conversation(value, answered)
        else:
            start, response = _text_side(text_of(value, answered), prompt_key, answered, where)
    if prompt_key not in CONVERSATIONS:
        assert response is not None
        prompt = _checked(_prompt(row, prompt_key, where), where)
        _refuse_other_start(start, prompt, answered)
        _refuse_others(row, prompt, response, where, used=prompt_key)
        return [Example(prompt, response)]
    location = f"{where}, key '{prompt_key}'"
    messages = _completed(row, messages_of(value_of(row, prompt_key, where), location), where)
    if response is not None and messages[-1]["role"] != "assistant":
        messages = [*messages, {"role": "assistant", "content": response}]
    prompt, answer = _conversation(messages, location)
    _checked(prompt, where)
    _refuse_other_start(start, prompt, answered)
    _refuse_others(row, prompt, answer, where, used=prompt_key)
    if response is not None and response != answer:
        raise UserError(
            f"differs from the last answer of '{prompt_key}'",
            where=f"{where}, key '{response_key}'",
            remedy="drop one of them",
        )
    ends = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    return [
        Example(messages[:index], messages[index]["content"])
        for index in (ends if turns == "all" else ends[-1:])
    ]


# --- prompts --------------------------------------------------------------------------------------


def value_of(row: Row, key: str, where: str) -> Any:
    """Return the value of a key that the row must have."""
    if key not in row:
        raise UserError(
            f"missing; the row has {sorted(map(str, row))}",
            where=f"{where}, key '{key}'",
            remedy="all rows must have the form of the first",
        )
    return row[key]


def _prompt(row: Row, key: str, where: str) -> list[Message]:
    """Return the messages of a prompt in a column, with those of columns `system` and `history`."""
    value = unpacked(value_of(row, key, where), f"{where}, key '{key}'")
    location = f"{where}, key '{key}'"
    if isinstance(value, list) or key in CONVERSATIONS:
        return _completed(row, _checked(messages_of(value, location), where), where)
    text = text_of(value, location)
    if "\n\nAssistant:" not in text:
        refuse_other_dialogue(text, location)
    if text.startswith("Human:"):
        return _completed(row, _checked(dialogue(f"\n\n{text}", where), where), where)
    if key == "instruction" and not is_empty(row.get("input")):
        more = text_of(row["input"], f"{where}, key 'input'")
        text = f"{text}\n\n{more}"
    return _completed(row, [{"role": "user", "content": text}], where)


def _completed(row: Row, messages: list[Message], where: str) -> list[Message]:
    """Return a conversation with the messages of columns `system` and `history`, unless it begins with them.

    Raises:
        UserError: the conversation has another system message, or other turns than `history`.
    """
    system, turns = (messages[:1], messages[1:]) if messages[0]["role"] == "system" else ([], messages)
    for key in SYSTEM:
        if not is_empty(row.get(key)):
            given = [{"role": "system", "content": text_of(row[key], f"{where}, key '{key}'")}]
            if system and given != system:
                raise UserError(
                    "differs from another system message of the row",
                    where=f"{where}, key '{key}'",
                    remedy="drop one of them",
                )
            system = given
    for key in HISTORY:
        if not is_empty(row.get(key)):
            location = f"{where}, key '{key}'"
            earlier = history_of(row[key], location)
            if earlier[0]["role"] == "system":
                raise UserError("begins with a system message", where=location, remedy="name it 'system'")
            if turns[: len(earlier)] == earlier:
                continue
            if len(turns) > 1 and turns[0]["role"] == "user" and turns[1]["role"] == "assistant":
                raise UserError(
                    "differs from the conversation of the row", where=location, remedy="drop one of them"
                )
            turns = [*earlier, *turns]
    return [*system, *turns]


def _refuse_others(row: Row, prompt: list[Message], answer: str, where: str, used: str | None) -> None:
    """Check that every column with a prompt agrees with the prompt that is used."""
    for key in PROMPTS:
        value = row.get(key)
        if key == used or is_empty(value) or (key == "input" and not is_empty(row.get("instruction"))):
            continue
        location = f"{where}, key '{key}'"
        given = unpacked(value, location)
        if isinstance(given, str):
            agrees = _agrees(given.strip(), row, prompt, where)
        else:
            turns = messages_of(given, location)
            without_system = prompt[1:] if prompt[0]["role"] == "system" else prompt
            answered = {"role": "assistant", "content": answer}
            agrees = any(
                turns in (known[-len(turns) :], [*known, answered]) for known in (prompt, without_system)
            )
        if not agrees:
            raise UserError(
                "is not in the conversation that chosen and rejected hold"
                if set(SIDES) <= set(row)
                else "is not in the conversation of the row",
                where=location,
                remedy="drop the key or correct it",
            )


def _agrees(text: str, row: Row, prompt: list[Message], where: str) -> bool:
    """Return whether a text is the prompt, a message of it, or a message with the column `input`."""
    if text.startswith("Human:"):
        return dialogue(f"\n\n{text}", where) in (prompt, prompt[1:])
    contents = [message["content"] for message in prompt]
    more = row.get("input")
    return text in contents or (isinstance(more, str) and f"{text}\n\n{more.strip()}" in contents)


def _refuse_other_start(start: list[Message], prompt: list[Message], where: str) -> None:
    """Check that the messages before an answer, if it has any, are its prompt."""
    if start and start != prompt:
        raise UserError(
            "is a conversation that differs from the prompt", where=where, remedy="both must be the same"
        )


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
