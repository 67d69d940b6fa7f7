"""Calls of a judge: what is requested, and what can be read from the answer."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sams.study.settings import Judge

Request = dict[str, Any]
"""Body of a chat completion's request."""
Answer = dict[str, Any]
"""Body of its answer."""
Message = Mapping[str, str]

TOP_LOGPROBS = 5
ANSWER_TOKENS = 2048
"""Limit for an answer in words, as in FastChat."""
LONGEST_NAME = 200
# Chat templates that end with <think> leave only the closing mark in the answer.
THOUGHTS = re.compile(r"\A(\s*<think>.*?(</think>|\Z)|((?!<think>).)*?</think>)", re.DOTALL)

# Endings by which an endpoint names the snapshot of a model: -0613, -2024-08-06, @20240806.
SNAPSHOT = re.compile(r"([-@:]v?\d[\w.-]*)?")


class Unusable(Exception):
    """An answer without a judgment, with the reason in a few words."""


class Reading(NamedTuple):
    """Judgment in an answer.

    Args:
        value: the number that the benchmark computes with.
        doubt: why the value may be wrong, in a few words; empty otherwise.
        label_mass: probability of all labels together; None for an answer in words.
    """

    value: float
    doubt: str = ""
    label_mass: float | None = None


@dataclass(frozen=True)
class Call:
    """One judgment that a benchmark needs.

    Args:
        name: what is judged, for messages: `question 81, turn 2`.
        messages: the prompt.
        read: reads the judgment in an answer; raises `Unusable` if there is none.
        fields: further fields of the request, which `judge.parameters` may replace.
    """

    name: str
    messages: Sequence[Message]
    read: Callable[[Answer], Reading]
    fields: Mapping[str, Any]

    def request(self, settings: Judge, model: str) -> Request:
        """Return the request of a judge; null in `judge.parameters` removes a field."""
        fields = {**self.fields, **settings.parameters}
        return {
            "model": model,
            "messages": [dict(message) for message in self.messages],
            **{key: value for key, value in fields.items() if value is not None},
        }


def label_call(name: str, messages: Sequence[Message], labels: tuple[str, str], *, log_probs: bool) -> Call:
    """Return a call whose judgment is the preference for the first of two labels, from 0 to 1.

    Args:
        name: what is judged.
        messages: a prompt that requests one of the labels and nothing else.
        labels: labels of the first and of the second answer.
        log_probs: read the probability of the label from the log-probs of the first token, as AlpacaEval does;
            otherwise the label from the text, which gives 1 or 0.
    """
    if log_probs:
        # The fields of alpaca_eval 0.6.2, so that answers stored for the package remain valid.
        fields = {
            "max_tokens": 1,
            "temperature": 1,
            "top_p": 1.0,
            "logprobs": True,
            "top_logprobs": TOP_LOGPROBS,
        }
        return Call(name, messages, lambda answer: probability_of_first(answer, labels), fields)
    fields = {"max_tokens": ANSWER_TOKENS, "temperature": 0}
    return Call(name, messages, lambda answer: _first_label(answer, labels), fields)


def probability_of_first(answer: Answer, labels: tuple[str, str]) -> Reading:
    """Return P(first) / (P(first) + P(second)) of the first token, by the rule of alpaca_eval's `logprob_parser`.

    Only tokens that equal a label count; a label that is not among the log-probs has probability 0.

    Raises:
        Unusable: no log-probs, none of a label, or one that is not a log-probability.
    """
    _check_refusal(answer)
    try:
        first = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        found = {each["token"]: each["logprob"] for each in first}
    except (KeyError, IndexError, TypeError):
        raise Unusable("no log-probs") from None
    known = {label: found[label] for label in labels if label in found}
    if not known:
        raise Unusable(f"no label among the log-probs of {', '.join(map(repr, found)) or 'no token'}"[:100])
    if not all(isinstance(value, int | float) and value < 1e-3 for value in known.values()):  # NaN is not
        raise Unusable("a log-prob that is not one")
    first_p, second_p = (math.exp(known.get(label, -math.inf)) for label in labels)
    mass = first_p + second_p
    if not mass:
        raise Unusable("labels of probability 0")
    return Reading(first_p / mass, label_mass=mass)


def _first_label(answer: Answer, labels: tuple[str, str]) -> Reading:
    text = text_of(answer)
    label = text.strip(" \t\r\n\"'`*.")
    if label not in labels:
        raise Unusable(f"no label: {text!r:.60}")
    return Reading(float(label == labels[0]))


def model_of(answer: Answer, requested: str) -> str:
    """Return the name of the model that has answered, in the characters that settings allow for one."""
    return re.sub(r"[^\x21-\x7e]+", "_", str(answer.get("model") or requested))[:LONGEST_NAME]


def is_snapshot(model: str, requested: str) -> bool:
    """Return whether a model is the requested one, or a snapshot of it."""
    return model.startswith(requested) and SNAPSHOT.fullmatch(model.removeprefix(requested)) is not None


def text_of(answer: Answer) -> str:
    """Return the text of an answer, without thoughts.

    Raises:
        Unusable: a refusal, no text, or an answer that the token limit has cut.
    """
    choice = answer["choices"][0]
    _check_refusal(answer)
    if choice.get("finish_reason") == "length":
        raise Unusable("cut by the token limit")
    text = without_thoughts(choice["message"].get("content") or "")
    if not text:
        raise Unusable("no text")
    return text


def _check_refusal(answer: Answer) -> None:
    choice = answer["choices"][0]
    if choice.get("finish_reason") == "content_filter":
        raise Unusable("stopped by the content filter")
    if choice["message"].get("refusal"):
        raise Unusable("refused by the judge")


def without_thoughts(text: str) -> str:
    """Return a text without the thoughts that a reasoning model puts before it."""
    return THOUGHTS.sub("", text).strip()
