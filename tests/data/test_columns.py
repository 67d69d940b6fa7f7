"""Rows as people bring them: columns with the prompt, own names, conversations in text. Nothing is lost silently."""

import json
from pathlib import Path
from typing import Any

import pytest

from sams.data.forms import Reading, read_examples, read_pairs, read_prompts
from sams.data.records import Example, Message, Pair
from sams.runtime.errors import UserError
from tests.data.test_forms import write

PAIR = {"prompt": "Good morning?", "chosen": "Bonjour.", "rejected": "Hello."}
USER = {"role": "user", "content": "Good morning?"}
FRENCH = {"role": "system", "content": "Answer in French only."}
ASKED = {"role": "user", "content": "How is the weather in Oslo?"}
ANSWERED = {"role": "assistant", "content": "Rainy."}
GOOD, BAD = ({"role": "assistant", "content": text} for text in ("Bonjour.", "Hello."))
SIDES = {"chosen": "Bonjour.", "rejected": "Hello."}
DIALOGUE = "\n\nHuman: Good morning?\n\nAssistant: "


def said(*messages: Message) -> str:
    return json.dumps(messages)


def gpt(text: str) -> dict[str, str]:
    return {"from": "gpt", "value": text}


HUMAN = {"from": "human", "value": "Good morning?"}
HISTORY = [["How is the weather in Oslo?", "Rainy."]]

