"""Judge endpoints used for scoring: the local judge, or a remote endpoint behind the caching proxy.

The key of a remote endpoint comes from the environment (OPENAI_API_KEY) and stays in this process: it is written to
no file, recipe or log, and passed to no child and no command line.
"""

import contextlib
import functools
import logging
import os
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from sams.judge.client import KEY_VARIABLE
from sams.judge.proxy import DryRun, Proxy, judge_proxy
from sams.judge.upstream import missing_key
from sams.runtime.errors import UserError
from sams.study.recipes import ScoreRecipe
from sams.study.settings import Judge
from sams.world.local_judge import LocalJudge, local_judge

log = logging.getLogger(__name__)

# Judge of both benchmarks unless the settings name one: GPT-4 Turbo, as in the paper.
DEFAULT_MODEL = "gpt-4-1106-preview"
LOCAL_NAME = "local judge"
STORE = "judge_calls.jsonl"  # in the folder of the result by default


@dataclass(frozen=True)
class Endpoint:
    """Endpoint of judge calls on loopback.

    Args:
        model: model name of the calls.
        base_url: address of the API, ending in /v1.
        token: replaces the key in the calls.
        concurrency: calls in flight.
        check: raises an error if the judge can no longer answer, so that a scorer does not wait for time-outs.
        proxy: proxy of a remote endpoint; None for the local judge, whose calls are free.
    """

    model: str
    base_url: str
    token: str
    concurrency: int
    check: Callable[[], None]
    proxy: Proxy | None = None


_withheld: ContextVar[str | None] = ContextVar("withheld key", default=None)


@contextlib.contextmanager
def key_withheld() -> Iterator[None]:
    """Remove the key from the environment within a block, so that no child inherits it.

    `open_judge` still has access to it. Variables that contain the key are removed too.
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


def judge_name(settings: Judge) -> str:
    """Return the name of a judge in results."""
    return LOCAL_NAME if settings.kind == "local" else settings.model or DEFAULT_MODEL


@contextlib.contextmanager
def open_judge(recipe: ScoreRecipe, store: Path | None = None, dry_run: bool = False) -> Iterator[Endpoint]:
    """Start the judge of a recipe and yield its endpoint; the end of the block stops it.

    Args:
        recipe: the judge.
        store: file of a remote endpoint's answers, which are not requested again. None stores them in memory only.
        dry_run: only log the estimate of the calls.

    Raises:
        UserError: no key in the environment and no answers in the store; a local judge without a synthetic world.
        DryRun: for a local judge, whose calls are free.
    """
    settings = recipe.judge
    if settings.kind == "local":
        if recipe.world is None:
            raise UserError(
                "the local judge can only grade the synthetic world",
                where="key 'judge.kind'",
                remedy="set it to openai",
            )
        if dry_run:
            log.info("the calls of the local judge are free")
            raise DryRun
        with local_judge(settings.length_lean) as judge:
            # One call in flight is enough: an answer takes less than a millisecond of one core.
            check = functools.partial(_check_local, judge)
            yield Endpoint(DEFAULT_MODEL, judge.base_url, "none", 1, check)
        return
    key = _withheld.get() or os.environ.get(KEY_VARIABLE)
    if not (key or dry_run or (store is not None and store.is_file())):
        raise missing_key(settings)
    with judge_proxy(settings, key, store, dry_run) as (base_url, proxy):
        yield Endpoint(
            model=settings.model or DEFAULT_MODEL,
            base_url=base_url,
            token=proxy.token,
            concurrency=settings.concurrency,
            check=proxy.check,
            proxy=proxy,
        )


def _check_local(judge: LocalJudge) -> None:
    if not judge.is_alive():
        raise RuntimeError("the local judge has ended unexpectedly")
