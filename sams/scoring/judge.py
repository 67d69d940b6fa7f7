"""Whom the scorers ask: the local judge, started here, or an OpenAI-compatible endpoint.

The key of an endpoint comes from the environment (OPENAI_API_KEY) and stays there: no file, recipe, log or
command line that is written here holds it.
"""

import contextlib
import functools
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sams.errors import UserError
from sams.recipes import ScoreRecipe
from sams.scoring.local_judge import local_judge
from sams.settings import Judge

if TYPE_CHECKING:
    import openai

log = logging.getLogger(__name__)

KEY_VARIABLE = "OPENAI_API_KEY"
# The judge of both benchmarks where the settings name none: GPT-4 Turbo, as in the paper.
DEFAULT_MODEL = "gpt-4-1106-preview"
LOCAL_NAME = "local judge"

CALL_SECONDS = 120.0
CALL_RETRIES = 5


@dataclass(frozen=True)
class Endpoint:
    """Where judge calls go.

    Args:
        name: how the judge is called in results: `local judge`, or the endpoint's model.
        model: the model name to put into a call.
        base_url: the API's address, ending in /v1.
        local: whether it is the local judge, which needs no key.
        concurrency: calls in flight.
        is_alive: false when the judge can no longer answer, so that a scorer need not wait for time-outs.
    """

    name: str
    model: str
    base_url: str
    local: bool
    concurrency: int
    is_alive: Callable[[], bool]


def judge_name(settings: Judge) -> str:
    """How this judge is called in results."""
    return LOCAL_NAME if settings.kind == "local" else settings.model or DEFAULT_MODEL


@contextlib.contextmanager
def open_judge(recipe: ScoreRecipe) -> Iterator[Endpoint]:
    """Yield the judge of a recipe; a local one is started, and ended with the block.

    Raises:
        UserError: no key in the environment, or an endpoint that refuses it or cannot be reached; a local
            judge where there is no synthetic world.
    """
    settings = recipe.judge
    if settings.kind == "local":
        if recipe.world is None:
            raise UserError(
                "the local judge can only grade the synthetic world",
                where="key 'judge.kind'",
                remedy="set it to openai",
            )
        with local_judge(settings.length_lean) as judge:
            # More calls in flight would not help: an answer takes less than a millisecond of one core.
            yield Endpoint(LOCAL_NAME, DEFAULT_MODEL, judge.base_url, True, 1, judge.is_alive)
        return
    if not os.environ.get(KEY_VARIABLE):
        raise UserError(
            f"the environment variable {KEY_VARIABLE} is not set, and judge {settings.base_url} needs a key",
            remedy=f"export {KEY_VARIABLE}, or set 'judge.kind' to local",
        )
    endpoint = Endpoint(
        name=judge_name(settings),
        model=settings.model or DEFAULT_MODEL,
        base_url=settings.base_url,
        local=False,
        concurrency=settings.concurrency,
        is_alive=lambda: True,
    )
    _check(endpoint)
    yield endpoint


def client(endpoint: Endpoint) -> "openai.OpenAI":
    """A client of an endpoint, one per process and thread-safe."""
    return judge_client(endpoint.base_url, endpoint.local)


def judge_client(base_url: str, local: bool) -> "openai.OpenAI":
    """As `client`. AlpacaEval calls it once per prompt, as the `client_class` of its client configuration."""
    return _client(os.getpid(), base_url, local)


def no_judge() -> "openai.OpenAI":
    """In place of `judge_client` where every judgment is recorded, so that no call can be needed."""
    raise RuntimeError("a judgment is needed that is not among the recorded ones")


@functools.cache
def _client(process: int, base_url: str, local: bool) -> "openai.OpenAI":
    # `process` is part of the key because connections must not be shared with a forked worker.
    import openai

    for library in ("httpx", "httpx2"):  # a line per call otherwise
        logging.getLogger(library).setLevel(logging.WARNING)
    if not local:
        return openai.OpenAI(base_url=base_url, timeout=CALL_SECONDS, max_retries=CALL_RETRIES)
    # Loopback is never reached through a proxy, and a real key has no business there.
    return openai.OpenAI(
        base_url=base_url,
        api_key="none",
        timeout=CALL_SECONDS,
        max_retries=1,
        http_client=openai.DefaultHttpxClient(trust_env=False),
    )


def _check(endpoint: Endpoint) -> None:
    """Ask an endpoint for its models: AlpacaEval would retry for hours what can be known at once.

    The server's own words are left out, because they may quote the key.
    """
    import openai

    try:
        client(endpoint).with_options(max_retries=1).models.list()
    except (openai.AuthenticationError, openai.PermissionDeniedError):
        raise UserError(
            "the judge refuses the key", where=endpoint.base_url, remedy=f"check {KEY_VARIABLE}"
        ) from None
    except openai.APIConnectionError:
        raise UserError(
            "the judge cannot be reached",
            where=endpoint.base_url,
            remedy="check 'judge.base_url' and the network",
        ) from None
    except openai.APIStatusError:
        log.info("%s does not list its models; going on", endpoint.base_url)
