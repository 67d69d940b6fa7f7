"""Tokenise conversations with a chat template, the same way for training and for generation.

A conversation is rendered and tokenised as one text, as by `apply_chat_template`, with one difference: a control
token in a message (`</s>` in a question) is encoded as plain text. It is rendered as a mark that templates leave
unchanged, and its text is encoded separately. The text of every message must be in what the template renders, and
a template that asks for today's date gets that of the settings (`model.template_date`).
"""

import datetime
import functools
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sams.data.records import Message
from sams.runtime.errors import UserError
from sams.study.settings.model import TEMPLATE_DATE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Default for tokenizers without a template: the dialogues of the HH data.
PLAIN_TEMPLATE = (
    "{% if bos_token and bos_token != eos_token %}{{ bos_token }}{% endif %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ '\n\nAssistant: ' + message['content'] }}"
    "{% elif message['role'] == 'user' %}{{ '\n\nHuman: ' + message['content'] }}"
    "{% else %}{{ message['content'] }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '\n\nAssistant:' }}{% endif %}"
)

# Unicode noncharacters that enclose the text of a control token, in hexadecimal.
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"
_MARK = re.compile(f"{_OPEN}([0-9a-f]+){_CLOSE}")

# Directives of strftime; `%%` is the last.
DIRECTIVES = ("-d", "-m", "-j", "-H", "-I", "-M", "-S", *"aAwdbBmyYjUWuVGgxDFhHIMSpfcXTReszZnt%")
QUESTION, ANSWER = "sams-question", "sams-answer"
THOUGHT = re.compile("</?think>")


def encode_prompt(
    tokenizer: "PreTrainedTokenizerBase", messages: list[Message], date: str = TEMPLATE_DATE
) -> list[int]:
    """Return the token ids of a conversation up to the assistant's answer.

    They begin with exactly one BOS. Without a BOS, or with a BOS that is the EOS, they begin as the template does.

    Args:
        tokenizer: tokenizer with a chat template.
        messages: the conversation, the last message from the user.
        date: the day that the template gets for today's, YYYY-MM-DD.

    Raises:
        UserError: the template refuses these roles, or leaves out text of a message.
    """
    return encode_prompts(tokenizer, [messages], date)[0]


def encode_prompts(
    tokenizer: "PreTrainedTokenizerBase",
    conversations: list[list[Message]],
    date: str = TEMPLATE_DATE,
    left_out: list[str] | None = None,
) -> list[list[int]]:
    """Apply `encode_prompt` to many conversations, tokenised in one call.

    `left_out` has for each conversation the end of its prompt that its answers replace, by `CompletionEncoder`.
    """
    control = _control_pattern(tokenizer)
    rendered = []
    for messages in conversations:
        marked = [{**turn, "content": _marked(turn["content"], control)} for turn in messages]
        rendered.append(_render(tokenizer, marked, date))
        _refuse_lost(marked, rendered[-1])
    if left_out is not None:
        rendered = [text.removesuffix(end) for text, end in zip(rendered, left_out, strict=True)]
    return [_with_one_bos(tokenizer, ids) for ids in _encode(tokenizer, rendered)]


def stop_ids(tokenizer: "PreTrainedTokenizerBase", date: str = TEMPLATE_DATE) -> list[int]:
    """Return the token ids that end an answer: EOS, and the token with which the template ends the assistant's turn.

    A template that ends turns with plain text, or does not render an answered question, adds none to EOS.
    """
    ids = {tokenizer.eos_token_id}
    turns = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]
    try:
        _, found, after = _render(tokenizer, turns, date, generation=False).rpartition(ANSWER)
    except UserError:
        found = after = ""
    if found and after.strip():
        [end] = _encode(tokenizer, [after.strip()])
        ids.add(next((token for token in end if token in tokenizer.added_tokens_decoder), None))
    return sorted(ids - {None})


