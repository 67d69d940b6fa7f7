"""Stand-in for a paid endpoint: it grades as the local judge does, requires a key, fails on request, and counts.

And calls of it.
"""

import contextlib
import hashlib
import json
import os
import random
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from sams.judge.ask import Judgments, ask_judge
from sams.judge.calls import Call, label_call
from sams.runtime.loopback import HOST, LoopbackServer
from sams.study.recipes import ScoreRecipe
from sams.study.settings import Judge
from sams.world.local_judge import _Handler, completion
from sams.world.verdicts import Verdict
from tests.judge.bad_answers import CHANGED, RAW, STREAMS

KEY = "sk-test-5up3rs3cr3t-0123456789abcdef"

# Says how the n-th time of a request ends: ok, an HTTP status, broken, no_log_probs, hangs_up, refusal, empty,
# quotes_key, text:... (the text of the answer), or a name in tests.judge.bad_answers.
Faults = Callable[[str, int], str]


def no_faults(request: str, time: int) -> str:
    """No fault."""
    return "ok"


def many_faults(request: str, time: int) -> str:
    """30 % of calls end in 429, 10 % in broken JSON, 5 % without log-probs, drawn for each request and try."""
    drawn = random.Random(f"{request} {time}").random()
    for share, fault in ((0.30, "429"), (0.40, "broken"), (0.45, "no_log_probs")):
        if drawn < share:
            return fault
    return "ok"


def always(outcome: str) -> Faults:
    """Every call ends with the same outcome."""
    return lambda request, time: outcome


class Endpoint:
    """Settings and record of an endpoint: its requests in order, and their outcomes. Tests change it while it
    runs."""

    def __init__(self, faults: Faults = no_faults, seconds: float = 0.0) -> None:
        self.faults = faults
        self.seconds = seconds
        self.drips = 0.0
        """Seconds between two pieces of an answer's body; 0 sends it at once."""
        self.more_tokens = 0
        """Tokens that an answer counts beyond the words of its prompt."""
        self.headers: dict[str, str] = {}
        self.only = ""
        """Text in the prompts that have a fault; the others have none."""
        self.lists_models = "ok"
        self.any_key = self.escaped = False
        """Whether it takes any key; whether it escapes the first letter of the key in its answers."""
        self.message, self.code = f"Incorrect API key provided: {KEY}", ""
        self.base_url = ""
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.queries: set[str] = set()
        self.keys: set[str | None] = set()
        self.outcomes: Counter[str] = Counter()
        self.starts: list[float] = []
        self.in_flight = self.peak = 0
        self.lock = threading.Lock()

    @property
    def billed(self) -> int:
        """Number of calls that arrived."""
        return len(self.requests)

    @property
    def distinct(self) -> int:
        """Number of different requests."""
        return len({digest for digest, _ in self.requests})


