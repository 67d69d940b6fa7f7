"""The local judge: an OpenAI-compatible server on a free loopback port, in a child process.

It answers `POST /v1/chat/completions`, `GET /v1/models` and `GET /health`, so that it is called
as any other endpoint. `sams.world.verdicts` grades.
"""

import contextlib
import json
import math
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Any

from sams.runtime.loopback import HOST, JsonHandler, LoopbackServer
from sams.runtime.processes import end_child, start_child
from sams.world.verdicts import UnknownPrompt, Verdict, judge_prompt

MODEL = "local-judge"
MAX_REQUEST_BYTES = 1 << 20
START_SECONDS = 60.0


# --- the server -----------------------------------------------------------------------------------


class _Handler(JsonHandler):
    def __init__(self, *args: Any, length_lean: float) -> None:
        self.length_lean = length_lean
        super().__init__(*args)

    def do_GET(self) -> None:
        if self.path == "/health":
            self._send(HTTPStatus.OK, {"status": "ok"})
        elif self.path == "/v1/models":
            model = {"id": MODEL, "object": "model", "created": 0, "owned_by": "sams"}
            self._send(HTTPStatus.OK, {"object": "list", "data": [model]})
        else:
            self._refuse(HTTPStatus.NOT_FOUND, f"no such path: {self.path}")

    def do_POST(self) -> None:
        size = self._size()
        if size is None:
            self._refuse(HTTPStatus.LENGTH_REQUIRED, "Content-Length is needed")
        elif size > MAX_REQUEST_BYTES:
            self._discard(size)
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"at most {MAX_REQUEST_BYTES} bytes")
        elif self.path != "/v1/chat/completions":
            self._discard(size)
            self._refuse(HTTPStatus.NOT_FOUND, f"no such path: {self.path}")
        else:
            self._judge(self.rfile.read(size))

    def _judge(self, body: bytes) -> None:
        try:
            request = json.loads(body)
            model, prompt = str(request.get("model", MODEL)), request["messages"][-1]["content"]
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            prompt = None
        if not isinstance(prompt, str):
            self._refuse(HTTPStatus.BAD_REQUEST, "expected JSON with `messages`, the last with text content")
            return
        try:
            verdict = judge_prompt(prompt, self.length_lean)
        except UnknownPrompt as error:
            # AlpacaEval does not repeat a call that is refused with this last sentence.
            self._refuse(HTTPStatus.BAD_REQUEST, f"{error}. Please try again with a different prompt.")
            return
        self._send(HTTPStatus.OK, completion(verdict, prompt, model))

    def _discard(self, size: int) -> None:
        """Read and drop the body, up to a limit, so that the client reads the refusal."""
        rest = min(size, 16 * MAX_REQUEST_BYTES)
        while rest > 0 and (part := self.rfile.read(min(rest, 1 << 16))):
            rest -= len(part)

    def _refuse(self, status: HTTPStatus, message: str) -> None:
        self.close_connection = True
        self._send(status, {"error": {"message": message, "type": "invalid_request_error"}})


def completion(verdict: Verdict, prompt: str, model: str) -> dict[str, Any]:
    """Return a verdict as an OpenAI chat completion. Tokens are counted as words."""
    log_probs = None
    if verdict.log_probs is not None:
        tokens = [
            {"token": token, "logprob": log_prob, "bytes": list(token.encode())}
            for token, log_prob in sorted(verdict.log_probs.items(), key=lambda item: -item[1])
        ]
        log_probs = {"content": [{**tokens[0], "top_logprobs": tokens}], "refusal": None}
    prompt_tokens, completion_tokens = len(prompt.split()), len(verdict.text.split())
    return {
        "id": "chatcmpl-local",
        "object": "chat.completion",
        "created": math.floor(time.time()),
        "model": model,
        "choices": [
            {
                "index": 0,
                "finish_reason": "stop",
                "message": {"role": "assistant", "content": verdict.text},
                "logprobs": log_probs,
            }
        ],
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        },
    }


def serve(length_lean: float) -> None:
    """Serve until killed, on a port chosen by the system, which is printed as one line."""
    server = LoopbackServer((HOST, 0), partial(_Handler, length_lean=length_lean))
    print(server.server_address[1], flush=True)
    server.serve_forever()


# --- the parent's side ----------------------------------------------------------------------------


@dataclass(frozen=True)
class LocalJudge:
    """A running local judge."""

    base_url: str
    process: subprocess.Popen[bytes]

    def is_alive(self) -> bool:
        """Return whether the process of the server is running."""
        return self.process.poll() is None


@contextlib.contextmanager
def local_judge(length_lean: float) -> Iterator[LocalJudge]:
    """Start a local judge and wait until it answers; the end of the block stops it.

    Raises:
        RuntimeError: it does not start.
    """
    process = start_child(["sams.world.local_judge", repr(length_lean)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        port = process.stdout.readline().strip().decode()
        if not port:
            raise RuntimeError(f"the local judge has ended with status {process.wait()}")
        _wait_for_health(f"http://{HOST}:{port}/health", process)
        yield LocalJudge(f"http://{HOST}:{port}/v1", process)
    finally:
        end_child(process)


def _wait_for_health(url: str, process: subprocess.Popen[bytes]) -> None:
    # Loopback is never reached through a network proxy.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with opener.open(url, timeout=5):
                return
        except OSError:
            time.sleep(0.05)
    raise RuntimeError("the local judge does not answer")


if __name__ == "__main__":
    serve(float(sys.argv[1]))
