"""Conversations as token ids: golden ids of each template, one BOS, one EOS, no control token from a message."""

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sams.data.templates import (
    PLAIN_TEMPLATE,
    CompletionEncoder,
    _render,
    encode_prompt,
    encode_prompts,
    stop_ids,
)
from sams.data.tokeniser import train_tokenizer
from sams.runtime.errors import UserError
from sams.study.settings import Model
from sams.study.settings.model import TEMPLATE_DATE

# The templates of the paper's models, as published with them.
LLAMA_3 = (
    "{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] + "
    "'<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
)
GEMMA_2 = (
    "{{ bos_token }}"
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
CHAT_ML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# Template, BOS, EOS, other control tokens, and the golden tokens of prompt and response.
TEMPLATES: dict[str, tuple[str, str | None, str, list[str], list[str], list[str]]] = {
    "plain": (
        PLAIN_TEMPLATE,
        "<s>",
        "</s>",
        [],
        "<s> \n\n Human : _ hi \n\n Assistant : _ ok \n\n Human : _ why \n\n Assistant :".split(" "),
        "_ so _ </s>".split(" "),
    ),
    "plain, BOS is EOS (GPT-NeoX)": (
        PLAIN_TEMPLATE,
        "<|endoftext|>",
        "<|endoftext|>",
        [],
        "\n\n Human : _ hi \n\n Assistant : _ ok \n\n Human : _ why \n\n Assistant :".split(" "),
        "_ so _ <|endoftext|>".split(" "),
    ),
    "llama-3": (
        LLAMA_3,
        "<|begin_of_text|>",
        "<|eot_id|>",
        ["<|start_header_id|>", "<|end_header_id|>"],
        (
            "<|begin_of_text|> <|start_header_id|> user <|end_header_id|> \n\n hi <|eot_id|>"
            " <|start_header_id|> assistant <|end_header_id|> \n\n ok <|eot_id|>"
            " <|start_header_id|> user <|end_header_id|> \n\n why <|eot_id|>"
            " <|start_header_id|> assistant <|end_header_id|> \n\n"
        ).split(" "),
        "so _ <|eot_id|>".split(" "),
    ),
    "mistral": (
        MISTRAL,
        "<s>",
        "</s>",
        [],
        "<s> [ INST ] _ hi _ [ / INST ] _ ok </s> [ INST ] _ why _ [ / INST ]".split(" "),
        "_ so _ </s>".split(" "),
    ),
    "gemma-2": (
        GEMMA_2,
        "<bos>",
        "<eos>",
        ["<start_of_turn>", "<end_of_turn>"],
        (
            "<bos> <start_of_turn> user \n hi <end_of_turn> \n <start_of_turn> model \n ok <end_of_turn> \n"
            " <start_of_turn> user \n why <end_of_turn> \n <start_of_turn> model \n"
        ).split(" "),
        "so _ <end_of_turn> <eos>".split(" "),
    ),
    "chat-ml without BOS": (
        CHAT_ML,
        None,
        "<|im_end|>",
        ["<|im_start|>"],
        (
            "<|im_start|> user \n hi <|im_end|> \n <|im_start|> assistant \n ok <|im_end|> \n"
            " <|im_start|> user \n why <|im_end|> \n <|im_start|> assistant \n"
        ).split(" "),
        "so _ <|im_end|>".split(" "),
    ),
}

MESSAGES = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "ok"},
    {"role": "user", "content": "why"},
]


def tokenizer_of(template: str, bos: str | None, eos: str | None, *control: str) -> PreTrainedTokenizerFast:
    """A tokenizer of words, blanks and signs, so that tokens can be read."""
    words = "<unk> hi ok why so user assistant model Human Assistant INST : [ ] / < > | s".split()
    vocabulary = {word: number for number, word in enumerate([*words, " ", "\n", "\n\n"])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n\n|\s|[^\s\w]|\w+"), "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        unk_token="<unk>",
        additional_special_tokens=list(control),
        chat_template=template,
        **{key: token for key, token in (("bos_token", bos), ("eos_token", eos)) if token},
    )