READ: dict[str, tuple[dict[str, Any], list[Message]]] = {
    "a system column": ({"system": FRENCH["content"], **PAIR}, [FRENCH, USER]),
    "a system column by another name": ({"system_prompt": FRENCH["content"], **PAIR}, [FRENCH, USER]),
    "an empty system column": ({"system": " ", **PAIR}, [USER]),
    "orca": ({"system": FRENCH["content"], "question": "Good morning?", **SIDES}, [FRENCH, USER]),
    "orca, the question as input": ({"system": FRENCH["content"], "input": "Good morning?", **SIDES}, [FRENCH, USER]),
    "system beside conversations": (
        {"system": FRENCH["content"], "chosen": [USER, GOOD], "rejected": [USER, BAD]},
        [FRENCH, USER],
    ),
    "system beside conversations that have it": (
        {"system": FRENCH["content"], "chosen": [FRENCH, USER, GOOD], "rejected": [FRENCH, USER, BAD]},
        [FRENCH, USER],
    ),
    "a history column": (
        {"instruction": "Good morning?", "input": "", "history": HISTORY, **SIDES},
        [ASKED, ANSWERED, USER],
    ),
    "history as JSON in text": ({"history": json.dumps(HISTORY), **PAIR}, [ASKED, ANSWERED, USER]),
    "history as messages, and a system column": (
        {"history": [ASKED, ANSWERED], "system": FRENCH["content"], **PAIR},
        [FRENCH, ASKED, ANSWERED, USER],
    ),
    "history that the prompt holds": (
        {"history": HISTORY, "prompt": [ASKED, ANSWERED, USER], **SIDES},
        [ASKED, ANSWERED, USER],
    ),
    "ShareGPT": ({"conversations": [HUMAN], "chosen": gpt("Bonjour."), "rejected": gpt("Hello.")}, [USER]),
    "ShareGPT of several turns": (
        {
            "conversations": [
                {"from": "system", "value": FRENCH["content"]},
                {"from": "human", "value": ASKED["content"]},
                gpt("Rainy."),
                HUMAN,
            ],
            "chosen": gpt("Bonjour."),
            "rejected": gpt("Hello."),
        },
        [FRENCH, ASKED, ANSWERED, USER],
    ),
    "a message on each side": ({"prompt": "Good morning?", "chosen": GOOD, "rejected": BAD}, [USER]),
    "messages as the prompt": ({"messages": [FRENCH, USER], **SIDES}, [FRENCH, USER]),
    "the chosen conversation again": (
        {"chosen": [USER, GOOD], "rejected": [USER, BAD], "messages": [USER, GOOD]},
        [USER],
    ),
    "JSON in text": ({**PAIR, "chosen": said(USER, GOOD), "rejected": said(USER, BAD)}, [USER]),
    "JSON of objects with messages in text": (
        {**PAIR, "chosen": json.dumps({"messages": [USER, GOOD]}), "rejected": json.dumps({"messages": [USER, BAD]})},
        [USER],
    ),
    "objects with messages": (
        {"chosen": {"messages": [USER, GOOD]}, "rejected": {"messages": [USER, BAD]}},
        [USER],
    ),
    "JSON of the answers in text": ({**PAIR, "chosen": said(GOOD), "rejected": said(BAD)}, [USER]),
    "JSON of one message in text": ({**PAIR, "chosen": json.dumps(GOOD), "rejected": json.dumps(BAD)}, [USER]),
    "JSON of the prompt in text": ({**PAIR, "prompt": said(FRENCH, USER)}, [FRENCH, USER]),
    "Python's lists in text": ({**PAIR, "chosen": str([USER, GOOD]), "rejected": str([USER, BAD])}, [USER]),
    "a dialogue beside the prompt": (
        {**PAIR, "chosen": f"{DIALOGUE}Bonjour.", "rejected": f"{DIALOGUE}Hello."},
        [USER],
    ),
    "parts of content": (
        {**PAIR, "prompt": [{"role": "user", "content": [{"type": "text", "text": "Good morning?"}]}]},
        [USER],
    ),
    "ids, scores, sources": (
        PAIR
        | {"id": "a", "prompt_id": "b", "score_chosen": 8.0, "chosen-rating": "5", "source": "web", "margin": 0.3}
        | {"chosen_model": "m", "all_generated_responses": ["x"], "metadata": {"a": 1}, "createdAt": "now"}
        | {"turn": 2, "is_good": True, "tools": "", "images": None, "": "0"},
        [USER],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("row", "prompt"), READ.values(), ids=READ.keys())
def test_a_pair_holds_all_that_its_row_says(row: Any, prompt: list[Message], tmp_path: Path) -> None:
    assert list(read_pairs(write(tmp_path, row), "train")) == [Pair(prompt, "Bonjour.", "Hello.")]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown column": (
        {**PAIR, "context": "It is night."},
        "key 'context': unknown column .*'It is night.'; name it",
    ),
    "a text to translate": (
        {**PAIR, "source_text": "Good"},
        "key 'source_text': unknown column",
    ),
    "tools": (
        {**PAIR, "tools": [{"name": "f"}]},
        "key 'tools': unknown column",
    ),
    "a label": (
        {**PAIR, "label": 0},
        "key 'label': unknown column",
    ),
    "a weight": (
        {**PAIR, "weight": "0.5"},
        "key 'weight': unknown column",
    ),
    "two systems": (
        {**PAIR, "system": "Be brief.", "prompt": [FRENCH, USER]},
        "key 'system': differs from another system",
    ),
    "another history": (
        {**PAIR, "history": [["a", "b"]], "prompt": [ASKED, ANSWERED, USER]},
        "key 'history': differs from the conversation",
    ),
    "history of text": (
        {**PAIR, "history": "It rained."},
        "key 'history': expected a list, found str",
    ),
    "history of three": (
        {**PAIR, "history": [["a", "b", "c"]]},
        "key 'history', turn 1: expected .question, answer.",
    ),
    "two prompts": (
        {**PAIR, "question": "Good night?"},
        "key 'question': is not in the conversation",
    ),
    "JSON of another conversation": (
        {**PAIR, "chosen": said(ASKED, GOOD), "rejected": said(ASKED, BAD)},
        "key 'prompt': is not in the conversation",
    ),
    "JSON in text on one side": (
        {**PAIR, "chosen": said(USER, GOOD)},
        "key 'rejected': expected a list of messages, found str",
    ),
    "messages in text that are cut off": (
        {**PAIR, "chosen": said(USER, GOOD)[:-9]},
        "key 'chosen': begins as a list of messages in text, which cannot be read",
    ),
    "another dialogue beside the prompt": (
        {**PAIR, "prompt": "Good night?", "chosen": f"{DIALOGUE}Bonjour.", "rejected": f"{DIALOGUE}Hello."},
        "key 'prompt': is not in the conversation",
    ),
    "a dialogue on one side": ({**PAIR, "chosen": f"{DIALOGUE}Bonjour."}, "differ before the last 'Assistant:'"),
    "an answer that is another kind of dialogue": (
        {**PAIR, "chosen": "User: Good morning?\nAssistant: Bonjour."},
        "key 'chosen': begins as a dialogue",
    ),
    "a prompt that is another kind of dialogue": (
        {**PAIR, "prompt": "Human: Good morning?\nAssistant:"},
        "key 'prompt': begins as a dialogue",
    ),
    "a rendered prompt": (
        {**PAIR, "prompt": "<|im_start|>user\nHi<|im_end|>"},
        "key 'prompt': rendered by a chat template",
    ),
    "a rendered answer": (
        {**PAIR, "chosen": "Bonjour.<|im_end|>"},
        "key 'chosen': rendered by a chat template",
    ),
    "a message with tools": (
        {**PAIR, "prompt": [{**USER, "tool_calls": [{"name": "f"}]}]},
        "key 'prompt', message 1, key 'tool_calls': unknown column",
    ),
    "an image": (
        {**PAIR, "prompt": [{"role": "user", "content": [{"type": "image_url"}]}]},
        "message 1: expected parts of type text, found 'image_url'",
    ),
    "a tool's answer": (
        {"conversations": [{"from": "observation", "value": "x"}], "chosen": gpt("a"), "rejected": gpt("b")},
        "key 'conversations', message 1: expected a `role`.*'observation'",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("row", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_would_be_lost_is_refused(row: Any, message: str, tmp_path: Path) -> None:
    file = write(tmp_path, row)
    with pytest.raises(UserError, match=f"^{file}, row 1.*{message}") as error:
        list(read_pairs(file, "train"))
    assert "\n" not in str(error.value)


def test_answers_that_are_json_stay_text(tmp_path: Path) -> None:
    for answer in ('{"role": "admin", "name": "Ann"}', "[1, 2]", '[{"name": "Ann"}]', "{'role': f(x)}", "[{"):
        [pair] = read_pairs(write(tmp_path, {**PAIR, "chosen": answer}), "train")
        assert pair.chosen == answer


def test_own_names_by_a_column_map(tmp_path: Path) -> None:
    file = write(
        tmp_path, {"question": "Good morning?", "response_j": "Bonjour.", "response_k": "Hello.", "note": "n"}
    )
    columns = {"prompt": "question", "chosen": "response_j", "rejected": "response_k"}
    reading = Reading(columns=columns, ignored=frozenset({"note"}))
    assert list(read_pairs(file, "train", reading)) == [Pair([USER], "Bonjour.", "Hello.")]
    with pytest.raises(UserError, match="key 'note': unknown column"):
        list(read_pairs(file, "train", Reading(columns=columns)))
    with pytest.raises(
        UserError, match=r"unknown form .*; data.columns names 'response_i'; did you mean response_"
    ):
        list(read_pairs(file, "train", Reading(columns=columns | {"chosen": "response_i"})))
    system = Reading(columns=columns | {"system": "note"})
    assert [pair.prompt[0] for pair in read_pairs(file, "train", system)] == [
        {"role": "system", "content": "n"}
    ]


TURNS = [
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "Un."},
    {"role": "user", "content": "Two?"},
    {"role": "assistant", "content": "Deux."},
]


FROM = {"user": "human", "assistant": "gpt"}


@pytest.mark.parametrize(
    "row",
    [
        {"messages": TURNS},
        {"messages": TURNS[:3], "response": "Deux."},
        {"messages": json.dumps(TURNS)},
        {"conversations": [{"from": FROM[turn["role"]], "value": turn["content"]} for turn in TURNS]},
    ],
)  # fmt: skip
def test_every_answer_of_a_conversation_is_learned(row: Any, tmp_path: Path) -> None:
    file = write(tmp_path, row)
    first, last = Example(TURNS[:1], "Un."), Example(TURNS[:3], "Deux.")
    assert list(read_examples(file, "train")) == [first, last]
    assert list(read_examples(file, "train", Reading(turns="last"))) == [last]


def test_examples_hold_all_that_their_rows_say(tmp_path: Path) -> None:
    system = {"role": "system", "content": "Count."}
    for row, examples in (
        ({"system": "Count.", "messages": TURNS[:2]}, [Example([system, TURNS[0]], "Un.")]),
        ({"system": "Count.", "question": "One?", "answer": "Un."}, [Example([system, TURNS[0]], "Un.")]),
        (
            {"instruction": "Two?", "history": [["One?", "Un."]], "output": "Deux."},
            [Example(TURNS[:3], "Deux.")],
        ),
        ({"prompt": "One?", "completion": [TURNS[1]]}, [Example(TURNS[:1], "Un.")]),
    ):
        assert list(read_examples(write(tmp_path, row), "train")) == examples
    for row, message in (
        ({"messages": TURNS, "response": "Trois."}, "key 'response': differs from the last answer"),
        ({"prompt": "Two?", "completion": TURNS[:2]}, "key 'completion': is a conversation that differs"),
        ({"messages": TURNS, "context": "x"}, "key 'context': unknown column"),
        (
            {"prompt": "Two?", "response": "\n\nHuman: One?\n\nAssistant: Un."},
            "key 'response': is a conversation that differs",
        ),
    ):
        with pytest.raises(UserError, match=message):
            list(read_examples(write(tmp_path, row), "train"))


def test_prompts_alone(tmp_path: Path) -> None:
    file = write(tmp_path, {"system": FRENCH["content"], **PAIR}, {"prompt": [ASKED, ANSWERED, USER]})
    assert list(read_prompts(file, "train")) == [[FRENCH, USER], [ASKED, ANSWERED, USER]]
    with pytest.raises(UserError, match="key 'context': unknown column"):
        list(read_prompts(write(tmp_path, {**PAIR, "context": "x"}), "train"))
