"""One small call of a judge before anything is trained: a wrong key, address or model is known at once."""

from sams.judge.client import KEY_VARIABLE
from sams.judge.store import Request
from sams.judge.upstream import CallFailed, Upstream, is_refusal
from sams.runtime.errors import UserError
from sams.study.settings import Judge
from sams.world.verdicts import pair_prompt

TRIES = 2
SECONDS = 30.0

# Short, and of the synthetic world, so that a test's judge can answer it too.
QUESTION, RIGHT, WRONG = "what is 1 2 plus 3", "1 5", "1 4"
RATED = (
    f"[Question]\n{QUESTION}\n\n[The Start of Assistant's Answer]\n{RIGHT}\n[The End of Assistant's Answer]\n\n"
    'Rate the answer from 1 to 10 in this form: "Rating: [[5]]".'
)


def check_key(key: str) -> None:
    """See that a key can be sent at all, as one cannot that was pasted with its line end.

    Raises:
        UserError: without a letter of the key.
    """
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise UserError(
            "the key holds white space or characters that no key has",
            where=f"environment variable {KEY_VARIABLE}",
            remedy="export it anew, without quotes, blanks or a line end in it",
        )


def try_out(settings: Judge, key: str, model: str, *, log_probs: bool) -> None:
    """Make one call as the benchmarks will make them.

    Args:
        settings: the endpoint.
        key: its key.
        model: the judge.
        log_probs: whether the call asks for log-probs, which AlpacaEval cannot do without.

    Raises:
        UserError: the endpoint cannot be reached, refuses key or call, or does not give what was asked for.
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