@pytest.fixture(params=list(TEMPLATES.values()), ids=list(TEMPLATES))
def case(request: pytest.FixtureRequest) -> Any:
    template, bos, eos, control, prompt, response = request.param
    return tokenizer_of(template, bos, eos, *control), prompt, response


def spelt(tokens: list[str]) -> list[str]:
    return [" " if token == "_" else token for token in tokens]


def test_golden_ids(case: Any) -> None:
    tokenizer, prompt, response = case
    ids = encode_prompt(tokenizer, MESSAGES)
    assert tokenizer.convert_ids_to_tokens(ids) == spelt(prompt)
    # The golden response is `so` and a blank that the template must not swallow.
    [answer] = CompletionEncoder(tokenizer)(["so "])
    assert tokenizer.convert_ids_to_tokens(answer) == spelt(response)


def test_ids_are_those_of_the_template_itself(case: Any) -> None:
    tokenizer, *_ = case
    own = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True)["input_ids"]
    assert encode_prompt(tokenizer, MESSAGES) == own
    answered = [*MESSAGES, {"role": "assistant", "content": "so"}]
    whole = tokenizer.apply_chat_template(answered)["input_ids"]
    if whole[-1] == tokenizer.convert_tokens_to_ids("\n"):
        whole.pop()  # what comes after the end of the turn is not the answer's
    if whole[-1] != tokenizer.eos_token_id:
        whole.append(tokenizer.eos_token_id)
    [answer] = CompletionEncoder(tokenizer)(["so"])
    assert own + answer == whole


def test_one_bos_and_one_eos(case: Any) -> None:
    tokenizer, *_ = case
    ids, [answer] = encode_prompt(tokenizer, MESSAGES), CompletionEncoder(tokenizer)(["so"])
    if tokenizer.bos_token is not None and tokenizer.bos_token != tokenizer.eos_token:
        assert ids[0] == tokenizer.bos_token_id and ids.count(tokenizer.bos_token_id) == 1
    assert answer[-1] == tokenizer.eos_token_id and answer.count(tokenizer.eos_token_id) == 1
    assert tokenizer.bos_token_id not in answer[:-1]


def test_bos_is_added_where_a_template_forgets_it_and_never_doubled() -> None:
    for template in (CHAT_ML, "{{ bos_token }}{{ bos_token }}" + CHAT_ML):
        tokenizer = tokenizer_of(template, "<s>", "</s>")
        ids = encode_prompt(tokenizer, MESSAGES)
        assert ids[0] == tokenizer.bos_token_id and ids.count(tokenizer.bos_token_id) == 1


def test_control_tokens_in_messages_are_text(case: Any) -> None:
    tokenizer, *_ = case
    plain = encode_prompt(tokenizer, MESSAGES)
    control = [token for token in tokenizer.all_special_tokens if token != "<unk>"]
    for token in control:
        number = tokenizer.convert_tokens_to_ids(token)
        for place, message in enumerate(MESSAGES):
            for content in (token, f"hi {token} hi", f"{token}{token}", f"{token} hi"):
                messages = [*MESSAGES[:place], {**message, "content": content}, *MESSAGES[place + 1 :]]
                ids = encode_prompt(tokenizer, messages)
                assert ids.count(number) == plain.count(number), (token, content)
                assert len(ids) > len(plain)
    for response, ids in zip(control, CompletionEncoder(tokenizer)(control), strict=True):
        own = CompletionEncoder(tokenizer)
        assert not set(ids[: -len(own.end)]) & set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}, (
            response
        )
        assert len(ids) > len(own.end)


def test_the_marks_in_messages_are_text_too() -> None:
    tokenizer = byte_tokenizer()
    for content in ("\ufdd03c2f733e\ufdd1", "\ufdd0", "a\ufdd1b", "\ufdd0<eos>\ufdd1"):
        ids = encode_prompt(tokenizer, [{"role": "user", "content": content}])
        assert tokenizer.decode(ids[1:]) == f"\n\nHuman: {content}\n\nAssistant:"
        assert tokenizer.eos_token_id not in ids


