"""Calls of a judge's endpoint: within limits, and with retries of what may pass."""

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
# An endpoint that asks for a longer pause is out of quota rather than busy.
LONGEST_RETRY_AFTER = 600.0
# So many calls failing one after the other, each after all its tries, say that the endpoint is down.
FAILED_IN_A_ROW = 3
RETRIED_STATUSES = (408, 409, 429)
# A quoted key may be cut or masked in part: any piece of it of this length counts as the key.
TELLING_PIECE = 6


class CallFailed(Exception):
    """A call that has no answer; says in a few words why."""


class _Transient(Exception):
    """A try that failed in a way that may pass.

    Args:
        reason: a few words, for counting.
        retry_after: seconds that the endpoint asks to wait.
        usage: of an answer that came, and is paid, but cannot be used.
    """

    def __init__(self, reason: str, retry_after: float = 0.0, usage: Any = None) -> None:
        super().__init__(reason)
        self.reason, self.retry_after, self.usage = reason, retry_after, usage


class Upstream:
    """The real endpoint: at most so many calls at once and a minute, each tried several times.

    Args:
        settings: address, limits and retries.
        key: goes into the header of the calls and nowhere else; None if nothing is to be called.

    Attributes:
        retried: failed tries by reason.
        failed: calls given up, by the reason of their last try.
        wasted: `usage` of answers that were paid for and could not be used.
        stopped: why nothing is called any more, once that is so.
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
        """Call nothing any more: end the waits between tries. The first reason counts."""
        with self._lock:
            self.stopped = self.stopped or reason
        self._halt.set()

    def check(self) -> None:
        """Ask for the list of models: a bad key or address is known before anything is paid.

        Raises:
            UserError: no key, one that is refused, or an endpoint that cannot be reached.
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
            log.info("%s does not list its models; going on", where)

    def ask(self, request: Request) -> Answer:
        """Make a call, with as many tries as the settings allow.

        Raises:
            CallFailed: no try gave an answer, or calling has been stopped.
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
                        remedy="run it again later; answers so far are kept",
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
                raise CallFailed("calling has been stopped")
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
        """What a status other than 200 comes to: a recorded refusal, another try, or the end of all calls."""
        status, where = error.status_code, self._settings.base_url
        code = error.code if isinstance(error.code, str) else ""
        if status == 400 and code == "content_filter":  # Azure's way to refuse one prompt
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
                remedy="run it again later; answers so far are kept",
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
        """The server's own message, unless it quotes the key or a piece of it."""
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
    """That there is no key."""
    return UserError(
        f"the environment variable {KEY_VARIABLE} is not set, and judge {settings.base_url} needs a key",
        remedy=f"export {KEY_VARIABLE}, or set 'judge.kind' to local",
    )


def is_refusal(answer: Answer) -> bool:
    """Whether an answer says nothing: the judge refused, or gave an empty text."""
    message = answer["choices"][0]["message"]
    return not (message.get("content") or "").strip()


def _refused_key(where: str) -> UserError:
    """That the key is wrong. The server's own words are left out, because they may quote it."""
    return UserError("the judge refuses the key", where=where, remedy=f"check {KEY_VARIABLE}")


def _checked(request: Request, content: bytes) -> Answer:
    """The answer in a body, which is whole and holds what was asked for."""
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
    if not isinstance(usage, dict):  # AlpacaEval cannot do without
        answer["usage"] = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    return answer


def _has_log_probs(choice: dict[str, Any]) -> bool:
    try:
        return bool(choice["logprobs"]["content"][0]["top_logprobs"])
    except (KeyError, IndexError, TypeError):
        return False


def _refusal(request: Request) -> Answer:
    """An endpoint's refusal of one prompt, in the form of an answer without text."""
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
    """Seconds that a Retry-After header asks for, given as such or as a date; 0 without one."""
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
