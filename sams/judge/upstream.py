"""Calls of a judge's endpoint, within limits and with retries."""

import email.utils
import json
import logging
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import tenacity

from sams.judge.client import KEY_VARIABLE, endpoint_client
from sams.judge.store import Answer, Request
from sams.runtime.errors import UserError
from sams.study.settings import Judge

if TYPE_CHECKING:
    import openai

log = logging.getLogger(__name__)

LONGEST_BACK_OFF = 60.0
# An endpoint that requests a longer pause counts as out of quota.
LONGEST_RETRY_AFTER = 600.0
# After this number of failed calls in a row, each with all its tries, the endpoint counts as down.
FAILED_IN_A_ROW = 3
RETRIED_STATUSES = (408, 409, 429)
# A server may quote a part of the key: any piece of this length counts as the key.
TELLING_PIECE = 6


class CallFailed(Exception):
    """A call without an answer, with a short reason."""


class _Transient(Exception):
    """A failed try that is worth a retry.

    Args:
        reason: a few words, counted.
        retry_after: pause that the endpoint requests, in seconds.
        usage: `usage` of an answer that is paid and cannot be used.
    """

    def __init__(self, reason: str, retry_after: float = 0.0, usage: Any = None) -> None:
        super().__init__(reason)
        self.reason, self.retry_after, self.usage = reason, retry_after, usage