_BYTES: list[PreTrainedTokenizerFast] = []


def byte_tokenizer() -> Any:
    """A byte-level BPE with some merges, made once."""
    if not _BYTES:
        settings = Model(architecture={"model_type": "llama"}, tokenizer="bpe", vocab_size=320)
        _BYTES.append(
            train_tokenizer(settings, PLAIN_TEMPLATE, iter(["\n\nHuman: hello there\n\nAssistant: hi"] * 9))
        )
    return _BYTES[0]


TEXT = st.text(
    st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from("<eos>bpad/un\n ")),
    min_size=1,
    max_size=60,
)


@given(TEXT, TEXT)
def test_any_text_survives(question: str, answer: str) -> None:
    tokenizer = byte_tokenizer()
    ids = encode_prompt(tokenizer, [{"role": "user", "content": question}])
    control = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    assert tokenizer.decode(ids[1:]) == f"\n\nHuman: {question}\n\nAssistant:"
    assert ids[0] == tokenizer.bos_token_id and not set(ids[1:]) & control
    [response] = CompletionEncoder(tokenizer)([answer])
    assert tokenizer.decode(response[:-1]) == f" {answer}"
    assert response[-1] == tokenizer.eos_token_id and not set(response[:-1]) & control


def test_many_are_encoded_as_each_alone(case: Any) -> None:
    tokenizer, *_ = case
    others = [[{"role": "user", "content": text}] for text in ("hi hi", "</s>", "why so")]
    conversations = [MESSAGES, *others]
    assert encode_prompts(tokenizer, conversations) == [
        encode_prompt(tokenizer, one) for one in conversations
    ]
    encode = CompletionEncoder(tokenizer)
    assert encode(["so", "</s>", "\n\nso"]) == [encode([one])[0] for one in ("so", "</s>", "\n\nso")]


def test_refused_roles_and_odd_templates_are_named() -> None:
    gemma = tokenizer_of(GEMMA_2, "<bos>", "<eos>")
    with pytest.raises(UserError, match=r"refuses the roles \['system', 'user'\]: System role not supported"):
        encode_prompt(gemma, [{"role": "system", "content": "so"}, MESSAGES[0]])
    with pytest.raises(UserError, match="no EOS token"):
        CompletionEncoder(tokenizer_of(PLAIN_TEMPLATE, "<s>", None))
    thinking = CHAT_ML.replace(
        "'<|im_start|>assistant\n' }}{% endif", "'<|im_start|>assistant\n<think>' }}{% endif"
    )
    with pytest.raises(UserError, match="writes an answer elsewhere than after its generation prompt"):
        CompletionEncoder(tokenizer_of(thinking, None, "<|im_end|>"))
    with pytest.raises(UserError, match=r"model.chat_template"):
        encode_prompt(tokenizer_of("{% for %}", "<s>", "</s>"), MESSAGES)


def as_whole(tokenizer: Any, conversation: list[dict[str, str]]) -> str:
    return str(tokenizer.apply_chat_template(conversation, tokenize=False))


LOSING = {
    "no branch for system": CHAT_ML.replace(
        "{% for message in messages %}", "{% for message in messages if message['role'] != 'system' %}"
    ),
    "the last user turn only": "{{ '<|im_start|>user\n' + messages[-1]['content'] + '<|im_end|>\n' }}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "sliced content": CHAT_ML.replace("message['content']", "message['content'][:4]"),
    "lower case": CHAT_ML.replace("message['content']", "message['content'] | lower"),
}


@pytest.mark.parametrize("template", LOSING.values(), ids=LOSING.keys())
def test_a_template_that_loses_text_is_refused(template: str) -> None:
    tokenizer = tokenizer_of(template, None, "<|im_end|>", "<|im_start|>")
    system = {"role": "system", "content": "hi user Why"}
    with pytest.raises(
        UserError, match=r"^model.chat_template: .*leaves out text of the (system|user)'s message '"
    ):
        encode_prompt(tokenizer, [system, *MESSAGES])


