"""Messages in the forms that rows have them: OpenAI's, ShareGPT's, hh-rlhf's dialogues, and any of these in text."""

import ast
import json
import re
from typing import Any

from sams.data.columns import CONVERSATIONS, refuse_unknown
from sams.data.records import Message
from sams.runtime.errors import UserError

TURN = re.compile(r"\n\n(Human|Assistant):")
SPEAKERS = {"Human": "user", "Assistant": "assistant"}
ROLES = ("system", "user", "assistant")
SHAREGPT = {"human": "user", "gpt": "assistant", "chatgpt": "assistant"} | {role: role for role in ROLES}
"""Role of each value of `from`."""

# Messages written to a text: a list, or one object with nothing else.
LIST_IN_TEXT = re.compile(r"\[\s*\{\s*['\"](role|content|from|value)['\"]\s*:")
OBJECT_IN_TEXT = re.compile(r"\{\s*['\"](role|content|from|value)['\"]\s*:")
WRAPPED_IN_TEXT = re.compile(r"\{\s*['\"](messages|conversations?)['\"]\s*:\s*\[")
# Turns of a dialogue that are not divided as in hh-rlhf.
OTHER_DIALOGUE = re.compile(
    r"(### ?)?(human|user) ?:.*\n\s*(### ?)?(assistant|ai) ?:", re.IGNORECASE | re.DOTALL
)
# What chat templates write at the start and end of turns: a text with it has been rendered already.
RENDERED = re.compile(
    r"<\|im_start\|>|<\|start_header_id\|>|<\|begin_of_text\|>|<start_of_turn>|<\|(user|assistant|system)\|>"
    r"|(<s>\s*)?\[INST\]|### (Instruction|Human|User|Assistant|Response):"
)
ENDS = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "<|endoftext|>")
DROP = "drop the row or correct it"


def text_of(value: Any, where: str) -> str:
    """Return a text without surrounding white space.

    Raises:
        UserError: it is empty, no valid text, or rendered by a chat template.
    """
    if not isinstance(value, str):
        raise UserError(f"expected text, found {type(value).__name__}", where=where, remedy=DROP)
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(
            "holds half of a surrogate pair", where=where, remedy="write the file again as valid Unicode"
        ) from None
    if "\0" in value:
        raise UserError("holds a NUL character", where=where, remedy="drop the row or the character")
    text = value.strip()
    if not text:
        raise UserError("empty", where=where, remedy="drop the row or fill it")
    start = RENDERED.match(text)
    if start is not None or text.endswith(ENDS):
        raise UserError(
            f"rendered by a chat template already ({start.group() if start else text[-16:]!r})",
            where=where,
            remedy="give the messages, which model.chat_template renders",
        )
    return text


def unpacked(value: Any, where: str) -> Any:
    """Return the messages that a text holds as JSON or as Python writes them; any other value as it is.

    Raises:
        UserError: the text begins as a list of messages and cannot be read.
    """
    if isinstance(value, dict):
        return _unwrapped(value)
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return value
    text = value.strip()
    is_list = (LIST_IN_TEXT.match(text) or WRAPPED_IN_TEXT.match(text)) is not None
    if not is_list and not OBJECT_IN_TEXT.match(text):
        return value
    for read in (json.loads, ast.literal_eval):
        try:
            found = read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if is_list or {*found} in ({"role", "content"}, {"from", "value"}):
            return _unwrapped(found)
        return value
    if is_list:
        raise UserError(
            "begins as a list of messages in text, which cannot be read", where=where, remedy=DROP
        )
    return value


def _unwrapped(value: Any) -> Any:
    """Return the messages of an object that has nothing else."""
    if isinstance(value, dict) and len(value) == 1 and next(iter(value)) in CONVERSATIONS:
        [value] = value.values()
    return value


def messages_of(value: Any, where: str) -> list[Message]:
    """Return checked messages, stripped; `value` is a list, one message, or a text that holds them.

    Raises:
        UserError: they are not messages, or have keys beyond role and content that a model should see.
    """
    value = unpacked(value, where)
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list) or not value:
        found = "an empty list" if value == [] else type(value).__name__
        raise UserError(f"expected a list of messages, found {found}", where=where, remedy=DROP)
    return [_message(message, f"{where}, message {number}") for number, message in enumerate(value, start=1)]


