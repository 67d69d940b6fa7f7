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
from sams.judge.client import (
    KEY_VARIABLE,
    SHORTEST_SECRET,
    AnswerRefused,
    connection_problem,
    endpoint_client,
    is_certificate,
    missing_key,
)
from sams.judge.store import CHARACTERS_PER_TOKEN, expected_tokens
from sams.runtime.errors import UserError, first_line
from sams.study.settings import Judge

log = logging.getLogger(__name__)

LONGEST_BACK_OFF = 60.0
# An endpoint that requests a longer pause counts as out of quota.
LONGEST_RETRY_AFTER = 600.0
# After this number of failed calls in a row the endpoint counts as down.
FAILED_IN_A_ROW = 3
PROBE = "The capital of France is Paris. Answer with one letter: m if this is true, M if it is false."
# So many calls may be refused or stay without a judgment, or as many as there are judgments.
FEW_WITHOUT = 5
RETRIED_STATUSES = (408, 409, 429)
# Statuses by which endpoints refuse one prompt: its length, its content, its form.
PROMPT_STATUSES = (400, 403, 413, 422)
QUOTA_CODES = ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active")
# Codes by which they say that it is the prompt.
PROMPT_CODES = (
    "content_filter",
    "content_policy_violation",
    "context_length_exceeded",
    "exceed_context_size_error",  # llama.cpp
    "invalid_prompt",
    "string_above_max_length",
)
# Requests of a judgment until an answer has one.
ATTEMPTS = 3
STATUSES = {str(status) for status in range(400, 600)}
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
        good: number of judgments that there are; the caller adds those of stored answers.
        retried: failed tries by reason.
        wasted: `usage` of answers that were paid and could not be used.
        before_call: called before each call; it may stop them.
        slots: one for each concurrent call; the caller holds one while it asks.
        refused: the error of calls that were refused with a status that may be the fault of one prompt.
        stopped: the reason why no further calls are made; None while calls are allowed.
    """

    def __init__(self, settings: Judge, key: str | None) -> None:
        self.good = 0
        self.retried: Counter[str] = Counter()
        self.wasted: list[Any] = []
        self.before_call: Callable[[], None] = lambda: None
        self.refused: UserError | None = None
        self.stopped: BaseException | None = None
        self._settings = settings
        self._key = key
        self._client = endpoint_client(settings, key) if key else None
        self._halt = asyncio.Event()
        self.slots = asyncio.Semaphore(settings.concurrency)
        self._next_start = 0.0
        self._passed = False
        self._failed_in_a_row = self._without = 0
        self._back_off = tenacity.wait_random_exponential(settings.retry_seconds, LONGEST_BACK_OFF)

    def stop(self, reason: BaseException) -> None:
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
        except openai.AuthenticationError:
            raise _refused_key(where) from None
        except (openai.APITimeoutError, TimeoutError):
            raise UserError("the judge does not answer", where=where) from None
        except openai.APIConnectionError as error:
            raise connection_problem(error, where) from None
        except openai.APIStatusError:  # 403 too: a key may be restricted to calls
            log.info("%s does not list its models", where)
            return
        except Exception as error:  # of the library, with the address
            raise UserError(
                f"no call can be made ({first_line(error)})", where=where, remedy="check 'judge.base_url'"
            ) from None
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
                reading = read(call, answer)
            except Unusable as error:
                self.wasted.append(answer["usage"])
                self.retried[brief(str(error))] += attempt < ATTEMPTS
                reason = str(error)
            else:
                self.good += 1
                return answer, reading
        self._count_without(
            UserError(
                f"the judge gives no judgment in {ATTEMPTS} answers each to {self._without + 1} calls, "
                f"with {self.good} judgments so far ({reason})",
                where=self._settings.base_url,
                remedy="check 'judge.model' and 'judge.parameters'",
            )
        )
        raise CallFailed(reason, answer)

    def _count_without(self, reason: UserError) -> None:
        """Count a call without a judgment, and stop if there are too many."""
        self._without += 1
        if self._without > max(FEW_WITHOUT, self.good):
            self.stop(reason)

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
            if self._failed_in_a_row >= FAILED_IN_A_ROW and not await self._answers_at_all(request):
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
        usage, text = answer["usage"], answer["choices"][0]["message"].get("content") or ""
        if not usage["prompt_tokens"]:  # an estimate, so that the limit of the cost holds
            usage |= {
                "prompt_tokens": expected_tokens([request]).prompt,
                "completion_tokens": usage["completion_tokens"] or len(text) // CHARACTERS_PER_TOKEN + 1,
            }
        return answer

    async def _answers_at_all(self, request: Request) -> bool:
        """Return whether a short prompt is answered: those that failed may have made the endpoint fail."""
        try:
            answer = await self._try({**request, "messages": [{"role": "user", "content": PROBE}]})
        except _Transient:
            return False
        except CallFailed:
            return self.stopped is None
        self.wasted.append(answer["usage"])
        self._failed_in_a_row = 0
        return True

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
            if is_certificate(error):
                raise self._stopped(connection_problem(error, self._settings.base_url)) from None
            raise _Transient("connection error") from None
        except openai.APIStatusError as error:
            pause = _retry_after(error.response.headers.get("retry-after"))
            raise self._failure(error.status_code, error.body, pause) from None
        except AnswerRefused as error:
            raise _Transient(str(error)) from None
        except (TypeError, ValueError) as error:  # half a surrogate pair, for instance
            raise PromptRefused(f"cannot be sent: {type(error).__name__}") from None
        except Exception as error:
            raise _Transient(type(error).__name__) from None
        return self._checked(response.content)

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

    def _failure(self, status: int, body: Any, pause: float) -> Exception:
        """Return the error of a status other than 200: of this try, of this prompt, or of all calls."""
        where = self._settings.base_url
        codes = {str(body.get(key)) for key in ("code", "type")} if isinstance(body, dict) else set()
        transient = status in RETRIED_STATUSES or status >= 500
        exhausted = status == 402 or not codes.isdisjoint(QUOTA_CODES) or pause > LONGEST_RETRY_AFTER
        if transient and not exhausted:
            return _Transient(f"HTTP {status}", pause)
        if exhausted:
            pausing = f", for {pause:.0f} s" if pause else ""
            return self._stopped(
                UserError(
                    f"the judge has no quota left for this key{pausing}",
                    where=where,
                    remedy="run it again later; the answers so far are stored",
                )
            )
        words = self._words(body)
        refusal = PromptRefused(f"HTTP {status}{words}")
        if not codes.isdisjoint(PROMPT_CODES):
            return refusal
        reason = UserError(
            f"the judge refuses a call with HTTP {status}{words}",
            where=where,
            remedy="check 'judge.base_url', 'judge.model' and 'judge.parameters'"
            + (f", and what {KEY_VARIABLE} may be used for" if status == 403 else ""),
        )
        if status == 401:
            reason = _refused_key(where)  # without words, which may contain the key
        if status not in PROMPT_STATUSES:
            return self._stopped(reason)
        # It may be this prompt. The others will show it, which are in flight now or come next.
        self.refused = reason
        self._count_without(reason)
        return refusal

    def _words(self, body: Any) -> str:
        """Return the message of the server, unless it contains the key or a piece of it."""
        words = (body.get("message") or body.get("detail") or "") if isinstance(body, dict) else body
        message = " ".join(str(words or "").encode("utf-8", "replace").decode().split())[:200]
        key = self._key if self._key and len(self._key) >= SHORTEST_SECRET else ""
        pieces = (key[start : start + TELLING_PIECE] for start in range(len(key) - TELLING_PIECE + 1))
        if not message or any(piece in message for piece in pieces):
            return ""
        return f": {message}"

    def _checked(self, content: bytes) -> Answer:
        """Parse the body of an answer; raise for another try if it is broken."""
        if content.lstrip().startswith(b"<"):
            if self._passed:
                raise _Transient("a web page")
            raise self._stopped(_web_page(self._settings.base_url))
        try:
            # A lone surrogate is no text that can be stored.
            text = json.dumps(json.loads(content), ensure_ascii=False).encode("utf-8", "replace")
            if self._key and len(self._key) >= SHORTEST_SECRET:
                text = text.replace(json.dumps(self._key)[1:-1].encode(), b"[key]")
            answer: Answer = json.loads(text)
            if "choices" not in answer and ("error" in answer or answer.get("object") == "error"):
                fault = answer.get("error") or answer
                code = str(fault.get("code")) if isinstance(fault, dict) else ""
                known = code in PROMPT_CODES
                raise self._failure(int(code) if code in STATUSES else 400 if known else 500, fault, 0.0)
            message = answer["choices"][0]["message"]
            if not isinstance(message.get("content"), str | None):
                raise TypeError
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
            raise _Transient("broken JSON") from None
        usage = answer.get("usage")
        usage = usage if isinstance(usage, dict) else {}
        answer["usage"] = {key: max(0, usage[key]) if isinstance(usage.get(key), int) else 0 for key in USAGE}
        return answer


class _WhenSet(tenacity.stop.stop_base):
    """Stop when an asyncio event is set."""

    def __init__(self, event: asyncio.Event) -> None:
        self.event = event

    def __call__(self, retry_state: tenacity.RetryCallState) -> bool:
        return self.event.is_set()


def brief(reason: str) -> str:
    """Return a reason without its details, by which reasons are counted."""
    return reason.split(":")[0]


def read(call: Call, answer: Answer) -> Reading:
    """Read the judgment in an answer, whose form an endpoint may have made up.

    Raises:
        Unusable: there is none.
    """
    try:
        return call.read(answer)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise Unusable(f"an answer of another form: {type(error).__name__}") from error


def _refused_key(where: str) -> UserError:
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
