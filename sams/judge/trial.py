"""Test call of a judge before training, which shows a wrong key, address or model."""

from sams.judge.client import KEY_VARIABLE
from sams.judge.store import Request
from sams.judge.upstream import CallFailed, Upstream, is_refusal
from sams.runtime.errors import UserError
from sams.study.settings import Judge
from sams.world.verdicts import pair_prompt

TRIES = 2
SECONDS = 30.0

# Short, and of the synthetic world, so that the judge of the tests can answer.
QUESTION, RIGHT, WRONG = "what is 1 2 plus 3", "1 5", "1 4"
RATED = (
    f"[Question]\n{QUESTION}\n\n[The Start of Assistant's Answer]\n{RIGHT}\n[The End of Assistant's Answer]\n\n"
    'Rate the answer from 1 to 10 in this form: "Rating: [[5]]".'
)


def check_key(key: str) -> None:
    """Check that a key can be sent; a pasted line end, for instance, cannot.

    Raises:
        UserError: the key is invalid. The message does not contain it.
    """
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise UserError(
            "the key contains white space or other invalid characters",
            where=f"environment variable {KEY_VARIABLE}",
            remedy="export it again, without quotes, blanks or a line end",
        )


def try_out(settings: Judge, key: str, model: str, *, log_probs: bool) -> None:
    """Make one call in the form of a benchmark's calls.

    Args:
        settings: the endpoint.
        key: its key.
        model: the judge.
        log_probs: request log-probs, which AlpacaEval requires.

    Raises:
        UserError: the endpoint cannot be reached, refuses the key or the call, or returns no text or no log-probs.
    """
    check_key(key)
    limits = {"tries": TRIES, "timeout_seconds": min(settings.timeout_seconds, SECONDS)}
    upstream = Upstream(settings.model_copy(update=limits), key)
    upstream.check()
    try:
        answer = upstream.ask(_request(model, log_probs))
    except CallFailed as error:
        if upstream.stopped is not None:
            raise upstream.stopped from None
        if str(error) == "no log-probs":
            raise UserError(
                f"judge {model} gives no log-probs, which AlpacaEval needs",
                where=settings.base_url,
                remedy="set 'judge.model' to one that does, or 'benchmarks.alpaca_eval' to null",
            ) from None
        raise UserError(
            f"a call of judge {model} failed {TRIES} times ({error})",
            where=settings.base_url,
            remedy="check 'judge.base_url' and 'judge.model', or try again later",
        ) from None
    if is_refusal(answer):
        raise UserError(
            f"judge {model} gives no text to a short question",
            where=settings.base_url,
            remedy="set 'judge.model' to one that answers at once, without reasoning",
        )


def _request(model: str, log_probs: bool) -> Request:
    if not log_probs:
        return {"model": model, "messages": [{"role": "user", "content": RATED}], "max_tokens": 64}
    prompt = pair_prompt(QUESTION, RIGHT, WRONG)
    return {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": 1,
        "logprobs": True,
        "top_logprobs": 5,
    }
