"""FastChat's single-answer grading, with its chat call replaced; no other module imports FastChat.

FastChat 0.2.36 calls OpenAI through openai < 1, and alpaca-eval requires openai >= 1. FastChat's construction of
prompts, parsing of ratings and choice of reference prompts are used unchanged.
"""

import functools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

from sams.scoring.inputs import Row

Messages = list[dict[str, str]]
Chat = Callable[
    [Messages, float, int], str
]  # messages, temperature, maximum of tokens -> answer of the judge

# FastChat chooses the conversation template by the name of the judge and knows few names; all judges get the
# template of GPT-4. The call and the record hold the real name.
KNOWN_JUDGE = "gpt-4"
FAILED = -1
ERROR = "$ERROR$"  # FastChat's text for a call that failed


def make_matches(
    questions: Sequence[Row],
    model: str,
    answers: Mapping[Any, Row],
    references: Mapping[Any, Row],
    prompts: Mapping[str, Row],
) -> list[Any]:
    """Return FastChat's `MatchSingle` for each question and turn, in the order of its gen_judgment.py.

    Args:
        questions: rows {question_id, category, turns}.
        model: name of the model.
        answers: its answers by question id, in FastChat's form.
        references: reference answers by question id, for the categories math, reasoning and coding.
        prompts: judge prompts by name.
    """
    common, gen_judgment = _fastchat()
    judges = gen_judgment.make_judge_single(KNOWN_JUDGE, prompts)
    plain = [question for question in questions if question["category"] not in common.NEED_REF_CATS]
    based = [question for question in questions if question["category"] in common.NEED_REF_CATS]
    matches = []
    for suffix, two_turns in (("", False), ("-mt", True)):
        for name, chosen, given in (("default", plain, None), ("math", based, {KNOWN_JUDGE: references})):
            matches += gen_judgment.make_match_single(
                chosen,
                [model],
                {model: answers},
                judges[name + suffix],
                ref_answers=given,
                multi_turn=two_turns,
            )
    return matches


def needs_reference(category: str) -> bool:
    """Return whether answers of a category are graded with a reference answer."""
    common, _ = _fastchat()
    return category in common.NEED_REF_CATS


def try_prompts(prompts: Mapping[str, Row]) -> Iterator[tuple[str, str]]:
    """Yield the name of each judge prompt with which FastChat cannot grade an answer, and the reason.

    FastChat fills in the placeholders by `str.format`, so that other braces must be doubled.
    """
    question = {"question_id": 1, "turns": ["<question 1>", "<question 2>"]}
    answer = {"choices": [{"turns": ["<answer 1>", "<answer 2>"]}]}
    reference = {"choices": [{"turns": ["<reference 1>", "<reference 2>"]}]}
    for category in ("plain", "math"):
        questions = [{**question, "category": category}]
        for match in make_matches(questions, "model", {1: answer}, {1: reference}, prompts):
            turn = turn_of(match)
            needed = {f"<question {turn}>": "question", f"<answer {turn}>": "answer"}
            needed |= {f"<reference {turn}>": "ref_answer"} if category == "math" else {}
            try:
                prompt, _, _ = prompt_of(match)
                lacking = [
                    f"{{{name}}}" if turn == 1 and name != "ref_answer" else f"{{{name}_{turn}}}"
                    for text, name in needed.items()
                    if text not in prompt
                ]
                reason = f"has no {' and no '.join(lacking)}" if lacking else ""
            except (KeyError, IndexError) as error:
                name = error.args[0] if isinstance(error, KeyError) else ""
                reason = f"has the unknown placeholder {{{name}}}, and other braces must be doubled"
            except ValueError as error:
                reason = f"cannot be used ({error}); braces that are no placeholder must be doubled"
            if reason:
                yield match.judge.prompt_template["name"], reason


def turn_of(match: Any) -> int:
    """Return the turn of a match, 1 or 2."""
    return 2 if match.multi_turn else 1


def prompt_of(match: Any) -> tuple[str, list[dict[str, str]], dict[str, Any]]:
    """Return the user prompt that FastChat builds for a match, its messages, and the fields of its request."""
    seen: dict[str, Any] = {}

    def chat(messages: Messages, temperature: float, max_tokens: int) -> str:
        seen.update(messages=messages, fields={"n": 1, "temperature": temperature, "max_tokens": max_tokens})
        return ERROR

    prompt = _run(match, chat)[1]
    return prompt, seen["messages"], seen["fields"]


def rating_of(match: Any, judgment: str) -> float:
    """Return the rating that FastChat reads in a judgment; -1 if it finds none.

    Raises:
        Exception: FastChat evaluates what looks like a number, and `08` is none.
    """
    return float(_run(match, lambda *_: judgment)[0])


def ratings_in(judgment: str) -> set[float]:
    """Return the different numbers in a judgment that have FastChat's form of a rating, `[[n]]`."""
    common, _ = _fastchat()
    return {float(number) for number in common.one_score_pattern.findall(judgment)}


def _run(match: Any, chat: Chat) -> tuple[float, str, str]:
    """Grade a match with FastChat, with `chat` in place of its call of OpenAI; return rating, prompt and judgment."""
    common, _ = _fastchat()
    _calls.chat = chat
    graded: tuple[float, str, str] = common.run_judge_single(
        match.question, match.answer, match.judge, match.ref_answer, multi_turn=match.multi_turn
    )
    return graded


_calls = threading.local()


def _call(model: str, conversation: Any, temperature: float, max_tokens: int) -> str:
    """Replace FastChat's `chat_completion_openai`."""
    chat: Chat = _calls.chat
    return chat(conversation.to_openai_api_messages(), temperature, max_tokens)


@functools.cache
def _fastchat() -> tuple[ModuleType, ModuleType]:
    from fastchat.llm_judge import common, gen_judgment

    common.chat_completion_openai = _call
    return common, gen_judgment
