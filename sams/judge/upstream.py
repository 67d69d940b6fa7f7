"""Calls of a judge's endpoint, within limits and with retries."""

import asyncio
import contextlib
import email.utils
import json
import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import tenacity

from sams.judge.calls import Answer, Call, Reading, Request, Unusable
from sams.judge.client import KEY_VARIABLE, connection_problem, endpoint_client, missing_key
from sams.runtime.errors import UserError
from sams.study.settings import Judge

log = logging.getLogger(__name__)

LONGEST_BACK_OFF = 60.0
# An endpoint that requests a longer pause counts as out of quota.
LONGEST_RETRY_AFTER = 600.0
# After this number of failed or refused calls in a row the endpoint counts as down, or as refusing every call.
FAILED_IN_A_ROW = 3
RETRIED_STATUSES = (408, 409, 429)
# Statuses by which endpoints refuse one prompt: its length, its content, its form.
PROMPT_STATUSES = (400, 403, 413, 422)
# Codes by which they say that it is the prompt.
PROMPT_CODES = (
    "content_filter",
    "content_policy_violation",
    "context_length_exceeded",
    "invalid_prompt",
    "string_above_max_length",
)
# Requests of a judgment until an answer has one.
ATTEMPTS = 3
USAGE = ("prompt_tokens", "completion_tokens", "total_tokens")
# A server may quote a part of the key: any piece of this length counts as the key.
TELLING_PIECE = 6


class CallFailed(Exception):
    """A call without a usable answer, with a short reason.

    Args:
        reason: a few words, counted.
        answer: the last answer, which was paid; None without one.
    """

    def __init__(self, reason: str, answer: Answer | None = None) -> None:
        super().__init__(reason)
        self.reason, self.answer = reason, answer


class PromptRefused(CallFailed):
    """The endpoint refuses this prompt; another try would end in the same way."""


class _Transient(Exception):
    """A failed try that is worth a retry.

    Args:
        reason: a few words, counted.
        retry_after: pause that the endpoint requests, in seconds.
    """

    def __init__(self, reason: str, retry_after: float = 0.0) -> None:
        super().__init__(reason)
        self.reason, self.retry_after = reason, retry_after