class Upstream:
    """The judge's endpoint, with limits on concurrent calls and on calls a minute, and with retries.

    Args:
        settings: address, limits and retries.
        key: key of the endpoint, used in the header of the calls only; None allows no calls.

    Attributes:
        retried: failed tries by reason.
        failed: failed calls by the reason of their last try.
        wasted: `usage` of answers that were paid and could not be used.
        stopped: the reason why no further calls are made; None while calls are allowed.
    """

    def __init__(self, settings: Judge, key: str | None) -> None:
        self.retried: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.wasted: list[Any] = []
        self.stopped: UserError | None = None
        self._settings = settings
        self._key = key
        self._client = endpoint_client(settings, key) if key else None
        self._lock = threading.Lock()
        self._halt = threading.Event()
        self._slots = threading.Semaphore(settings.concurrency)
        self._next_start = 0.0
        self._failed_in_a_row = 0
        self._back_off = tenacity.wait_random_exponential(settings.retry_seconds, LONGEST_BACK_OFF)

    def stop(self, reason: UserError) -> None:
        """Make no further call, and end the waits between tries. Only the first reason is kept."""
        with self._lock:
            self.stopped = self.stopped or reason
        self._halt.set()

    def check(self) -> None:
        """Request the list of models, which shows a wrong key or address before the first paid call.

        Raises:
            UserError: no key, a refused key, or an endpoint that cannot be reached.
        """
        import openai

        where = self._settings.base_url
        if self._client is None:
            raise missing_key(self._settings)
        try:
            self._client.models.list()
        except (openai.AuthenticationError, openai.PermissionDeniedError):
            raise _refused_key(where) from None
        except openai.APIConnectionError:
            raise UserError(
                "the judge cannot be reached",
                where=where,
                remedy="check 'judge.base_url' and the network",
            ) from None
        except openai.APIStatusError:
            log.info("%s does not list its models", where)

    def ask(self, request: Request) -> Answer:
        """Make a call, with the tries that the settings allow.

        Raises:
            CallFailed: all tries failed, or no further calls are made.
        """
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(_Transient),
            stop=tenacity.stop_after_attempt(self._settings.tries) | tenacity.stop_when_event_set(self._halt),
            wait=self._wait,
            sleep=tenacity.sleep_using_event(self._halt),
            after=self._note,
            reraise=True,
        )
        try:
            answer: Answer = retrying(self._try, request)
        except _Transient as error:
            with self._lock:
                self.failed[error.reason] += 1
                self._failed_in_a_row += 1
                down = self._failed_in_a_row >= FAILED_IN_A_ROW
            if down:
                self.stop(
                    UserError(
                        f"the judge is down: {FAILED_IN_A_ROW} calls in a row failed after "
                        f"{self._settings.tries} tries each, the last with {error.reason}",
                        where=self._settings.base_url,
                        remedy="run it again later; the answers so far are stored",
                    )
                )
            raise CallFailed(error.reason) from None
        self._failed_in_a_row = 0
        return answer

    def _wait(self, state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        return getattr(error, "retry_after", 0.0) + self._back_off(state)

    def _note(self, state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, _Transient):
            with self._lock:
                self.retried[error.reason] += 1
                if error.usage:
                    self.wasted.append(error.usage)

    def _try(self, request: Request) -> Answer:
        import openai

        with self._slots:
            self._await_turn()
            if self._client is None:
                self.stop(missing_key(self._settings))
            if self.stopped is not None or self._client is None:
                raise CallFailed("no further calls are made")
            try:
                response = self._client.chat.completions.with_raw_response.create(
                    model=request["model"], messages=request["messages"], extra_body=request
                )
            except openai.APITimeoutError:
                raise _Transient("time-out") from None
            except openai.APIConnectionError:
                raise _Transient("connection error") from None
            except openai.APIStatusError as error:
                return self._handle_status(request, error)
        return _checked(request, self._without_key(response.content))

    def _await_turn(self) -> None:
        if self._settings.requests_per_minute is None:
            return
        with self._lock:
            start = max(time.monotonic(), self._next_start)
            self._next_start = start + 60.0 / self._settings.requests_per_minute
        self._halt.wait(start - time.monotonic())

    def _handle_status(self, request: Request, error: "openai.APIStatusError") -> Answer:
        """Handle a status other than 200: return a refusal, raise for another try, or stop all calls."""
        status, where = error.status_code, self._settings.base_url
        code = error.code if isinstance(error.code, str) else ""
        if status == 400 and code == "content_filter":  # Azure refuses one prompt in this way
            return _refusal(request)
        pause = _retry_after(error.response.headers.get("retry-after"))
        transient = status in RETRIED_STATUSES or status >= 500
        if transient and code != "insufficient_quota" and pause <= LONGEST_RETRY_AFTER:
            raise _Transient(f"HTTP {status}", pause)
        if status in (401, 403):
            reason = _refused_key(where)
        elif transient:
            reason = UserError(
                "the judge has no quota left for this key" + (f", for {pause:.0f} s" if pause else ""),
                where=where,
                remedy="run it again later; the answers so far are stored",
            )
        else:
            reason = UserError(
                f"the judge refuses a call with HTTP {status}{self._words(error)}",
                where=where,
                remedy="check 'judge.base_url' and 'judge.model'",
            )
        self.stop(reason)
        raise CallFailed(f"HTTP {status}")

    def _words(self, error: "openai.APIStatusError") -> str:
        """Return the message of the server, unless it contains the key or a piece of it."""
        body = error.body if isinstance(error.body, dict) else {}
        message = " ".join(str(body.get("message") or "").split())[:200]
        key = self._key or ""
        pieces = (key[start : start + TELLING_PIECE] for start in range(len(key) - TELLING_PIECE + 1))
        if not message or any(piece in message for piece in pieces):
            return ""
        return f": {message}"

    def _without_key(self, content: bytes) -> bytes:
        return content.replace(str(self._key).encode(), b"[key]")


def missing_key(settings: Judge) -> UserError:
    """Return the error of a missing key."""
    return UserError(
        f"the environment variable {KEY_VARIABLE} is not set, and judge {settings.base_url} needs a key",
        remedy=f"export {KEY_VARIABLE}, or set 'judge.kind' to local",
    )


def is_refusal(answer: Answer) -> bool:
    """Return whether an answer has no text: a refusal or an empty answer."""
    message = answer["choices"][0]["message"]
    return not (message.get("content") or "").strip()


def _refused_key(where: str) -> UserError:
    """Return the error of a refused key, without the message of the server, which may contain the key."""
    return UserError("the judge refuses the key", where=where, remedy=f"check {KEY_VARIABLE}")


def _checked(request: Request, content: bytes) -> Answer:
    """Parse the body of an answer; raise for another try if it is broken or has no log-probs."""
    try:
        answer: Answer = json.loads(content)
        choice = answer["choices"][0]
        message = choice["message"]
        text = message.get("content")
        if not (text is None or isinstance(text, str)):
            raise TypeError
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        raise _Transient("broken JSON") from None
    usage = answer.get("usage")
    if request.get("logprobs") and not is_refusal(answer) and not _has_log_probs(choice):
        raise _Transient("no log-probs", usage=usage)
    if not isinstance(usage, dict):  # AlpacaEval requires it
        answer["usage"] = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    return answer


def _has_log_probs(choice: dict[str, Any]) -> bool:
    try:
        return bool(choice["logprobs"]["content"][0]["top_logprobs"])
    except (KeyError, IndexError, TypeError):
        return False


def _refusal(request: Request) -> Answer:
    """Return the refusal of a prompt as an answer without text."""
    message = {"role": "assistant", "content": "", "refusal": "content_filter"}
    return {
        "id": "refused",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": request["model"],
        "choices": [{"index": 0, "finish_reason": "content_filter", "message": message, "logprobs": None}],
        "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
    }


def _retry_after(value: str | None) -> float:
    """Return the seconds of a Retry-After header, a number or a date; 0 without one."""
    if not value:
        return 0.0
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return 0.0
