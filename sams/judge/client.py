"""OpenAI clients: of the judge's endpoint, and of the proxy or the local judge."""

import functools
import logging
import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

from sams.study.settings import Judge

if TYPE_CHECKING:
    import openai

KEY_VARIABLE = "OPENAI_API_KEY"
LOOPBACK = ("127.0.0.1", "::1", "localhost")


def endpoint_client(settings: Judge, key: str) -> "openai.OpenAI":
    """Return a client of the judge's endpoint, without the library's retries."""
    import openai

    _quiet()
    address = urlsplit(settings.base_url)
    query = dict(parse_qsl(address.query))
    return openai.OpenAI(
        base_url=address._replace(query="").geturl(),
        api_key=key,
        timeout=settings.timeout_seconds,
        max_retries=0,
        default_query=query,
        # Azure's older addresses, .../openai/deployments/NAME?api-version=..., expect the key in this header.
        default_headers={"api-key": key} if "api-version" in query else {},
        # A redirect would send the key to another host; loopback is never reached through a network proxy.
        http_client=openai.DefaultHttpxClient(
            follow_redirects=False,
            trust_env=address.hostname not in LOOPBACK,
            event_hooks={"response": [functools.partial(_limit_body, seconds=settings.timeout_seconds)]},
        ),
    )


def _limit_body(response: Any, seconds: float) -> None:
    """Limit the time for the body of an answer.

    The time-out of the library is between two bytes: an endpoint that sends a byte now and then would block a
    call forever.
    """
    import httpx2  # the HTTP library of openai's client

    class Limited(httpx2.SyncByteStream):
        def __init__(self, stream: Any) -> None:
            self.stream = stream

        def __iter__(self) -> Iterator[bytes]:
            until = time.monotonic() + seconds
            for part in self.stream:
                if time.monotonic() > until:
                    raise httpx2.ReadTimeout("the answer takes too long", request=response.request)
                yield part

        def close(self) -> None:
            self.stream.close()

    response.stream = Limited(response.stream)


def judge_client(base_url: str, token: str) -> "openai.OpenAI":
    """Return a client of the proxy or the local judge, one per process; the client is thread-safe.

    AlpacaEval calls this function for each prompt, as the `client_class` of its client configuration.
    """
    return _client(os.getpid(), base_url, token)


def no_judge() -> "openai.OpenAI":
    """Replace `judge_client` where every judgment is recorded: any call is an error."""
    raise RuntimeError("a judgment is needed that is not among the recorded ones")


@functools.cache
def _client(process: int, base_url: str, token: str) -> "openai.OpenAI":
    # `process` is part of the key because a forked worker must not share connections.
    import openai

    _quiet()
    return openai.OpenAI(
        base_url=base_url,
        api_key=token,
        # The proxy may wait long between its tries; scorers check that the proxy or the local judge is still running.
        timeout=None,
        max_retries=1,
        # Loopback is never reached through a network proxy.
        http_client=openai.DefaultHttpxClient(trust_env=False),
    )


def _quiet() -> None:
    """Turn off the log line of the HTTP libraries for each call."""
    for library in ("httpx", "httpx2"):
        logging.getLogger(library).setLevel(logging.WARNING)
