"""What endpoints send instead of a judgment: changed completions, other bodies, and streams without end."""

import gzip
import json
import time
from collections.abc import Callable
from typing import Any

Completion = dict[str, Any]


def _set(*path: Any, value: Any) -> Callable[[Completion], Any]:
    """Return a function that replaces a value in a completion."""

    def change(completion: Completion) -> Completion:
        inner: Any = completion
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value
        return completion

    return change


def _tokens(*tokens: tuple[str, Any]) -> Callable[[Completion], Any]:
    """Return a function that replaces the log-probs of the first token, and the text by the first of these."""

    def change(completion: Completion) -> Completion:
        choice = completion["choices"][0]
        found = [{"token": token, "logprob": value} for token, value in tokens]
        choice["logprobs"] = {"content": [{**found[0], "top_logprobs": found}]}
        choice["message"]["content"] = tokens[0][0]
        return completion

    return change


def _error(**fields: Any) -> Callable[[Completion], Any]:
    return lambda completion: {"error": fields}


# Completions with status 200, by the name of the outcome.
CHANGED: dict[str, Callable[[Completion], Any]] = {
    "thinks": _tokens(("<think>", -0.0002), ("m", -9.0), ("M", -10.0)),
    "always_m": _tokens(("m", -0.01), ("M", -4.6)),
    "spaced": _tokens((" m", -0.1), (" M", -2.4)),
    "null_log_prob": _tokens(("m", None), ("M", None)),
    "nan_log_prob": _tokens(("m", float("nan")), ("M", float("nan"))),
    "positive_log_prob": _tokens(("m", 3.0), ("M", -1.0)),
    "text_log_prob": _tokens(("m", "-0.1"), ("M", "-2")),
    "huge_log_prob": _tokens(("m", -(10**400)), ("M", -1.0)),
    "both_impossible": _tokens(("m", float("-inf")), ("M", float("-inf"))),
    "another_model": _set("model", value="gpt-3.5-turbo"),
    "snapshot": _set("model", value="judge-2024-06-06"),
    "no_model": _set("model", value=None),
    "markup_model": _set("model", value="x\n\n.. raw:: html\n\n   <script>"),
    "usage_text": _set("usage", value={"prompt_tokens": "12", "completion_tokens": None}),
    "usage_negative": _set("usage", value={"prompt_tokens": -5, "completion_tokens": -5}),
    "no_usage": _set("usage", value=None),
    "surrogate": _set("choices", 0, "message", "content", value="m \ud800"),
    "parts": _set("choices", 0, "message", "content", value=[{"type": "text", "text": "m"}]),
    "filtered": lambda completion: {
        **completion,
        "choices": [{"index": 0, "finish_reason": "content_filter", "message": {"content": None}}],
    },
    "no_choices": _set("choices", value=[]),
    "null_choices": _set("choices", value=None),
    "null_message": _set("choices", 0, "message", value=None),
    "no_object": lambda completion: [completion],
    "reasoned": lambda completion: _set(
        "choices",
        0,
        "message",
        value={"content": f"<think>m or M?</think>\n{completion['choices'][0]['message']['content']}"},
    )(completion),
    "reasoning_alone": _set("choices", 0, "message", value={"content": None, "reasoning_content": "m or M?"}),
    "error_400": _error(message="unknown field logprobs", code=400),
    "error_401": _error(message="no such user", code=401),
    "error_502": _error(message="Provider returned error", code=502),
    "error_text": lambda completion: {"error": "overloaded"},
    "error_object": lambda completion: {"object": "error", "message": "too long", "code": 400},
}

PAGE = b"<!DOCTYPE html><html><title>Welcome</title></html>"
# Other bodies: status, headers, body.
RAW: dict[str, tuple[int, dict[str, str], bytes]] = {
    "page": (200, {"Content-Type": "text/html"}, PAGE),
    "nothing": (200, {}, b""),
    "no_content": (204, {}, b""),
    "deep": (200, {}, b"[" * 100_000),
    "deep_error": (400, {}, b"[" * 100_000),
    "long_number": (200, {}, b"1" * 10_000),
    "bytes": (200, {}, bytes(range(256))),
    "bad_redirect": (302, {"Location": "http://[:99999999/\u00e4"}, b""),
    "bomb": (200, {"Content-Encoding": "gzip"}, gzip.compress(b" " * (64 << 20))),
    "bomb_error": (500, {"Content-Encoding": "gzip"}, gzip.compress(b" " * (64 << 20))),
    "no_gzip": (200, {"Content-Encoding": "gzip"}, b"not compressed"),
}


def endless(write: Callable[[bytes], Any]) -> None:
    """Send a body without end."""
    write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n")
    while True:
        write(b" " * (1 << 20))


def header_drip(write: Callable[[bytes], Any]) -> None:
    """Send one header after the other, without end."""
    write(b"HTTP/1.1 200 OK\r\n")
    while True:
        write(b"X-More: 1\r\n")
        time.sleep(0.05)


def half(write: Callable[[bytes], Any]) -> None:
    """Promise more than is sent."""
    write(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n" + json.dumps({"choices": []}).encode())


STREAMS = {"endless": endless, "header_drip": header_drip, "half": half}
