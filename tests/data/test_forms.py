"""Every row format of pairs and examples, and the location of every error in them."""

import json
from pathlib import Path
from typing import Any

import pytest

from sams.data.forms import read_examples, read_pairs
from sams.data.records import Example, Pair
from sams.runtime.errors import UserError

USER = {"role": "user", "content": "Why is the sky blue?"}
ANSWER = {"role": "assistant", "content": "It scatters light."}
MORE = {"role": "user", "content": "And at dusk?"}
GOOD, BAD = {"role": "assistant", "content": "Red."}, {"role": "assistant", "content": "Ask me later."}
SYSTEM = {"role": "system", "content": "Be brief."}
DIALOGUE = (
    "\n\nHuman: Why is the sky blue?\n\nAssistant: It scatters light.\n\nHuman: And at dusk?\n\nAssistant:"
)

ONE, TWO = [USER], [USER, ANSWER, MORE]


def write(tmp_path: Path, *rows: Any) -> str:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"chosen": f"{DIALOGUE} Red.", "rejected": f"{DIALOGUE} Ask me later."}, TWO),
        ({"prompt": DIALOGUE, "chosen": " Red.", "rejected": " Ask me later."}, TWO),
        ({"prompt": "Why is the sky blue?", "chosen": "Red.", "rejected": "Ask me later."}, ONE),
        ({"prompt": TWO, "chosen": "Red.", "rejected": "Ask me later."}, TWO),
        ({"prompt": TWO, "chosen": [GOOD], "rejected": [BAD]}, TWO),
        ({"prompt": [SYSTEM, *TWO], "chosen": [GOOD], "rejected": [BAD]}, [SYSTEM, *TWO]),
        ({"prompt": "Why is the sky blue?", "chosen": [GOOD], "rejected": [BAD]}, ONE),
        ({"chosen": [*TWO, GOOD], "rejected": [*TWO, BAD]}, TWO),
        ({"chosen": [SYSTEM, USER, GOOD], "rejected": [SYSTEM, USER, BAD]}, [SYSTEM, USER]),
        # UltraFeedback: the question again as `prompt`, and more columns.
        (
            {"prompt": USER["content"], "prompt_id": "7f", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
            ONE,
        ),
        ({"prompt": TWO, "chosen": [*TWO, GOOD], "rejected": [*TWO, BAD]}, TWO),
        (
            {"instruction": "Sum up.", "input": "A text.", "chosen": "Red.", "rejected": "Ask me later."},
            [{"role": "user", "content": "Sum up.\n\nA text."}],
        ),
        (
            {
                "instruction": "Sum up.",
                "input": "",
                "output": "x",
                "chosen": "Red.",
                "rejected": "Ask me later.",
            },
            [{"role": "user", "content": "Sum up."}],
        ),
    ],
)
def test_forms_of_a_pair(row: Any, prompt: Any, tmp_path: Path) -> None:
    assert list(read_pairs(write(tmp_path, row), "train")) == [Pair(prompt, "Red.", "Ask me later.")]


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": DIALOGUE, "response": "Red."}, TWO),
        ({"prompt": "Why is the sky blue?", "response": "Red."}, ONE),
        ({"prompt": TWO, "response": "Red.\n"}, TWO),
        ({"prompt": USER["content"], "prompt_id": "7f", "messages": [SYSTEM, USER, GOOD]}, [SYSTEM, USER]),
        ({"instruction": "Sum up.", "input": "", "output": "Red."}, [{"role": "user", "content": "Sum up."}]),
        ({"instruction": "Sum up.", "output": "Red."}, [{"role": "user", "content": "Sum up."}]),
    ],
)
def test_forms_of_an_example(row: Any, prompt: Any, tmp_path: Path) -> None:
    assert list(read_examples(write(tmp_path, row), "train")) == [Example(prompt, "Red.")]


def test_two_turns_of_one_speaker_are_one_turn(tmp_path: Path) -> None:
    row = {
        "prompt": "\n\nHuman: A\n\nAssistant: B\n\nAssistant: C\n\nHuman: D\n\nAssistant:",
        "response": "E",
    }
    [example] = read_examples(write(tmp_path, row), "train")
    assert [turn["content"] for turn in example.prompt] == ["A", "B\n\nC", "D"]


