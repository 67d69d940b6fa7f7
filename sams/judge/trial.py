"""Trial of a judge before training: a pair with a known answer in both orders, and a rating."""

import logging
import re
from collections.abc import Sequence

from sams.judge.ask import DEFAULT_MODEL, LABEL_MASS
from sams.judge.calls import (
    ANSWER_TOKENS,
    Answer,
    Call,
    Reading,
    Unusable,
    is_snapshot,
    label_call,
    model_of,
    text_of,
)
from sams.judge.client import judge_key, run_async
from sams.judge.upstream import CallFailed, Upstream
from sams.runtime.errors import UserError
from sams.study.settings import Judge
from sams.world.verdicts import pair_prompt

log = logging.getLogger(__name__)

TRIES = 2
# A judge with less probability of the labels together answers something else.
LEAST_LABEL_MASS = 0.5

QUESTION = "What is the capital of France? Answer in one sentence."
RIGHT, WRONG = "The capital of France is Paris.", "The capital of France is Berlin."
RATED = (
    f"[Question]\n{QUESTION}\n\n[The Start of Assistant's Answer]\n{RIGHT}\n[The End of Assistant's Answer]\n\n"
    'Rate the answer from 1 (worthless) to 10 (right) in exactly this form: "Rating: [[5]]".'
)
RATING = re.compile(r"\[\[(\d+(?:\.\d+)?)\]\]")


def try_out(settings: Judge, *, pairs: bool, ratings: bool, comparisons: Sequence[Call] = ()) -> None:
    """Make two calls in the form of AlpacaEval's, one in the form of MT-Bench's and others, and log what they gave.

    Args:
        settings: the endpoint.
        pairs: request the preference between two answers, in both orders.
        ratings: request a rating.
        comparisons: calls whose judgment must be above one half.

    Raises:
        UserError: the endpoint cannot be reached, refuses the key or a call, or returns no judgment or a wrong one.
    """
    run_async(_try_out(settings.model_copy(update={"tries": TRIES}), pairs, ratings, comparisons))


async def _try_out(settings: Judge, pairs: bool, ratings: bool, comparisons: Sequence[Call]) -> None:
    upstream = Upstream(settings, judge_key(settings))
    try:
        await upstream.check()
        model = answered = settings.model or DEFAULT_MODEL
        results, masses = [], []
        for call in [*(_pairs(settings.log_probs) if pairs else ()), *comparisons]:
            reading, answered = await _asked(upstream, settings, call)
            if reading.value <= 0.5:
                raise UserError(
                    f"judge {model} does not prefer {RIGHT!r} to {WRONG!r} in both orders",
                    where=settings.base_url,
                    remedy="set 'judge.model' to one that can judge",
                )
            masses += [] if reading.label_mass is None else [reading.label_mass]
        if pairs or comparisons:
            results.append("right in both orders")
        if masses:
            results.append(f"label mass {min(masses):.3f}")
            if min(masses) < LABEL_MASS:
                log.warning(
                    "warning: the judge answers something else than m or M too often (%.3f)", 1 - min(masses)
                )
        if ratings:
            fields = {"max_tokens": ANSWER_TOKENS, "temperature": 0}
            call = Call("a rating", [{"role": "user", "content": RATED}], _rating, fields)
            rating, answered = await _asked(upstream, settings, call)
            results.append(f"rating {rating.value:g} for a right answer")
        if not is_snapshot(answered, model):
            log.warning("warning: judge %s answers as %s: the scores will be labelled so", model, answered)
        log.info("judge %s: %s", model, ", ".join(results))
    finally:
        await upstream.close()


def _pairs(log_probs: bool) -> list[Call]:
    """Return a call for each order of the pair, whose judgment is the preference for the right answer."""
    orders = (((RIGHT, WRONG), ("m", "M")), ((WRONG, RIGHT), ("M", "m")))
    return [
        label_call(
            "a pair",
            [{"role": "user", "content": pair_prompt(QUESTION, *answers)}],
            labels,
            log_probs=log_probs,
        )
        for answers, labels in orders
    ]


async def _asked(upstream: Upstream, settings: Judge, call: Call) -> tuple[Reading, str]:
    """Return the judgment of a call and the model that gave it."""
    model, where = settings.model or DEFAULT_MODEL, settings.base_url
    try:
        answer, reading = await upstream.ask(call, call.request(settings, model))
    except CallFailed as error:
        if (reason := upstream.stopped or upstream.refused) is not None:
            raise reason from None
        if error.reason == "no log-probs":
            raise UserError(
                f"judge {model} gives no log-probs, from which AlpacaEval reads preferences",
                where=where,
                remedy="set 'judge.log_probs' to false, or 'judge.model' to one that gives them",
            ) from None
        raise UserError(
            f"judge {model} gives no judgment of {call.name} ({error.reason})",
            where=where,
            remedy="check 'judge.base_url', 'judge.model' and 'judge.parameters', or try again later",
        ) from None
    mass = reading.label_mass
    if mass is not None and mass < LEAST_LABEL_MASS:
        raise UserError(
            f"judge {model} gives the labels m and M a probability of {mass:.2g} together: it answers something else",
            where=where,
            remedy="set 'judge.parameters' so that it answers at once, or 'judge.log_probs' to false",
        )
    return reading, model_of(answer, model)


def _rating(answer: Answer) -> Reading:
    text = text_of(answer)
    found = RATING.findall(text)
    if len(found) != 1 or not 1 <= float(found[0]) <= 10:
        raise Unusable(f"no rating from 1 to 10: {text!r:.60}")
    return Reading(float(found[0]))