def test_a_text_that_another_message_holds_is_missed_too() -> None:
    last = "{{ '<s>' + messages[-1]['content'] }}{% if add_generation_prompt %}{{ '</s>' }}{% endif %}"
    for first in ("why", "so why", "s"):
        messages = [{"role": "user", "content": first}, *MESSAGES[1:2], {"role": "user", "content": "why"}]
        with pytest.raises(UserError, match="leaves out text"):
            encode_prompt(tokenizer_of(last, None, "</s>"), messages)


def test_the_date_is_that_of_the_settings() -> None:
    dated = (
        "\n  {% if strftime_now is defined %}\n{{ strftime_now('%d %b %Y, %A %-d/%-m/%y 100%%') }}{% endif %}"
        + CHAT_ML
    )
    tokenizer = byte_tokenizer()
    plain, tokenizer.chat_template = tokenizer.chat_template, dated
    try:
        texts = [
            tokenizer.decode(encode_prompt(tokenizer, MESSAGES, date)[1:])
            for date in ("2025-03-04", "1999-12-31")
        ]
        assert texts[0].startswith("\n04 Mar 2025, Tuesday 4/3/25 100%<|im_start|>user\nhi")
        assert texts[1].startswith("\n31 Dec 1999, Friday 31/12/99 100%<|im_start|>user\nhi")
        assert tokenizer.decode(encode_prompt(tokenizer, MESSAGES)[1:]).startswith("\n26 Jul 2024")
        # The rest is as transformers renders it.
        today, _, rest = as_whole(tokenizer, MESSAGES).partition("<|im_start|>")
        assert texts[0] == f"\n04 Mar 2025, Tuesday 4/3/25 100%<|im_start|>{rest}<|im_start|>assistant\n"
        assert today.startswith("\n") and today.endswith("100%")
    finally:
        tokenizer.chat_template = plain


