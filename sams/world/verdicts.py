"""Verdicts of the local judge on judge prompts of AlpacaEval, MT-Bench and comparisons on own prompts."""

import importlib.util
import math
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from sams.world.grading import grade, grade_follow_up
from sams.world.tasks import read_instruction

# Logits between a right answer (grade 1) and a worthless one (grade 0): the right one wins 98 times of 100.
LOGITS_PER_GRADE = 4.0

LOWEST_RATING, HIGHEST_RATING = 1.0, 10.0

# FastChat's markers (judge_prompts.jsonl: single-v1, single-math-v1 and their multi-turn forms).
SINGLE_TURN = re.compile(
    r"\[Question\]\n(?P<question>.*?)\n\n"
    r"(?:\[The Start of Reference Answer\]\n.*?\n\[The End of Reference Answer\]\n\n)?"
    r"\[The Start of Assistant's Answer\]\n(?P<answer>.*)\n\[The End of Assistant's Answer\]",
    re.DOTALL,
)
TWO_TURNS = re.compile(
    r"<\|The Start of Assistant A's Conversation with User\|>\n\n"
    r"### User:\n(?P<question_1>.*?)\n\n### Assistant A:\n(?P<answer_1>.*?)\n\n"
    r"### User:\n(?P<question_2>.*?)\n\n### Assistant A:\n(?P<answer_2>.*)\n\n"
    r"<\|The End of Assistant A's Conversation with User\|>",
    re.DOTALL,
)

# Markers of `sams.scoring.own_prompts`.
COMPARISON = re.compile(
    r"\[The request\]\n(?P<request>.*?)\n\[End of the request\]\n\n"
    r"\[Answer A\]\n(?P<first>.*?)\n\[End of answer A\]\n\n"
    r"\[Answer B\]\n(?P<second>.*)\n\[End of answer B\]",
    re.DOTALL,
)


class UnknownPrompt(ValueError):
    """A prompt that the local judge cannot grade."""


@dataclass(frozen=True)
class Verdict:
    """Answer of the judge: its text and, for AlpacaEval, the log-probs of its one token."""

    text: str
    log_probs: dict[str, float] | None = None


def judge_prompt(prompt: str, length_lean: float) -> Verdict:
    """Grade the user message of a judge call.

    AlpacaEval: `sams.world.grading.grade` grades the two outputs `m` and `M` from 0 to 1. The log-odds of `m` over
    `M` are

        LOGITS_PER_GRADE * (grade(m) - grade(M)) + length_lean * log((len(m) + 1) / (len(M) + 1))

    with lengths in characters; the verdict is the likelier label, with the log-probs of both. The second term is a
    length bias, as language models have it, for AlpacaEval's length control. The order of the outputs has no effect.

    MT-Bench: the rating is 1 + 9 * grade of the answer (first turn) or of the second answer (second turn).

    Prompts of one's own: the answer with the larger grade wins; equal grades are a tie.

    Raises:
        UnknownPrompt: a prompt of another form, or a question that is not of the synthetic world.
    """
    pair = _alpaca_eval_template().fullmatch(prompt.strip())
    if pair:
        instruction, first, second = pair.group("instruction", "output_1", "output_2")
        _must_be_known(instruction)
        logit = LOGITS_PER_GRADE * (grade(instruction, first) - grade(instruction, second))
        logit += length_lean * math.log((len(first) + 1) / (len(second) + 1))
        return Verdict("m" if logit >= 0 else "M", {"m": _log_sigmoid(logit), "M": _log_sigmoid(-logit)})
    if single := SINGLE_TURN.search(prompt):
        _must_be_known(single["question"])
        return _rated(grade(single["question"], single["answer"]))
    if double := TWO_TURNS.search(prompt):
        _must_be_known(double["question_1"])
        return _rated(grade_follow_up(*double.group("question_1", "answer_1", "question_2", "answer_2")))
    if compared := COMPARISON.search(prompt):
        request, first, second = compared.group("request", "first", "second")
        _must_be_known(request)
        marks = grade(request, first), grade(request, second)
        label = "C" if marks[0] == marks[1] else "A" if marks[0] > marks[1] else "B"
        return Verdict(f"Answer A earns {marks[0]:.2f} of 1, answer B {marks[1]:.2f}.\n\n[[{label}]]")
    raise UnknownPrompt(
        "none of the judge prompts of AlpacaEval, FastChat's single-answer grading and own prompts"
    )


def _must_be_known(question: str) -> None:
    if read_instruction(question) is None:
        raise UnknownPrompt("the question is not one of the synthetic world")


def _rated(mark: float) -> Verdict:
    rating = LOWEST_RATING + (HIGHEST_RATING - LOWEST_RATING) * mark
    return Verdict(f"The answer was checked and earns {mark:.2f} of 1.\n\nRating: [[{rating:.4g}]]")


def _log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x)) if x >= 0 else x - math.log1p(math.exp(x))


def pair_prompt(instruction: str, first: str, second: str) -> str:
    """Return the user message of AlpacaEval's judge prompt for two outputs."""
    prompt = _alpaca_eval_message()
    for key, value in (("instruction", instruction), ("output_1", first), ("output_2", second)):
        prompt = prompt.replace("{" + key + "}", value, 1)
    return prompt


def _alpaca_eval_message() -> str:
    """Return the user message of the annotator's template in the installed package."""
    package = importlib.util.find_spec("alpaca_eval")
    if package is None or package.origin is None:
        raise RuntimeError("the package alpaca-eval is not installed")
    text = (
        Path(package.origin).parent / "evaluators_configs/alpaca_eval_clf_gpt4_turbo/alpaca_eval_clf.txt"
    ).read_text(encoding="utf-8")
    return text.split("<|im_start|>user\n", 1)[1].split("<|im_end|>", 1)[0].strip()


@cache
def _alpaca_eval_template() -> re.Pattern[str]:
    """Return the user message of the annotator's template as a pattern."""
    pattern = re.escape(_alpaca_eval_message())
    for key in ("instruction", "output_1", "output_2"):
        pattern = pattern.replace(re.escape("{" + key + "}"), f"(?P<{key}>.*?)")
    return re.compile(pattern, re.DOTALL)
