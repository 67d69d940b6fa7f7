"""Caching proxy on loopback between the benchmarks' packages and a judge's endpoint.

The packages call the proxy as they would call OpenAI, with a token in place of the key. The proxy answers known
requests from the store, makes identical calls once, and passes the rest to `sams.judge.upstream`. A scorer first
plans its calls: the proxy refuses and records each call, so that the cost is known before the first paid call
(`Proxy.admit`).
"""

import contextlib
import json
import logging
import secrets
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from http import HTTPStatus
from pathlib import Path
from typing import Any

from sams.judge.store import Answer, Request, Store, Tokens, expected_tokens, key_of, tokens_of
from sams.judge.upstream import CallFailed, Upstream, is_refusal
from sams.runtime.errors import UserError
from sams.runtime.loopback import HOST, JsonHandler, LoopbackServer
from sams.runtime.progress import Progress
from sams.study.settings import Judge

log = logging.getLogger(__name__)

MAX_REQUEST_BYTES = 4 << 20
ATTEMPT_HEADER = "X-Sams-Attempt"
# AlpacaEval does not repeat a call that is refused with this sentence.
NOT_AGAIN = "Please try again with a different prompt."


class DryRun(Exception):
    """Ends a dry run after the estimate."""


class Proxy:
    """The judge that the packages call.

    Args:
        settings: prices and limits.
        upstream: makes the calls.
        store: stores the answers.
        dry_run: end with the estimate.
    """

    def __init__(self, settings: Judge, upstream: Upstream, store: Store, dry_run: bool) -> None:
        self.token = secrets.token_hex(16)
        self._settings = settings
        self._upstream = upstream
        self._store = store
        self._dry_run = dry_run
        self._lock = threading.Condition()
        self._planned: dict[str, Request] | None = {}
        self._calls: dict[str, Future[Answer]] = {}
        self._answers: list[Answer] = []
        self._cached = 0
        self._in_flight = 0
        self._progress: Progress | None = None

    # --- before and after the calls ---

    def admit(self) -> None:
        """End the planning: log the estimate of the recorded calls, and allow calls from now on.

        Raises:
            UserError: the calls would cost too much, or the endpoint cannot be called.
            DryRun: in a dry run.
        """
        planned, self._planned = self._planned or {}, None
        kept = [answer for key in planned if (answer := self._store.get(key)) is not None]
        missing = [request for key, request in planned.items() if self._store.get(key) is None]
        expected, prices = expected_tokens(missing), self._settings.prices
        cost = (self._tokens(kept).cost(prices) or 0.0) + (expected.cost(prices) or 0.0)
        log.info(
            "judge %s: %d calls, %d of them in the store; %d to make, with about %d prompt tokens "
            "(characters / 4) and %d answer tokens%s",
            self._settings.base_url,
            len(planned),
            len(kept),
            len(missing),
            expected.prompt,
            expected.completion,
            f"; ${cost:.2f} in all" if prices else "; cost unknown ('judge.prices' is not set)",
        )
        if self._dry_run:
            raise DryRun
        if missing and self._settings.max_cost is not None and cost > self._settings.max_cost:
            raise UserError(
                f"the judge would cost about ${cost:.2f}, more than {self._settings.max_cost:.2f}",
                where="key 'judge.max_cost'",
                remedy="raise it, or score less",
            )
        if missing:
            self._upstream.check()
        self._progress = Progress("judge", len(planned), "calls", cost=self._cost)

    def _cost(self) -> str:
        cost = self._tokens(self._answers).cost(self._settings.prices)
        return "" if cost is None else f"${cost:.2f}"

    def check(self) -> None:
        """Check that the endpoint can still be called.

        Raises:
            UserError: the reason why it cannot.
        """
        if self._upstream.stopped is not None:
            raise self._upstream.stopped

    def check_complete(self) -> None:
        """Check that every call has an answer.

        Raises:
            UserError: the number of calls without an answer, and the reasons.
        """
        self.check()
        failed = self._upstream.failed
        if failed:
            reasons = ", ".join(f"{count} x {reason}" for reason, count in failed.most_common())
            raise UserError(
                f"{failed.total()} of {len(self._calls)} calls of the judge failed after "
                f"{self._settings.tries} tries each ({reasons})",
                where=self._settings.base_url,
                remedy="run it again; the answers so far are stored",
            )

    def facts(self) -> dict[str, Any]:
        """Return the figures of the judgments: calls made and taken from the store, failed tries, refusals and empty
        answers, tokens and dollars of all answers (also of stored ones), and the models that answered."""
        tokens = self._tokens(self._answers)
        refused = sum(map(is_refusal, self._answers))
        if refused:
            log.warning("%d answers of the judge are refusals or empty (%s)", refused, self._store.path)
        return {
            "n_calls": len(self._answers) - self._cached,
            "n_cached": self._cached,
            "n_retried": self._upstream.retried.total(),
            "n_refused": refused,
            "prompt_tokens": tokens.prompt,
            "completion_tokens": tokens.completion,
            "cost": tokens.cost(self._settings.prices),
            "models": _named(self._answers, "model"),
            "system_fingerprints": _named(self._answers, "system_fingerprint"),
        }

    def _tokens(self, answers: list[Answer]) -> Tokens:
        return tokens_of([*(answer["usage"] for answer in answers), *self._upstream.wasted])

    # --- the calls ---

    def answer(self, request: Request, attempt: int) -> Answer:
        """Return the answer to a request, from the store or by a call; wait if the same request is in flight.

        Raises:
            CallFailed: there is no answer.
        """
        key = key_of(request, attempt)
        with self._lock:
            if self._planned is not None:
                self._planned[key] = request
                raise CallFailed("planned, not made")
            call = self._calls.get(key)
            if mine := call is None:
                call = self._calls[key] = Future()
        if mine:
            try:
                call.set_result(self._fetch(key, request))
            except Exception as error:
                call.set_exception(error)
        return call.result()

    def _fetch(self, key: str, request: Request) -> Answer:
        answer = self._store.get(key)
        cached = answer is not None
        if answer is None:
            answer = self._pay(key, request)
        with self._lock:
            self._cached += cached
            self._answers.append(answer)
            if self._progress is not None:
                self._progress.add()
        return answer

    def _pay(self, key: str, request: Request) -> Answer:
        with self._lock:
            self._in_flight += 1
            spent = self._tokens(self._answers).cost(self._settings.prices)
        try:
            limit = self._settings.max_cost
            if spent is not None and limit is not None and spent >= limit:
                self._upstream.stop(
                    UserError(
                        f"the judgments have cost ${spent:.2f}; the limit is {limit:.2f}",
                        where="key 'judge.max_cost'",
                        remedy="raise it and run it again; the answers so far are stored",
                    )
                )
            answer = self._upstream.ask(request)
            try:
                self._store.put(key, answer)
            except OSError as error:
                self._upstream.stop(
                    UserError(
                        f"cannot store the judge's answers: {error.strerror}", where=str(self._store.path)
                    )
                )
                raise CallFailed("an answer that could not be stored") from None
            return answer
        finally:
            with self._lock:
                self._in_flight -= 1
                self._lock.notify_all()

    def finish(self) -> None:
        """Start no further call, and wait for the answers in flight, which are paid."""
        self._upstream.stop(UserError("the judge is no longer needed"))
        with self._lock:
            self._lock.wait_for(lambda: self._in_flight == 0, self._settings.timeout_seconds)
            if self._progress is not None:
                self._progress.close()