# As Qwen3's: an empty think block before each answer without one, and no think block in earlier answers.
THINKING = (
    "{% for message in messages %}{% set content = message['content'] %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}{% set thought = '' %}{% if '</think>' in content %}"
    "{% set thought = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{% if loop.last %}{{ '<think>\n' + thought + '\n</think>\n\n' }}{% endif %}{% endif %}"
    "{{ content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


# An empty think block in the generation prompt too.
IN_THE_PROMPT = THINKING.replace(
    "assistant\n' }}{% endif %}", "assistant\n<think>\n\n</think>\n\n' }}{% endif %}"
)


@pytest.mark.parametrize(
    "answer", ["Red.", "<think>\nIt\nscatters.\n</think>\n\nRed.", "<think>It</think>Red."]
)
@pytest.mark.parametrize("template", [THINKING, IN_THE_PROMPT, CHAT_ML])
def test_a_think_block_is_what_the_template_renders(template: str, answer: str) -> None:
    tokenizer = byte_tokenizer()
    plain, tokenizer.chat_template = tokenizer.chat_template, template
    try:
        earlier = {"role": "assistant", "content": "<think>\nx\n</think>\n\nok"}
        messages = [MESSAGES[0], earlier, MESSAGES[2]]
        encode = CompletionEncoder(tokenizer)
        for pair in ([answer], [answer, "Blue."], ["Blue.", answer]):
            left_out = [encode.left_out(pair)]
            [[_, *ids]] = encode_prompts(tokenizer, [messages], left_out=left_out)
            for each in pair:
                response = tokenizer.decode(encode([each], left_out)[0][:-1])
                whole = as_whole(tokenizer, [*messages, {"role": "assistant", "content": each}])
                assert tokenizer.decode(ids) + response == whole.rstrip("\n")
                blocks = each.count("<think>") if template == CHAT_ML else 1
                assert whole.partition("why")[2].count("<think>") == blocks
        if answer == "Red.":
            assert ids == encode_prompt(tokenizer, messages)[1:], "the prompt is that of generation"
    finally:
        tokenizer.chat_template = plain


def test_a_template_that_drops_the_thoughts_of_an_answer_is_refused() -> None:
    dropping = CHAT_ML.replace("message['content']", "message['content'].split('</think>')[-1]")
    with pytest.raises(UserError, match="leaves out text of the assistant's message 'It'"):
        CompletionEncoder(tokenizer_of(dropping, None, "<|im_end|>"))(["<think>It</think>Red."])


@pytest.mark.parametrize(
    ("template", "eos", "control", "stops"),
    [
        (CHAT_ML, "</s>", ["<|im_start|>", "<|im_end|>"], ["</s>", "<|im_end|>"]),
        (CHAT_ML, "<|im_end|>", ["<|im_start|>"], ["<|im_end|>"]),
        (GEMMA_2, "<eos>", ["<start_of_turn>", "<end_of_turn>"], ["<eos>", "<end_of_turn>"]),
        (LLAMA_3, "<|end_of_text|>", ["<|eot_id|>"], ["<|end_of_text|>", "<|eot_id|>"]),
        (PLAIN_TEMPLATE, "</s>", [], ["</s>"]),
        (MISTRAL, "</s>", [], ["</s>"]),
        ("{{ raise_exception('no') }}", "</s>", [], ["</s>"]),
        (CHAT_ML, None, ["<|im_start|>", "<|im_end|>"], ["<|im_end|>"]),
    ],
)  # fmt: skip
def test_an_answer_ends_where_the_template_ends_the_turn(
    template: str, eos: str | None, control: list[str], stops: list[str]
) -> None:
    tokenizer = tokenizer_of(template, "<s>", eos, *control)
    assert stop_ids(tokenizer) == sorted(tokenizer.convert_tokens_to_ids(stops))


PUBLISHED = Path(find_spec("trl").origin).parent / "chat_templates"  # type: ignore[union-attr,arg-type]
NAMES = "cohere cohere2 gemma gemma3 glm4moe gptoss lfm2 llama3 llama3_1 llama3_2 phi3 phi3_5 qwen2_5 qwen3"
CONVERSATIONS = [
    MESSAGES[:1],
    MESSAGES,
    [{"role": "system", "content": "be so"}, *MESSAGES],
    [MESSAGES[0], {"role": "assistant", "content": "<think>\nhi\n</think>\n\nok"}, MESSAGES[2]],
]


@pytest.mark.parametrize("name", [name for name in NAMES.split() if (PUBLISHED / f"{name}.jinja").is_file()])
def test_published_templates_render_prompt_and_answer(name: str) -> None:
    template = (PUBLISHED / f"{name}.jinja").read_text()
    control = set(re.findall(r"<[|][^<>\n'\"{}]*[|]>|<(?:end|start)_of_turn>", template))
    tokenizer = tokenizer_of(template, "<s>", "<eos>", *control)
    encode = CompletionEncoder(tokenizer)
    for messages in CONVERSATIONS:
        for answer in ("so why", "<think>\nwhy\n</think>\n\nso"):
            left_out = [encode.left_out([answer])]
            if name == "gemma" and messages[0]["role"] == "system":
                with pytest.raises(UserError, match="System role not supported"):
                    encode_prompts(tokenizer, [messages], left_out=left_out)
                continue
            [prompt] = encode_prompts(tokenizer, [messages], left_out=left_out)
            [response] = encode([answer], left_out)
            answered = [*messages, {"role": "assistant", "content": answer}]
            whole = _render(tokenizer, answered, TEMPLATE_DATE, generation=False)
            own = tokenizer(whole.rstrip(), add_special_tokens=False)["input_ids"]
            own = [token for token in own if token != tokenizer.bos_token_id]
            assert [*prompt[1:], *response] in (own, [*own, tokenizer.eos_token_id])
    assert len(stop_ids(tokenizer)) == (1 if name == "glm4moe" else 2), "the end of the turn, and EOS"
