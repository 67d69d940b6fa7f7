"""Whom the scorers ask: the local judge, started here, or an endpoint behind the caching proxy.

The key of an endpoint comes from the environment (OPENAI_API_KEY) and stays in this process: no file, recipe,
log, child or command line that is made here holds it.
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

# The judge of both benchmarks where the settings name none: GPT-4 Turbo, as in the paper.
DEFAULT_MODEL = "gpt-4-1106-preview"
LOCAL_NAME = "local judge"
STORE = "judge_calls.jsonl"  # beside a result, unless told otherwise


@dataclass(frozen=True)
class Endpoint:
    """Where judge calls go; always on loopback.

    Args:
        model: the model name to put into a call.
        base_url: the API's address, ending in /v1.
        token: what stands in for a key in the calls.
        concurrency: calls in flight.
        check: raises when the judge can no longer answer, so that a scorer need not wait for time-outs.
        proxy: what stands between; None for the local judge, whose calls cost nothing.
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
    """Keep the key out of the environment for a while: nothing that is started meanwhile inherits it.

    Only `open_judge` finds it. Variables that hold it among other things are taken away with it.
    """
    key = os.environ.get(KEY_VARIABLE)
    taken = {name: value for name, value in os.environ.items() if key and key in value}
    for name in taken:
        del os.environ[name]
    token = _withheld.set(key)
    try:
        yield
    finally:
        _withheld.reset(token)
        os.environ.update(taken)


def judge_name(settings: Judge) -> str:
    """How this judge is called in results."""
    return LOCAL_NAME if settings.kind == "local" else settings.model or DEFAULT_MODEL


@contextlib.contextmanager
def open_judge(recipe: ScoreRecipe, store: Path | None = None, dry_run: bool = False) -> Iterator[Endpoint]:
    """Yield the judge of a recipe; what is started for it ends with the block.

    Args:
        recipe: who judges.
        store: file that keeps an endpoint's answers; those in it are not asked for again. None keeps them for
            this process only.
        dry_run: say what the calls will take, and make none.

    Raises:
        UserError: no key in the environment and no answers in the store; a local judge where there is no
            synthetic world.
        DryRun: of a local judge, whose calls cost nothing.
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
            log.info("the local judge costs nothing")
            raise DryRun
        with local_judge(settings.length_lean) as judge:
            # More calls in flight would not help: an answer takes less than a millisecond of one core.
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
        raise RuntimeError("the judge ended while it was needed")
