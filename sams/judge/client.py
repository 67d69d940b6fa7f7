"""OpenAI client of a judge's endpoint, and its key.

The key of a remote endpoint comes from the environment (OPENAI_API_KEY) and stays in this process: it is written to
no file, recipe or log, and passed to no child and no command line.
"""

import asyncio
import contextlib
import logging
import os
import ssl
from collections.abc import AsyncIterator, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import parse_qsl, urlsplit

from sams.runtime.errors import UserError, first_line
from sams.study.settings import Judge

log = logging.getLogger(__name__)

if TYPE_CHECKING:
    import openai

KEY_VARIABLE = "OPENAI_API_KEY"
NO_KEY = "none"
"""Sent to an endpoint that needs no key."""
LOOPBACK = ("127.0.0.1", "::1", "localhost")
MAX_ANSWER_BYTES = 4 << 20
SHORTEST_SECRET = 16
"""A shorter key, such as EMPTY or none, is a placeholder that servers of one's own accept: it is no secret."""

_withheld: ContextVar[str | None] = ContextVar("withheld key", default=None)


@contextlib.contextmanager
def key_withheld() -> Iterator[None]:
    """Remove the key from the environment within a block, so that no child inherits it.

    `judge_key` still returns it. Variables that contain the key are removed too.
    """
    key = os.environ.get(KEY_VARIABLE)
    variables = {name: value for name, value in os.environ.items() if key and key in value}
    for name in variables:
        del os.environ[name]
    token = _withheld.set(key)
    try:
        yield
    finally:
        _withheld.reset(token)
        os.environ.update(variables)


class AnswerRefused(Exception):
    """An answer that is not read, with the reason in a few words."""


T = TypeVar("T")


def run_async(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end, also within the event loop of a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, coroutine).result()


def judge_key(settings: Judge) -> str | None:
    """Return the key of an endpoint; None if there is none and the endpoint needs one.

    An http address is one of a server of one's own, which may need no key.

    Raises:
        UserError: the key cannot be sent; a pasted line end, for instance, cannot. The message does not contain it.
    """
    key = _withheld.get() or os.environ.get(KEY_VARIABLE)
    if not key:
        return NO_KEY if urlsplit(settings.base_url).scheme == "http" else None
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise UserError(
            "the key contains white space or other invalid characters",
            where=f"environment variable {KEY_VARIABLE}",
            remedy="export it again, without quotes, blanks or a line end",
        )
    address = urlsplit(settings.base_url)
    if address.scheme == "http" and address.hostname not in LOOPBACK and len(key) >= SHORTEST_SECRET:
        log.warning("warning: %s goes to %s without encryption", KEY_VARIABLE, settings.base_url)
    return key


def missing_key(settings: Judge) -> UserError:
    """Return the error of a missing key."""
    return UserError(
        f"the judge needs a key, and the environment variable {KEY_VARIABLE} is not set",
        where=settings.base_url,
        remedy=f"export {KEY_VARIABLE}, or set 'judge.kind' to local",
    )


def endpoint_client(settings: Judge, key: str) -> "openai.AsyncOpenAI":
    """Return a client of the judge's endpoint, without the library's retries.

    Raises:
        UserError: the environment asks for a network proxy or certificates that cannot be used.
    """
    import httpx2  # the HTTP library of openai's client
    import openai

    for library in ("httpx", "httpx2"):  # a log line for each call
        logging.getLogger(library).setLevel(logging.WARNING)
    address = urlsplit(settings.base_url)
    query = dict(parse_qsl(address.query))
    try:
        return openai.AsyncOpenAI(
            base_url=address._replace(query="").geturl(),
            api_key=key,
            timeout=settings.timeout_seconds,
            max_retries=0,
            default_query=query,
            # Azure's older addresses, .../openai/deployments/NAME?api-version=..., expect the key in this header.
            default_headers={
                "Accept-Encoding": "identity",
                **({"api-key": key} if "api-version" in query else {}),
            },
            # A redirect would send the key to another host; loopback is never reached through a network proxy.
            http_client=openai.DefaultAsyncHttpxClient(
                follow_redirects=False,
                trust_env=address.hostname not in LOOPBACK,
                verify=httpx2.create_ssl_context(),  # with SSL_CERT_FILE
                event_hooks={"response": [_limit_body]},
            ),
        )
    except (ImportError, OSError, ValueError, httpx2.InvalidURL) as error:
        raise UserError(
            f"no connection can be set up: {first_line(error)}",
            where=settings.base_url,
            remedy="check 'judge.base_url' and the variables ALL_PROXY, HTTPS_PROXY and SSL_CERT_FILE",
        ) from None


async def _limit_body(response: Any) -> None:
    """Limit the size of an answer, whatever its headers promise.

    A compressed answer, which was not requested, has no such limit.
    """
    import httpx2

    if response.headers.get("content-encoding", "identity") != "identity":
        raise AnswerRefused("a compressed answer")

    class Limited(httpx2.AsyncByteStream):
        def __init__(self, stream: Any) -> None:
            self.stream = stream

        async def __aiter__(self) -> AsyncIterator[bytes]:
            size = 0
            async for part in self.stream:
                size += len(part)
                if size > MAX_ANSWER_BYTES:
                    raise AnswerRefused(f"an answer of more than {MAX_ANSWER_BYTES} bytes")
                yield part

        async def aclose(self) -> None:
            await self.stream.aclose()

    response.stream = Limited(response.stream)


def is_certificate(error: BaseException) -> bool:
    """Return whether a connection has failed because the certificate of the endpoint is not accepted."""
    return any(isinstance(cause, ssl.SSLCertVerificationError) for cause in _causes(error))


def connection_problem(error: BaseException, where: str) -> UserError:
    """Return the error of an endpoint that cannot be reached."""
    causes = _causes(error)
    of_system = [each for each in causes if isinstance(each, OSError) and each.errno]
    cause = first_line([*causes[:2], *of_system][-1])
    if is_certificate(error):
        remedy = "set SSL_CERT_FILE to the file of the authority that signed it"
        return UserError(f"the judge's certificate is not accepted ({cause})", where=where, remedy=remedy)
    remedy = "check 'judge.base_url' and the network"
    return UserError(f"the judge cannot be reached ({cause})", where=where, remedy=remedy)


def _causes(error: BaseException) -> list[BaseException]:
    """Return an exception and its causes, the first one last."""
    found = [error]
    while (cause := found[-1].__cause__ or found[-1].__context__) is not None and cause not in found:
        found.append(cause)
    return found