class CompletionEncoder:
    """Tokenise responses that follow the ids of `encode_prompt`; each ends with its only EOS.

    The text between generation prompt and response, and the text after the response, are those of the template. EOS
    is appended if the template ends a turn without it.

    Attributes:
        end: token ids that end a response.

    Args:
        tokenizer: tokenizer with a chat template.
        date: the day that the template gets for today's, YYYY-MM-DD.

    Raises:
        UserError: the tokenizer has no EOS, or the template renders an answered conversation differently from its
            generation prompt followed by the answer.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", date: str = TEMPLATE_DATE) -> None:
        if tokenizer.eos_token_id is None:
            raise UserError(
                "the tokenizer has no EOS token", where="model", remedy="set `eos_token` in its config"
            )
        self._tokenizer, self._date = tokenizer, date
        self._control = _control_pattern(tokenizer)
        self._prompt = _render(tokenizer, [{"role": "user", "content": QUESTION}], date)
        answered = self._answered(ANSWER)
        if not answered.startswith(self._prompt) or ANSWER not in answered:
            raise self._elsewhere()
        self._lead, _, self._after = answered.removeprefix(self._prompt).partition(ANSWER)
        [end] = _encode(tokenizer, [self._after.rstrip()])
        eos = tokenizer.eos_token_id
        self.end = end[: end.index(eos) + 1] if eos in end else [*end, eos]
        # The empty think block at the end of some generation prompts: the thoughts of an answer stand in its place.
        start = self._prompt.rfind("<think>")
        self._empty_thought = self._prompt[start:] if start >= 0 else ""

    def left_out(self, responses: Sequence[str]) -> str:
        """Return the end of the prompt that these responses to it replace: an empty think block, or an empty text.

        Where one response has thoughts, the template's empty think block is part of the others.
        """
        has_thoughts = bool(self._empty_thought) and any(map(THOUGHT.search, responses))
        return self._empty_thought if has_thoughts else ""

    def __call__(self, responses: list[str], left_out: list[str] | None = None) -> list[list[int]]:
        """Return the token ids of each response; a response without tokens becomes `end` alone.

        Args:
            responses: the responses.
            left_out: for each, the end of its prompt that is left out of the prompt's ids.

        Raises:
            UserError: the template leaves out text of a response.
        """
        ends = left_out or [""] * len(responses)
        texts = [
            self._text(_marked(response, self._control), end)
            for response, end in zip(responses, ends, strict=True)
        ]
        # Responses are tokenised after the end of a prompt, since the preceding text can change a word's tokens.
        after_question = self._prompt.rpartition(QUESTION)[2]
        contexts = [after_question.removesuffix(end) for end in ends]
        context_ids = {text: _encode(self._tokenizer, [text])[0] for text in set(contexts)}
        encoded = []
        in_context = _encode(
            self._tokenizer, [context + text for context, text in zip(contexts, texts, strict=True)]
        )
        for context, text, ids in zip(contexts, texts, in_context, strict=True):
            before = context_ids[context]
            if ids[: len(before)] == before:
                own = ids[len(before) :]
            else:  # the start of the response merges into the prompt's last token
                [own] = _encode(self._tokenizer, [text])
            encoded.append([*own, *self.end])
        return encoded

    def _text(self, response: str, left_out: str) -> str:
        """Return a response with the text before it.

        It is what the template itself renders where that may depend on the response: where the template puts a think
        block before answers, or the response has one.
        """
        if not self._lead.strip() and not left_out and not THOUGHT.search(response):
            return self._lead + response
        prompt, rendered = self._prompt.removesuffix(left_out), self._answered(response)
        if not rendered.startswith(prompt):
            raise self._elsewhere()
        text = rendered.removeprefix(prompt).removesuffix(self._after)
        for part in THOUGHT.split(response):
            if part.strip() not in text:
                raise _lost("assistant", part)
        return text

    def _answered(self, response: str) -> str:
        """Return what the template renders for a question with this answer."""
        turns = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": response}]
        return _render(self._tokenizer, turns, self._date, generation=False)

    @staticmethod
    def _elsewhere() -> UserError:
        return UserError(
            "the chat template writes an answer elsewhere than after its generation prompt",
            where="model.chat_template",
            remedy="give a template whose `add_generation_prompt` ends where answers begin",
        )


def _render(
    tokenizer: "PreTrainedTokenizerBase", messages: list[Message], date: str, *, generation: bool = True
) -> str:
    try:
        template = _dated(tokenizer.get_chat_template(), date)
        return str(
            tokenizer.apply_chat_template(
                messages, chat_template=template, tokenize=False, add_generation_prompt=generation
            )
        )
    except Exception as error:  # templates raise errors of any class
        raise UserError(
            f"the chat template refuses the roles {[message['role'] for message in messages]}: {error}",
            where="model.chat_template",
            remedy="give a template that takes them, or drop such conversations",
        ) from error


@functools.lru_cache
def _dated(template: str, date: str) -> str:
    """Return a template whose `strftime_now` formats a fixed day, at noon.

    A macro at its start replaces the function: transformers passes no function on to a template.
    """
    if "strftime_now" not in template:
        return template
    day = datetime.datetime.combine(datetime.date.fromisoformat(date), datetime.time(12))
    formatted = "format"
    for directive in DIRECTIVES:
        formatted += f"|replace('%{directive}', {day.strftime(f'%{directive}')!r})"
    # Jinja drops the line end after a block, so the template begins as before.
    return f"{{%- macro strftime_now(format) -%}}{{{{ {formatted} }}}}{{%- endmacro %}}\n{template}"


def _refuse_lost(messages: list[Message], rendered: str) -> None:
    """Check that the text of every message is in a rendered conversation.

    Templates may leave out the think blocks of earlier answers.
    """
    for message in sorted(messages, key=lambda message: -len(message["content"])):
        text = message["content"]
        if message["role"] == "assistant":
            text = text.rpartition("</think>")[2]
        if not (text := text.strip()):
            continue
        before, found, after = rendered.partition(text)
        if not found:
            raise _lost(message["role"], text)
        # What one message has found, a shorter one must not find again.
        rendered = f"{before}\0{after}"


def _lost(role: str, text: str) -> UserError:
    return UserError(
        f"the chat template leaves out text of the {role}'s message {text.strip()!r:.60}",
        where="model.chat_template",
        remedy="give a template that renders every message, or drop such conversations",
    )


def _with_one_bos(tokenizer: "PreTrainedTokenizerBase", ids: list[int]) -> list[int]:
    bos = tokenizer.bos_token_id
    if bos is None or bos == tokenizer.eos_token_id:
        return ids
    start = next((index for index, token in enumerate(ids) if token != bos), len(ids))
    return [bos, *ids[start:]]


# --- control tokens in messages -------------------------------------------------------------------


def _control_tokens(tokenizer: "PreTrainedTokenizerBase") -> dict[str, int]:
    tokens = {
        token.content: number for number, token in tokenizer.added_tokens_decoder.items() if token.special
    }
    return tokens | dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))


def _control_pattern(tokenizer: "PreTrainedTokenizerBase") -> re.Pattern[str]:
    longest_first = sorted(_control_tokens(tokenizer), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, [*longest_first, _OPEN, _CLOSE])))


def _marked(text: str, control: re.Pattern[str]) -> str:
    """Replace each control token in a text by a mark."""
    return control.sub(lambda match: f"{_OPEN}{match.group().encode().hex()}{_CLOSE}", text)


def _encode(tokenizer: "PreTrainedTokenizerBase", texts: list[str]) -> list[list[int]]:
    """Tokenise rendered texts; the content of marks is encoded as plain text."""
    # `split` returns the content of marks at odd indices.
    parts = [_MARK.split(text) if _OPEN in text else [text] for text in texts]
    rendered = iter(_ids(tokenizer, [piece for pieces in parts for piece in pieces[::2]], plain=False))
    written = [bytes.fromhex(piece).decode() for pieces in parts for piece in pieces[1::2]]
    plain = iter(_ids(tokenizer, written, plain=True))
    return [
        next(rendered)
        if len(pieces) == 1
        else [token for index in range(len(pieces)) for token in next(plain if index % 2 else rendered)]
        for pieces in parts
    ]


def _ids(tokenizer: "PreTrainedTokenizerBase", texts: list[str], *, plain: bool) -> list[list[int]]:
    if not texts:
        return []
    encoded: list[list[int]] = tokenizer(
        texts,
        add_special_tokens=False,
        split_special_tokens=plain,
        return_attention_mask=False,
        verbose=False,
    )["input_ids"]
    if not plain:
        return encoded
    # Some tokenizers encode such a text as the control token all the same: those ids are removed.
    control = set(_control_tokens(tokenizer).values()) - {tokenizer.unk_token_id}
    return [[token for token in ids if token not in control] for ids in encoded]