def _message(message: Any, where: str) -> Message:
    role, content = None, None
    if isinstance(message, dict):
        is_sharegpt = message.get("role") is None and message.get("from") is not None
        role_key, content_key = ("from", "value") if is_sharegpt else ("role", "content")
        given, content = message.get(role_key), message.get(content_key)
        role = SHAREGPT.get(given) if is_sharegpt else given if given in ROLES else None  # type: ignore[arg-type]
    if role is None:
        given = message.get("role", message.get("from")) if isinstance(message, dict) else message
        raise UserError(
            f"expected a `role` of {', '.join(ROLES)}, found {given!r:.40}", where=where, remedy=DROP
        )
    more = {key: value for key, value in message.items() if key not in (role_key, content_key)}
    if more:
        refuse_unknown(more, where)
    if isinstance(content, list) and content:
        content = "\n".join(_text_of_part(part, where) for part in content)
    return {"role": role, "content": text_of(content, where)}


def _text_of_part(part: Any, where: str) -> str:
    """Return the text of one part of a message's content."""
    if not isinstance(part, dict) or part.get("type", "text") != "text":
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        raise UserError(f"expected parts of type text, found {kind!r:.40}", where=where, remedy=DROP)
    return text_of(part.get("text"), where)


def history_of(value: Any, where: str) -> list[Message]:
    """Return the messages of earlier turns: a list of messages, or of [question, answer]; also as JSON in text."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except ValueError:
            raise UserError("not JSON", where=where, remedy="give a list of [question, answer]") from None
    if not isinstance(value, list) or not value:
        raise UserError(
            f"expected a list, found {type(value).__name__}",
            where=where,
            remedy="give a list of messages, or of [question, answer]",
        )
    if isinstance(value[0], dict):
        return messages_of(value, where)
    messages = []
    for number, turns in enumerate(value, start=1):
        location = f"{where}, turn {number}"
        if not isinstance(turns, list | tuple) or len(turns) != 2:
            raise UserError("expected [question, answer]", where=location, remedy=DROP)
        messages += [
            {"role": role, "content": text_of(text, location)}
            for role, text in zip(("user", "assistant"), turns, strict=True)
        ]
    return messages


# --- dialogues in hh-rlhf's format ----------------------------------------------------------------


def is_dialogue(text: str) -> bool:
    """Return whether a text is a dialogue in hh-rlhf's format with an answer, and not an answer alone."""
    return text.lstrip().startswith("Human:") and "\n\nAssistant:" in text


def refuse_other_dialogue(text: str, where: str) -> None:
    """Check that a text is not a dialogue whose turns cannot be separated.

    Raises:
        UserError: it begins with a speaker and goes on with another one, in another format than hh-rlhf's.
    """
    if OTHER_DIALOGUE.match(text):
        raise UserError(
            "begins as a dialogue, but its turns do not begin with '\\n\\nHuman:' and '\\n\\nAssistant:'",
            where=where,
            remedy="give messages, or divide the turns so",
        )


def answered_dialogue(text: str, where: str) -> tuple[str, str]:
    """Return the text of a dialogue before its last `Assistant:`, and the answer after it."""
    start, turn, answer = f"\n\n{text.lstrip()}".rpartition("\n\nAssistant:")
    if not turn:
        raise UserError(
            "expected a dialogue with turns '\\n\\nHuman:' and '\\n\\nAssistant:'",
            where=where,
            remedy="or give the prompt in a separate key 'prompt'",
        )
    return start, text_of(answer, where)


def dialogue(text: str, where: str) -> list[Message]:
    """Return the messages of a dialogue in hh-rlhf's format, without an empty `Assistant:` at the end.

    Consecutive turns of one speaker, which hh-rlhf contains, become one message.
    """
    before, *parts = TURN.split(text)
    if before.strip():
        raise UserError(
            f"expected '\\n\\nHuman:' at the start of the dialogue, found {before.strip()!r:.40}",
            where=where,
            remedy=DROP,
        )
    messages: list[Message] = []
    for speaker, content in zip(parts[::2], parts[1::2], strict=True):
        role, content = SPEAKERS[speaker], content.strip()
        if messages and messages[-1]["role"] == role:
            messages[-1]["content"] += f"\n\n{content}"
        else:
            messages.append({"role": role, "content": content})
    if messages and messages[-1] == {"role": "assistant", "content": ""}:
        messages.pop()
    return messages