def test_an_id_stands_for_the_content() -> None:
    pair = Pair([USER], "a", "b")
    assert len(pair.id) == 16 and int(pair.id, 16) >= 0
    assert Pair([USER], "a", "b", flipped=True).id == pair.id
    assert Pair([USER], "b", "a").id != pair.id
    assert Pair([{**USER, "content": "Why?"}], "a", "b").id != pair.id
    assert Example([USER], "a").id == Example([{"content": USER["content"], "role": "user"}], "a", True).id


def pair(**changes: Any) -> dict[str, Any]:
    return {"prompt": "Why?", "chosen": "a", "rejected": "b"} | changes


def example(**changes: Any) -> dict[str, Any]:
    return {"prompt": "Why?", "response": "a"} | changes


REFUSED_PAIRS: list[tuple[str, Any, str]] = [
    (
        "unknown keys",
        {"question": "Why?", "better": "a"},
        r"row 2: unknown form with keys .*'better'.*expected",
    ),
    ("rejected lacks", {"prompt": "Why?", "chosen": "a"}, "row 2: unknown form"),
    ("no keys", {}, "row 2: unknown form"),
    ("not an object", "Why?", "row 2: expected an object with keys, found str"),
    ("a number", 3, "row 2: expected an object with keys, found int"),
    ("empty prompt", pair(prompt=""), "row 2, key 'prompt': empty; drop the row or fill it"),
    ("blank prompt", pair(prompt=" \n"), "row 2, key 'prompt': empty"),
    ("empty chosen", pair(chosen=""), "row 2, key 'chosen': empty"),
    ("blank rejected", pair(rejected="  "), "row 2, key 'rejected': empty"),
    ("chosen is null", pair(chosen=None), "row 2, key 'chosen': expected text, found NoneType"),
    ("rejected is a number", pair(rejected=1), "row 2, key 'rejected': expected text, found int"),
    ("prompt is an object", pair(prompt={"a": 1}), "row 2, key 'prompt': expected text, found dict"),
    ("equal", pair(chosen="a", rejected="a"), "row 2: chosen and rejected are equal"),
    ("equal but for blanks", pair(chosen="a", rejected=" a\n"), "row 2: chosen and rejected are equal"),
    ("half a surrogate pair", pair(chosen="\ud800"), r"row 2: not JSON \(.*half a surrogate pair\)"),
    ("no turns", {"chosen": "a", "rejected": "b"}, "row 2, key 'chosen': expected a dialogue with turns"),
    (
        "dialogue without an answer",
        {"chosen": DIALOGUE, "rejected": f"{DIALOGUE} b"},
        "row 2, key 'chosen': empty",
    ),
    (
        "different prompts",
        {"chosen": f"{DIALOGUE} a", "rejected": "\n\nHuman: Why?\n\nAssistant: b"},
        "row 2: chosen and rejected differ before the last 'Assistant:'",
    ),
    (
        "text before the dialogue",
        {"chosen": "Hi\n\nHuman: Why?\n\nAssistant: a", "rejected": "Hi\n\nHuman: Why?\n\nAssistant: b"},
        "row 2: expected .* at the start of the dialogue, found 'Hi'",
    ),
    (
        "the assistant begins",
        {
            "chosen": "\n\nAssistant: Hi\n\nHuman: Why?\n\nAssistant: a",
            "rejected": "\n\nAssistant: Hi\n\nHuman: Why?\n\nAssistant: b",
        },
        "row 2, prompt: roles out of order: assistant, user",
    ),
    (
        "an empty turn",
        {"chosen": "\n\nHuman:\n\nAssistant: a", "rejected": "\n\nHuman:\n\nAssistant: b"},
        "row 2, prompt, a message of the user: empty",
    ),
    ("no messages", pair(prompt=[]), "row 2, key 'prompt': expected a list of messages, found an empty list"),
    ("empty conversation", pair(chosen=[], rejected=[]), "row 2, key 'chosen': expected a list of messages"),
    ("mixed sides", pair(chosen=[GOOD]), "row 2, key 'rejected': expected a list of messages, found str"),
    (
        "unknown role",
        pair(prompt=[{"role": "human", "content": "Why?"}]),
        "row 2, key 'prompt', message 1: expected a `role` of system, user, assistant, found 'human'",
    ),
    ("a message of text", pair(prompt=["Why?"]), "row 2, key 'prompt', message 1: expected a `role`"),
    (
        "content lacks",
        pair(prompt=[USER, ANSWER, {"role": "user"}]),
        "row 2, key 'prompt', message 3: expected text, found NoneType",
    ),
    (
        "empty message",
        pair(prompt=[{"role": "user", "content": ""}]),
        "row 2, key 'prompt', message 1: empty",
    ),
    (
        "prompt ends with an answer",
        pair(prompt=[USER, ANSWER]),
        "row 2, prompt: roles out of order: user, assistant",
    ),
    ("user after user", pair(prompt=[USER, MORE]), "row 2, prompt: roles out of order: user, user"),
    ("system in the middle", pair(prompt=[USER, SYSTEM, MORE]), "row 2, prompt: roles out of order"),
    ("system alone", pair(prompt=[SYSTEM]), "row 2, prompt: roles out of order: system"),
    (
        "conversation ends with the user",
        {"chosen": [USER, ANSWER, MORE], "rejected": [USER, BAD]},
        "row 2, key 'chosen': ends with a message of the user",
    ),
    (
        "conversations differ",
        {"chosen": [USER, GOOD], "rejected": [MORE, BAD]},
        "row 2: chosen and rejected differ before the last answer",
    ),
    ("answers to nothing", {"chosen": [GOOD], "rejected": [BAD]}, "row 2, key 'prompt': missing"),
    (
        "prompt of another conversation",
        {"prompt": "Who?", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
        "row 2, key 'prompt': is not in the conversation",
    ),
    (
        "prompt of another type",
        {"prompt": 5, "chosen": [USER, GOOD], "rejected": [USER, BAD]},
        "row 2, key 'prompt': expected a list of messages, found int",
    ),
    (
        "input is a list",
        {"instruction": "Sum up.", "input": ["x"], "chosen": "a", "rejected": "b"},
        "key 'input'",
    ),
]

REFUSED_EXAMPLES: list[tuple[str, Any, str]] = [
    ("unknown keys", {"text": "a"}, r"row 2: unknown form with keys \['text'\], expected {messages} or"),
    ("empty response", example(response=""), "row 2, key 'response': empty"),
    ("response is null", example(response=None), "row 2, key 'response': expected text"),
    ("empty prompt", example(prompt=""), "row 2, key 'prompt': empty"),
    ("messages is text", {"messages": "Hi"}, "row 2, key 'messages': expected a list of messages, found str"),
    ("no answer", {"messages": [USER]}, "row 2, key 'messages': ends with a message of the user"),
    ("answer alone", {"messages": [ANSWER]}, "row 2, prompt: roles out of order: none"),
    ("two answers", {"messages": [USER, ANSWER, GOOD]}, "row 2, prompt: roles out of order"),
    ("empty output", {"instruction": "Sum up.", "input": "", "output": " "}, "row 2, key 'output': empty"),
    ("empty instruction", {"instruction": "", "output": "a"}, "row 2, key 'instruction': empty"),
]


def refused(read: Any, file: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        list(read(file, "train"))
    assert "\n" not in str(error.value) and str(error.value).startswith(file)


@pytest.mark.parametrize(
    ("row", "message"), [case[1:] for case in REFUSED_PAIRS], ids=[c[0] for c in REFUSED_PAIRS]
)
def test_refused_pairs(row: Any, message: str, tmp_path: Path) -> None:
    # The blank line counts: the message names the line of the file.
    file = tmp_path / "rows.jsonl"
    file.write_text(f"\n{json.dumps(row)}\n")
    refused(read_pairs, str(file), message)


@pytest.mark.parametrize(
    ("row", "message"), [case[1:] for case in REFUSED_EXAMPLES], ids=[c[0] for c in REFUSED_EXAMPLES]
)
def test_refused_examples(row: Any, message: str, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(f"\n{json.dumps(row)}\n")
    refused(read_examples, str(file), message)


def test_all_rows_have_the_form_of_the_first(tmp_path: Path) -> None:
    file = write(tmp_path, pair(), {"chosen": f"{DIALOGUE} a", "rejected": f"{DIALOGUE} b"})
    refused(read_pairs, file, r"row 2, key 'prompt': missing; the row has \['chosen', 'rejected'\]")