def _named(answers: list[Answer], key: str) -> list[str]:
    return sorted({str(answer[key]) for answer in answers if answer.get(key)})


# --- the server -----------------------------------------------------------------------------------


class _Server(LoopbackServer):
    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        super().__init__((HOST, 0), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore a connection that the package has closed, for example because it was killed."""
        log.debug("a connection to the judge's proxy broke", exc_info=True)


class _Handler(JsonHandler):
    server: _Server

    def do_POST(self) -> None:
        size = self._size()
        if size is None:
            return self._refuse(HTTPStatus.LENGTH_REQUIRED, "Content-Length is needed")
        if size > MAX_REQUEST_BYTES:
            return self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"at most {MAX_REQUEST_BYTES} bytes")
        body = self.rfile.read(size)
        given = self.headers.get("Authorization", "")
        if not secrets.compare_digest(given.encode(), f"Bearer {self.server.proxy.token}".encode()):
            # Other users of this machine must not make calls that this user pays for.
            return self._refuse(HTTPStatus.UNAUTHORIZED, "this proxy serves its own scoring only")
        if self.path != "/v1/chat/completions":
            return self._refuse(HTTPStatus.NOT_FOUND, "only /v1/chat/completions")
        attempt = self.headers.get(ATTEMPT_HEADER, "1")
        request = _request(body)
        if request is None or not attempt.isdecimal():
            return self._refuse(HTTPStatus.BAD_REQUEST, "expected JSON with `model` and `messages`")
        try:
            answer = self.server.proxy.answer(request, int(attempt))
        except CallFailed as error:
            # A status that no client retries.
            return self._refuse(
                HTTPStatus.FAILED_DEPENDENCY, f"the judge's call failed: {error}. {NOT_AGAIN}"
            )
        return self._send(HTTPStatus.OK, answer)

    def _refuse(self, status: HTTPStatus, message: str) -> None:
        self.close_connection = status != HTTPStatus.FAILED_DEPENDENCY
        self._send(status, {"error": {"message": message, "type": "judge_proxy"}})


def _request(body: bytes) -> Request | None:
    """Parse the request of a chat completion; return None for anything else."""
    try:
        request: Request = json.loads(body)
        known = isinstance(request["model"], str) and all(
            isinstance(message, dict) for message in request["messages"]
        )
    except (ValueError, KeyError, TypeError):
        return None
    return request if known else None


@contextlib.contextmanager
def judge_proxy(
    settings: Judge, key: str | None, store: Path | None, dry_run: bool = False
) -> Iterator[tuple[str, Proxy]]:
    """Serve a proxy within a block; yield its base URL and the proxy.

    Args:
        settings: the endpoint, its limits and prices.
        key: key of the endpoint; None allows no calls.
        store: file of the answers; None stores them in memory only.
        dry_run: end with the estimate.
    """
    answers = Store(store)
    proxy = Proxy(settings, Upstream(settings, key), answers, dry_run)
    server = _Server(proxy)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://{HOST}:{server.server_address[1]}/v1", proxy
    finally:
        proxy.finish()
        server.shutdown()
        server.server_close()
        answers.close()