class _Paid(_Handler):
    endpoint: Endpoint

    def __init__(self, *args: Any) -> None:
        super().__init__(*args, length_lean=0.3)

    def do_GET(self) -> None:
        if self.headers.get("Authorization") != f"Bearer {KEY}" and not self.endpoint.any_key:
            return self._fail(401)
        self.outcome = self.endpoint.lists_models
        if self.outcome.isdigit():
            return self._fail(int(self.outcome))
        if self.outcome in RAW:
            return self._raw()
        return super().do_GET()

    def do_POST(self) -> None:
        self.path, _, query = self.path.partition("?")
        self.endpoint.queries.add(query)
        self.endpoint.keys |= {self.headers.get("Authorization"), self.headers.get("api-key")}
        super().do_POST()

    def _judge(self, body: bytes) -> None:
        endpoint, request = self.endpoint, json.loads(body)
        digest = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
        with endpoint.lock:
            self.outcome = endpoint.faults(digest, sum(d == digest for d, _ in endpoint.requests) + 1)
            if endpoint.only and endpoint.only not in request["messages"][-1]["content"]:
                self.outcome = "ok"
            if self.outcome == "no_log_probs" and not request.get("logprobs"):
                self.outcome = "ok"
            endpoint.requests.append((digest, request))
            endpoint.outcomes[self.outcome] += 1
            endpoint.starts.append(time.monotonic())
            endpoint.in_flight += 1
            endpoint.peak = max(endpoint.peak, endpoint.in_flight)
        try:
            time.sleep(endpoint.seconds)
            if self.outcome.isdigit():
                self._fail(int(self.outcome))
            elif self.outcome == "hangs_up":
                self.close_connection = True
            elif self.outcome in RAW:
                self._raw()
            elif self.outcome in STREAMS:
                self.close_connection = True
                STREAMS[self.outcome](self.wfile.write)
            elif (
                PARIS in json.dumps(request) or self.outcome == "trial"
            ):  # the trial's question, which is not of the synthetic world
                self._send(HTTPStatus.OK, completion(trial_verdict(request), "", "judge"))
            else:
                super()._judge(body)
        finally:
            with endpoint.lock:
                endpoint.in_flight -= 1

    def _fail(self, status: int) -> None:
        error: dict[str, Any] = {"message": self.endpoint.message, "code": self.endpoint.code}
        self._send(status, {"error": error})  # type: ignore[arg-type]

    def _raw(self) -> None:
        status, headers, body = RAW[self.outcome]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _send(self, status: Any, content: dict[str, Any]) -> None:
        outcome = getattr(self, "outcome", "ok")
        for choice in content.get("choices", ()):
            if outcome == "no_log_probs":
                choice["logprobs"] = None
            if outcome in ("refusal", "empty"):
                choice["message"] = {"role": "assistant", "content": None if outcome == "refusal" else ""}
                choice["logprobs"] = None
            if outcome.startswith("text:"):
                choice["message"]["content"] = outcome.removeprefix("text:")
            if outcome == "quotes_key":
                choice["message"]["content"] = f"m {KEY}"
        if "choices" in content:
            content["usage"]["prompt_tokens"] += self.endpoint.more_tokens
            content = {**content, "model": "judge-2024-01-01", "system_fingerprint": "fp_1"}
            content = CHANGED.get(outcome, dict)(content)
        body = json.dumps(content).encode()
        if self.endpoint.escaped:
            body = body.replace(KEY.encode(), b"\\u0073" + KEY[1:].encode())
        if outcome == "broken":
            body = body[: len(body) // 2]
        self.send_response(int(status))
        for name, value in self.endpoint.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        pieces = 10 if self.endpoint.drips and self.command == "POST" else 1
        for start in range(0, len(body), -(-len(body) // pieces)):
            time.sleep(self.endpoint.drips)
            self.wfile.write(body[start : start + -(-len(body) // pieces)])


PARIS = "The capital of France is Paris."


def trial_verdict(request: dict[str, Any]) -> Verdict:
    """Return the right judgment of the pair or of the answer that the trial of a judge shows."""
    prompt = request["messages"][-1]["content"]
    if "[[" in prompt and "Berlin." not in prompt:
        return Verdict("Rating: [[10]]")
    is_first = "Berlin." not in prompt.partition("Paris.")[0]
    if "[[" in prompt:
        return Verdict(f"Berlin is in Germany.\n\n[[{'A' if is_first else 'B'}]]")
    label = "m" if is_first else "M"
    return Verdict(label, {label: -0.01, "Mm".replace(label, ""): -4.6})


@contextlib.contextmanager
def serving(endpoint: Endpoint, tls: ssl.SSLContext | None = None) -> Iterator[Endpoint]:
    """Serve an endpoint on a free port."""
    handler = type("Paid", (_Paid,), {"endpoint": endpoint})
    server = LoopbackServer((HOST, 0), handler)
    server.handle_error = lambda *args: None  # type: ignore[method-assign]  # a client that was killed
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    endpoint.base_url = f"http{'s' if tls else ''}://{HOST}:{server.server_address[1]}/v1"
    try:
        yield endpoint
    finally:
        server.shutdown()
        server.server_close()


# --- calls of it ---------------------------------------------------------------------------------

CallOf = Callable[[int], Call]


@pytest.fixture
def call_of(pair_prompt: Callable[[str, str, str], str], question: tuple[str, str]) -> CallOf:
    """Return calls in AlpacaEval's form, different for each number."""

    def build(number: int) -> Call:
        prompt = pair_prompt(question[0], f"no idea {number}", question[1])
        return label_call(f"pair {number}", [{"role": "user", "content": prompt}], ("m", "M"), log_probs=True)

    return build


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    """An endpoint without faults, until a test changes it."""
    with serving(Endpoint()) as running:
        yield running


def ask(
    endpoint: Endpoint,
    calls: Sequence[Call],
    store: Path | None = None,
    *,
    key: str | None = KEY,
    dry_run: bool = False,
    **settings: Any,
) -> Judgments:
    """Ask an endpoint, with short waits between tries."""
    defaults = {"kind": "openai", "base_url": endpoint.base_url, "model": "judge", "retry_seconds": 0.001}
    recipe = ScoreRecipe(judge=Judge.model_validate(defaults | settings), world=None)
    environment = {name: value for name, value in os.environ.items() if name != "OPENAI_API_KEY"}
    with patch.dict(os.environ, environment | ({"OPENAI_API_KEY": key} if key else {}), clear=True):
        return ask_judge(recipe, calls, store=store, dry_run=dry_run)
