"""Chat templates: how a conversation becomes token ids, for training and for generation alike.

Templates are rendered with a mark in place of each message. The template's own text is parsed for control
tokens; what people wrote is not, so `</s>` in a message is text like any other.
"""

from functools import cache, partial
from typing import TYPE_CHECKING

from sams.data.records import Message
from sams.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# For tokenizers without a template of their own: the form of the HH data, one turn after the other.
PLAIN_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ '\n\nAssistant: ' + message['content'] }}"
    "{% elif message['role'] == 'user' %}{{ '\n\nHuman: ' + message['content'] }}"
    "{% else %}{{ message['content'] }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '\n\nAssistant:' }}{% endif %}"
)

_MARK = "\ue000{}\ue001"


def encode_prompt(tokenizer: "PreTrainedTokenizerBase", messages: list[Message]) -> list[int]:
    """Token ids of a conversation that the assistant is to answer, with exactly one BOS if there is one.

    Raises:
        UserError: when the template does not take these roles.
    """
    return encode_prompts(tokenizer, [messages])[0]


def encode_prompts(
    tokenizer: "PreTrainedTokenizerBase", conversations: list[list[Message]]
) -> list[list[int]]:
    """`encode_prompt` of many conversations, whose contents are tokenised together."""
    template_ids = cache(partial(_template_ids, tokenizer))
    contents = iter(_plain_ids(tokenizer, [turn["content"] for turns in conversations for turn in turns]))
    encoded = []
    for messages in conversations:
        marked = [{"role": turn["role"], "content": _MARK.format(at)} for at, turn in enumerate(messages)]
        rest = _render(tokenizer, marked, add_generation_prompt=True)
        ids: list[int] = []
        for at, content in zip(range(len(messages)), contents, strict=False):
            before, mark, after = rest.partition(_MARK.format(at))
            if mark:
                ids += template_ids(before) + content
                rest = after
        encoded.append(_with_one_bos(tokenizer, ids + template_ids(rest)))
    return encoded


class CompletionEncoder:
    """Token ids of responses as they follow `encode_prompt`, each with exactly one end of turn.

    What stands between generation prompt and response, and after the response, is read off the template. A
    template that ends a turn with nothing gets the tokenizer's EOS.

    Raises:
        UserError: when the tokenizer has no EOS token.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        if tokenizer.eos_token_id is None:
            raise UserError("the tokenizer has no EOS token", where="model", remedy="set one in its config")
        self.tokenizer = tokenizer
        asked = [{"role": "user", "content": _MARK.format(0)}]
        answered = [*asked, {"role": "assistant", "content": _MARK.format(1)}]
        prompt = _render(tokenizer, asked, add_generation_prompt=True)
        before, _, after = _render(tokenizer, answered, add_generation_prompt=False).partition(
            _MARK.format(1)
        )
        self.lead = before.removeprefix(prompt) if before.startswith(prompt) else ""
        end = _template_ids(tokenizer, after.strip())
        self.end = end[:1] if end[:1] and end[0] in tokenizer.all_special_ids else [tokenizer.eos_token_id]

    def __call__(self, responses: list[str]) -> list[list[int]]:
        """Token ids of each response."""
        plain = _plain_ids(self.tokenizer, [self.lead + response for response in responses])
        return [[*ids, *self.end] for ids in plain]


def _render(
    tokenizer: "PreTrainedTokenizerBase", messages: list[Message], *, add_generation_prompt: bool
) -> str:
    try:
        return str(
            tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        )
    except Exception as error:  # a template raises whatever its author chose
        raise UserError(
            f"the chat template refuses the roles {[message['role'] for message in messages]}: {error}",
            where="model.chat_template",
            remedy="give a template that takes them, or drop such conversations",
        ) from error


def _with_one_bos(tokenizer: "PreTrainedTokenizerBase", ids: list[int]) -> list[int]:
    bos = tokenizer.bos_token_id
    if bos is None:
        return ids
    start = next((place for place, token in enumerate(ids) if token != bos), len(ids))
    return [bos, *ids[start:]]


def _template_ids(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _plain_ids(tokenizer: "PreTrainedTokenizerBase", texts: list[str]) -> list[list[int]]:
    if not texts:
        return []
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return ids