class Upstream:
    """The judge's endpoint, with limits on concurrent calls and on calls a minute, and with retries.

    Args:
        settings: address, limits and retries.
        key: key of the endpoint, used in the header of the calls only; None allows no calls.

    Attributes:
        retried: failed tries by reason.
        wasted: `usage` of answers that were paid and could not be used.
        before_call: called before each call; it may stop them.
        stopped: the reason why no further calls are made; None while calls are allowed.
    """

    def __init__(self, settings: Judge, key: str | None) -> None:
        self.retried: Counter[str] = Counter()
        self.wasted: list[Any] = []
        self.before_call: Callable[[], None] = lambda: None
        self.stopped: UserError | None = None
        self._settings = settings
        self._key = key
        self._client = endpoint_client(settings, key) if key else None
        self._halt = asyncio.Event()
        self._slots = asyncio.Semaphore(settings.concurrency)
        self._next_start = 0.0
        self._passed = False
        self._failed_in_a_row = 0
        self._back_off = tenacity.wait_random_exponential(settings.retry_seconds, LONGEST_BACK_OFF)

    def stop(self, reason: UserError) -> None:
        """Make no further call, and end the waits between tries. Only the first reason is kept."""
        self.stopped = self.stopped or reason
        self._halt.set()

    async def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.close()

    async def check(self) -> None:
        """Request the list of models, which shows a wrong key or address before the first paid call.

        Raises:
            UserError: no key, a refused key, or an address where no such API answers.
        """
        import httpx2
        import openai

        where = self._settings.base_url
        if self._client is None:
            raise missing_key(self._settings)
        try:
            async with asyncio.timeout(self._settings.timeout_seconds):
                answer = await self._client.get("/models", cast_to=httpx2.Response)
        except (openai.AuthenticationError, openai.PermissionDeniedError):
            raise _refused_key(where) from None
        except openai.APIConnectionError as error:
            problem, remedy = connection_problem(error)
            raise UserError(problem, where=where, remedy=remedy) from None
        except TimeoutError:
            raise UserError("the judge does not answer", where=where) from None
        except openai.APIStatusError:
            log.info("%s does not list its models", where)
            return
        if answer.content.lstrip().startswith(b"<"):
            raise _web_page(where)

    async def ask(self, call: Call, request: Request) -> tuple[Answer, Reading]:
        """Make a call until its answer has a judgment, with the tries that the settings allow.

        Raises:
            CallFailed: all tries failed, the prompt is refused, no answer has a judgment, or calls have stopped.
        """
        for attempt in range(1, ATTEMPTS + 1):
            answer = await self._answer(request)
            try:
                return answer, call.read(answer)
            except Unusable as error:
                self.wasted.append(answer["usage"])
                self.retried[str(error)] += attempt < ATTEMPTS
                reason = str(error)
        raise CallFailed(reason, answer)

    async def _answer(self, request: Request) -> Answer:
        retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(_Transient),
            stop=tenacity.stop_after_attempt(self._settings.tries) | _WhenSet(self._halt),
            wait=self._wait,
            sleep=self._sleep,
            after=self._note,
            reraise=True,
        )
        try:
            answer: Answer = await retrying(self._try, request)
        except _Transient as error:
            self._failed_in_a_row += 1
            if self._failed_in_a_row >= FAILED_IN_A_ROW:
                self.stop(
                    UserError(
                        f"the judge is down: {FAILED_IN_A_ROW} calls in a row failed after "
                        f"{self._settings.tries} tries each, the last with {error.reason}",
                        where=self._settings.base_url,
                        remedy="run it again later; the answers so far are stored",
                    )
                )
            raise CallFailed(error.reason) from None
        self._passed, self._failed_in_a_row = True, 0
        return answer

    async def _sleep(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._halt.wait(), seconds)

    def _wait(self, state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        return getattr(error, "retry_after", 0.0) + self._back_off(state)

    def _note(self, state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, _Transient):
            self.retried[error.reason] += 1

    async def _try(self, request: Request) -> Answer:
        import openai

        async with self._slots:
            await self._await_turn()
            self.before_call()
            if self._client is None:
                self.stop(missing_key(self._settings))
            if self.stopped is not None or self._client is None:
                raise CallFailed("no further calls are made")
            try:
                # The time-out of the library is between two bytes; this one is of the whole answer.
                async with asyncio.timeout(self._settings.timeout_seconds):
                    response = await self._client.chat.completions.with_raw_response.create(
                        model=request["model"], messages=request["messages"], extra_body=request
                    )
            except (openai.APITimeoutError, TimeoutError):
                raise _Transient("time-out") from None
            except openai.APIConnectionError as error:
                problem, remedy = connection_problem(error)
                if "certificate" in problem:
                    raise self._stopped(
                        UserError(problem, where=self._settings.base_url, remedy=remedy)
                    ) from None
                raise _Transient("connection error") from None
            except openai.APIStatusError as error:
                code = error.code if isinstance(error.code, str) else ""
                pause = _retry_after(error.response.headers.get("retry-after"))
                raise self._failure(error.status_code, code, error.body, pause) from None
            content = response.content.replace(str(self._key).encode(), b"[key]")
        return self._checked(content)

    async def _await_turn(self) -> None:
        if self._settings.requests_per_minute is None:
            return
        start = max(time.monotonic(), self._next_start)
        self._next_start = start + 60.0 / self._settings.requests_per_minute
        await self._sleep(start - time.monotonic())

    def _stopped(self, reason: UserError) -> CallFailed:
        """Stop all calls, and return the error of this one."""
        self.stop(reason)
        return CallFailed("no further calls are made")

    def _failure(self, status: int, code: str, body: Any, pause: float) -> Exception:
        """Return the error of a status other than 200: of this try, of this prompt, or of all calls."""
        where = self._settings.base_url
        transient = status in RETRIED_STATUSES or status >= 500
        if transient and code != "insufficient_quota" and pause <= LONGEST_RETRY_AFTER:
            return _Transient(f"HTTP {status}", pause)
        if transient:
            pausing = f", for {pause:.0f} s" if pause else ""
            return self._stopped(
                UserError(
                    f"the judge has no quota left for this key{pausing}",
                    where=where,
                    remedy="run it again later; the answers so far are stored",
                )
            )
        words = self._words(body)
        if code in PROMPT_CODES or (status in PROMPT_STATUSES and self._passed):
            # Others have passed, so that it is this prompt; but not if one after the other is refused.
            self._failed_in_a_row += code not in PROMPT_CODES
            if self._failed_in_a_row < FAILED_IN_A_ROW:
                return PromptRefused(f"HTTP {status}{words}")
        if status in (401, 403):
            return self._stopped(_refused_key(where))
        return self._stopped(
            UserError(
                f"the judge refuses a call with HTTP {status}{words}",
                where=where,
                remedy="check 'judge.base_url', 'judge.model' and 'judge.parameters'",
            )
        )

    def _words(self, body: Any) -> str:
        """Return the message of the server, unless it contains the key or a piece of it."""
        body = body if isinstance(body, dict) else {}
        message = " ".join(str(body.get("message") or "").split())[:200]
        key = self._key or ""
        pieces = (key[start : start + TELLING_PIECE] for start in range(len(key) - TELLING_PIECE + 1))
        if not message or any(piece in message for piece in pieces):
            return ""
        return f": {message}"

    def _checked(self, content: bytes) -> Answer:
        """Parse the body of an answer; raise for another try if it is broken."""
        if content.lstrip().startswith(b"<"):
            raise self._stopped(_web_page(self._settings.base_url))
        try:
            # A lone surrogate is no text that can be stored.
            answer: Answer = json.loads(
                json.dumps(json.loads(content), ensure_ascii=False).encode("utf-8", "replace")
            )
            if isinstance(fault := answer.get("error"), dict) and "choices" not in answer:
                code = fault.get("code")
                status = code if isinstance(code, int) and 400 <= code < 600 else 500
                raise self._failure(status, code if isinstance(code, str) else "", fault, 0.0)
            message = answer["choices"][0]["message"]
            text = message.get("content")
            if not (text is None or isinstance(text, str)):
                raise TypeError
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
            raise _Transient("broken JSON") from None
        usage = answer.get("usage")
        usage = usage if isinstance(usage, dict) else {}
        answer["usage"] = {key: usage[key] if isinstance(usage.get(key), int) else 0 for key in USAGE}
        return answer


class _WhenSet(tenacity.stop.stop_base):
    """Stop when an asyncio event is set."""

    def __init__(self, event: asyncio.Event) -> None:
        self.event = event

    def __call__(self, retry_state: tenacity.RetryCallState) -> bool:
        return self.event.is_set()


def _refused_key(where: str) -> UserError:
    """Return the error of a refused key, without the message of the server, which may contain the key."""
    return UserError("the judge refuses the key", where=where, remedy=f"check {KEY_VARIABLE}")


def _web_page(where: str) -> UserError:
    return UserError(
        "a web page answers here, no judge",
        where=where,
        remedy="check 'judge.base_url'; it usually ends with /v1",
    )


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
