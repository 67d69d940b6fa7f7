"""Small files that were read wrongly once, as people had them."""

from pathlib import Path
from typing import Any

import pytest

from sams.data.forms import Reading, read_examples, read_pairs
from sams.runtime.errors import UserError

MORNING = [("user", "Good morning?")]
FRENCH = [("system", "Answer in French only."), *MORNING]
TOMORROW = [("user", "How is the weather in Oslo?"), ("assistant", "Rainy."), ("user", "And tomorrow?")]
NAMES = {"prompt": "question", "chosen": "response_j", "rejected": "response_k"}


def conversation(messages: list[Any]) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in messages]


@pytest.mark.parametrize(
    ("file", "prompt", "chosen", "rejected"),
    [
        ("system_column.jsonl", FRENCH, "Bonjour.", "Hello."),
        ("orca_form.jsonl", FRENCH, "Bonjour.", "Hello."),
        ("history_column.jsonl", TOMORROW, "Sunny.", "No idea."),
        ("json_in_text.jsonl", MORNING, "Bonjour.", "Hello."),
        ("dialogue_beside_prompt.jsonl", MORNING, "Bonjour.", "Hello."),
        ("sharegpt_form.jsonl", MORNING, "Bonjour.", "Hello."),
        ("pairs.csv", MORNING, "Bonjour.", "Hello."),
    ],
)
def test_a_pair_holds_all_that_the_model_should_see(
    shared_data: Path, file: str, prompt: list[tuple[str, str]], chosen: str, rejected: str
) -> None:
    pair = next(iter(read_pairs(str(shared_data / "cases" / file), "train")))
    assert (conversation(pair.prompt), pair.chosen, pair.rejected) == (prompt, chosen, rejected)


def test_own_names_are_mapped_or_the_setting_is_named(shared_data: Path) -> None:
    file = str(shared_data / "cases" / "own_names.jsonl")
    with pytest.raises(UserError, match=r"row 1: unknown form .* data\.columns"):
        list(read_pairs(file, "train"))
    (pair,) = read_pairs(file, "train", Reading(columns=NAMES))
    assert (conversation(pair.prompt), pair.chosen, pair.rejected) == (MORNING, "Bonjour.", "Hello.")


@pytest.mark.parametrize(("turns", "learned"), [("all", ["Un.", "Deux."]), ("last", ["Deux."])])
def test_assistant_turns_of_a_conversation_are_learned(
    shared_data: Path, turns: Any, learned: list[str]
) -> None:
    file = str(shared_data / "cases" / "sft_multi_turn.jsonl")
    examples = list(read_examples(file, "train", Reading(turns=turns)))
    assert [example.response for example in examples] == learned
    assert conversation(examples[-1].prompt) == [("user", "One?"), ("assistant", "Un."), ("user", "Two?")]
