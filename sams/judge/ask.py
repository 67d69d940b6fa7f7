"""Request judgments: from the store, from an endpoint, or from the local judge.

A benchmark gives its calls and gets a judgment of each, in their order. An answer is stored as soon as its judgment
has been read, so that no answer is lost or paid twice; an answer without a judgment is not stored.
"""

import asyncio
import contextlib
import logging
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sams.judge.calls import Answer, Call, Reading, Request, Unusable, is_snapshot, model_of
from sams.judge.client import NO_KEY, judge_key, run_async
from sams.judge.store import Store, Tokens, expected_tokens, key_of, tokens_of
from sams.judge.upstream import CallFailed, Upstream, brief, read
from sams.runtime.errors import UserError
from sams.runtime.processes import EXIT_INTERRUPTED, stop_later
from sams.runtime.progress import Progress
from sams.study.recipes import ScoreRecipe
from sams.study.settings import Judge
from sams.world.local_judge import local_judge

log = logging.getLogger(__name__)

# Judge of recorded judgments that name none, and name of the local judge in its calls.
DEFAULT_MODEL = "gpt-4-1106-preview"
LOCAL_NAME = "local judge"
STORE = "judge_calls.jsonl"  # in the folder of the result by default
# Below this mean probability of the labels, the judge answers something else too often.
LABEL_MASS = 0.9
NAMED = 3


class DryRun(Exception):
    """Ends a dry run after the estimate."""


@dataclass(frozen=True)
class Judgment:
    """Judgments of one call.

    Args:
        name: what was judged.
        readings: a judgment for each repeat; empty if one is missing.
        texts: texts of the answers.
        missing: the reason why there is no judgment; empty otherwise.
    """

    name: str
    readings: tuple[Reading, ...] = ()
    texts: tuple[str, ...] = ()
    missing: str = ""

    @property
    def value(self) -> float:
        """Mean over the repeats."""
        return statistics.fmean(reading.value for reading in self.readings)

    @property
    def text(self) -> str:
        """Text of the first answer."""
        return self.texts[0]

    @property
    def doubt(self) -> str:
        """Why a judgment may be wrong; empty if none is doubtful."""
        return next((reading.doubt for reading in self.readings if reading.doubt), "")


@dataclass(frozen=True)
class Judgments:
    """Judgments of all calls.

    Args:
        each: in the order of the calls.
        judge: name of the judge, by the `model` of its answers.
        facts: figures of the calls for metrics.json; None for the local judge.
    """

    each: list[Judgment]
    judge: str
    facts: dict[str, Any] | None = None


RETRY = "run it again, which requests only these, or set `accept_missing` of the benchmark"


def check_missing(
    judgments: Sequence[Judgment], accept_missing: int, where: str, remedy: str = RETRY
) -> None:
    """Check that enough items have a judgment.

    Raises:
        UserError: more than `accept_missing` have none, or all.
    """
    missing = [judgment for judgment in judgments if judgment.missing]
    if missing and (len(missing) > accept_missing or len(missing) == len(judgments)):
        named = "; ".join(f"{judgment.name}: {judgment.missing}" for judgment in missing[:NAMED])
        more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
        raise UserError(
            f"{len(missing)} of {len(judgments)} judgments are missing ({named}{more})",
            where=where,
            remedy=remedy,
        )


def judge_name(settings: Judge) -> str:
    """Return the name under which a judge is requested."""
    return LOCAL_NAME if settings.kind == "local" else settings.model or DEFAULT_MODEL


def ask_judge(
    recipe: ScoreRecipe, calls: Sequence[Call], *, store: Path | None = None, dry_run: bool = False
) -> Judgments:
    """Return the judgments of calls.

    Args:
        recipe: the judge.
        calls: the calls; equal requests are made once.
        store: file of an endpoint's answers, which are not requested again. None stores them in memory only.
        dry_run: only log the estimate of the calls.

    Raises:
        UserError: no key, a local judge without a synthetic world, calls that would cost too much, an endpoint that
            cannot be called, or answers of several models.
        DryRun: in a dry run.
    """
    settings = recipe.judge
    if settings.kind == "openai":
        return run_async(_ask(settings, judge_key(settings), calls, store, dry_run))
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
        local = Judge(
            kind="openai",
            base_url=judge.base_url,
            model=DEFAULT_MODEL,
            concurrency=1,  # an answer takes less than a millisecond of one core
            tries=2,
            repeats=settings.repeats,
        )
        judgments = run_async(_ask(local, NO_KEY, calls, None, False, free=True))
    return Judgments(judgments.each, LOCAL_NAME)


async def _ask(
    settings: Judge,
    key: str | None,
    calls: Sequence[Call],
    path: Path | None,
    dry_run: bool,
    *,
    free: bool = False,
) -> Judgments:
    store = Store(path)
    upstream = Upstream(settings, key)
    asked = _Asked(settings, upstream, store)
    try:
        await asked.plan(calls, dry_run=dry_run, free=free)
        with asked.progress(len(calls)), stop_later(asked.interrupt):
            await asyncio.gather(*(asked.judge(call) for call in calls))
        if upstream.stopped is None and not upstream.good:
            upstream.stopped = upstream.refused
        if upstream.stopped is not None:
            raise upstream.stopped
        return Judgments([asked.judgment(call) for call in calls], asked.one_judge(), asked.facts(calls))
    finally:
        await upstream.close()
        store.close()


@dataclass
class _Asked:
    """Answers of one scoring, by the key of their request."""

    settings: Judge
    upstream: Upstream
    store: Store
    answers: dict[str, asyncio.Future[tuple[Answer, Reading]]] = field(default_factory=dict)
    paid: list[Answer] = field(default_factory=list)
    cached: list[Answer] = field(default_factory=list)
    models: Counter[str] = field(default_factory=Counter)
    stored: set[str] = field(default_factory=set)
    used: Tokens = field(default_factory=lambda: Tokens(0, 0))
    bar: Progress | None = None

    def __post_init__(self) -> None:
        self.upstream.before_call = self._check_cost
        self.loop = asyncio.get_running_loop()

    def requests(self, call: Call) -> list[tuple[str, Request]]:
        """Return the keys and requests of a call, one for each repeat."""
        request = call.request(self.settings, self.settings.model or DEFAULT_MODEL)
        return [(key_of(request, repeat), request) for repeat in range(1, self.settings.repeats + 1)]

    def known(self, call: Call, key: str) -> tuple[Answer, Reading] | None:
        """Return a stored answer and its judgment; None if there is none, or no judgment in it."""
        answer = self.store.get(key)
        with contextlib.suppress(Unusable):
            return None if answer is None else (answer, read(call, answer))
        return None

    # --- before the calls ---

    async def plan(self, calls: Sequence[Call], *, dry_run: bool, free: bool) -> None:
        """Log the estimate of the calls, and check that the endpoint can be called.

        Raises:
            UserError: the calls would cost too much, or the endpoint cannot be called.
            DryRun: in a dry run.
        """
        planned = {key: (call, request) for call in calls for key, request in self.requests(call)}
        stored = {key: self.known(call, key) for key, (call, _) in planned.items()}
        kept = [known[0] for known in stored.values() if known]
        self.stored = {key for key, known in stored.items() if known}
        missing = [request for key, (_, request) in planned.items() if stored[key] is None]
        self.upstream.good = len(kept)
        self.models.update(self.model(answer) for answer in kept)
        if free:
            return
        expected, prices = expected_tokens(missing), self.settings.prices
        cost = (self.tokens(kept).cost(prices) or 0.0) + (expected.cost(prices) or 0.0)
        log.info(
            "judge %s: %d calls, %d of them in the store; %d to make, with about %d prompt tokens "
            "(characters / 4) and %d answer tokens%s",
            self.settings.base_url,
            len(planned),
            len(kept),
            len(missing),
            expected.prompt,
            expected.completion,
            f"; ${cost:.2f} in all" if prices else "; cost unknown ('judge.prices' is not set)",
        )
        if dry_run:
            raise DryRun
        if missing and self.settings.max_cost is not None and cost > self.settings.max_cost:
            raise UserError(
                f"the judge would cost about ${cost:.2f}, more than {self.settings.max_cost:.2f}",
                where="key 'judge.max_cost'",
                remedy="raise it, or score less",
            )
        if missing:
            self.check_models()
            await self.upstream.check()

    @contextlib.contextmanager
    def progress(self, count: int) -> Iterator[None]:
        """Report the progress within a block."""
        self.bar = Progress("judge", count, "judgments", cost=self._cost)
        try:
            yield
        finally:
            self.bar.close()

    def _cost(self) -> str:
        cost = self._spent()
        return "" if cost is None else f"${cost:.2f}"

    def _spent(self) -> float | None:
        return (self.used + tokens_of(self.upstream.wasted)).cost(self.settings.prices)

    def tokens(self, answers: Sequence[Answer]) -> Tokens:
        """Return the tokens of answers, and of those of this run that could not be used."""
        return tokens_of([*(answer["usage"] for answer in answers), *self.upstream.wasted])

    # --- the calls ---

    async def judge(self, call: Call) -> None:
        """Get an answer to each request of a call; equal requests are made once."""
        requests = self.requests(call)
        for key, request in requests:
            if key not in self.answers:
                self.answers[key] = asyncio.ensure_future(self._stopping(call, key, request))
        await asyncio.gather(*(self.answers[key] for key, _ in requests), return_exceptions=True)
        assert self.bar is not None
        self.bar.add(kept=all(key in self.stored for key, _ in requests))

    async def _stopping(self, call: Call, key: str, request: Request) -> tuple[Answer, Reading]:
        """Stop all calls on an error; those in flight are completed and stored."""
        try:
            return await self._answer(call, key, request)
        except Exception as error:
            if not isinstance(error, CallFailed):
                self.upstream.stop(error)
            raise

    async def _answer(self, call: Call, key: str, request: Request) -> tuple[Answer, Reading]:
        if known := self.known(call, key):
            self._count(self.cached, known[0])
            return known
        # A call keeps its slot until it is done: the first ones are done before the last ones begin, and another
        # process that needs the same answers waits for these few only.
        async with self.upstream.slots, self.store.claim(key, lambda: self.upstream.stopped is not None):
            if known := self.known(call, key):  # from another process
                self._count(self.cached, known[0])
                self.models[self.model(known[0])] += 1
                self.check_models()
                return known
            answer, reading = await self.upstream.ask(call, request)
            self._count(self.paid, answer)
            self.models[self.model(answer)] += 1
            try:
                self.store.put(key, answer)
            except OSError as error:
                self.upstream.stop(
                    UserError(
                        f"cannot store the judge's answers: {error.strerror}", where=str(self.store.path)
                    )
                )
            self.check_models()
        return answer, reading

    def _count(self, answers: list[Answer], answer: Answer) -> None:
        """Add an answer to those paid or taken from the store, and its tokens to the sum."""
        answers.append(answer)
        self.used += tokens_of([answer["usage"]])

    def interrupt(self) -> None:
        """End with the answers of the calls in flight, which are paid."""
        self.loop.call_soon_threadsafe(self.upstream.stop, SystemExit(EXIT_INTERRUPTED))

    def model(self, answer: Answer) -> str:
        """Return the name of the model that has answered."""
        return model_of(answer, self.settings.model or DEFAULT_MODEL)

    def check_models(self) -> None:
        """Check that one model has given all answers.

        Raises:
            UserError: several have.
        """
        if len(self.models) > 1:
            named = ", ".join(f"{name} ({count})" for name, count in self.models.most_common(NAMED))
            raise UserError(
                f"{len(self.models)} models have answered: {named}; their judgments are not comparable",
                where=str(self.store.path or self.settings.base_url),
                remedy="set 'judge.model' to one snapshot, or delete the lines of the other one from the store",
            )

    def _check_cost(self) -> None:
        limit, spent = self.settings.max_cost, self._spent()
        if limit is not None and spent is not None and spent >= limit:
            self.upstream.stop(
                UserError(
                    f"the judgments have cost ${spent:.2f}; the limit is {limit:.2f}",
                    where="key 'judge.max_cost'",
                    remedy="raise it and run it again; the answers so far are stored",
                )
            )

    # --- after the calls ---

    def judgment(self, call: Call) -> Judgment:
        """Return the judgments of a call, all repeats or none."""
        found, texts = [], []
        for key, _ in self.requests(call):
            try:
                answer, reading = self.answers[key].result()
            except CallFailed as error:
                return Judgment(call.name, missing=error.reason)
            found.append(reading)
            texts.append(answer["choices"][0]["message"].get("content") or "")
        return Judgment(call.name, tuple(found), tuple(texts))

    def one_judge(self) -> str:
        """Return the name of the judge by the model that has answered.

        Raises:
            UserError: several have.
        """
        self.models = Counter(map(self.model, [*self.paid, *self.cached]))
        self.check_models()
        requested = self.settings.model or DEFAULT_MODEL
        judge = next(iter(self.models), requested)
        if not is_snapshot(judge, requested):
            log.warning("warning: judge %s answers as %s: the scores are labelled so", requested, judge)
        return judge

    def facts(self, calls: Sequence[Call]) -> dict[str, Any]:
        """Return the figures of the calls for metrics.json, and warn of doubtful ones.

        Calls made and taken from the store, failed tries and their reasons, judgments that are missing or doubtful,
        mean label mass, tokens and dollars of all answers (also of stored ones), and the models that answered.
        """
        answers = [*self.paid, *self.cached]
        judgments = [self.judgment(call) for call in calls]
        readings = [reading for judgment in judgments for reading in judgment.readings]
        masses = [reading.label_mass for reading in readings if reading.label_mass is not None]
        mass = statistics.fmean(masses) if masses else None
        if mass is not None and mass < LABEL_MASS:
            log.warning(
                "warning: the labels have a mean probability of %.3f: the judge answers something else", mass
            )
        doubts = Counter(reading.doubt for reading in readings if reading.doubt)
        for doubt, count in doubts.most_common():
            log.warning("warning: %d of %d judgments: %s", count, len(readings), doubt)
        tokens = self.tokens(answers)
        return {
            "n_calls": len(self.paid),
            "n_cached": len(self.cached),
            "n_retried": self.upstream.retried.total(),
            "retried": dict(self.upstream.retried.most_common()),
            "n_missing": sum(bool(judgment.missing) for judgment in judgments),
            "missing": dict(Counter(brief(each.missing) for each in judgments if each.missing).most_common()),
            "n_doubtful": doubts.total(),
            "doubtful": dict(doubts.most_common()),
            "label_mass": mass,
            "prompt_tokens": tokens.prompt,
            "completion_tokens": tokens.completion,
            "cost": tokens.cost(self.settings.prices),
            "models": sorted(self.models),
            "system_fingerprints": _named(answers, "system_fingerprint"),
        }


def _named(answers: Sequence[Answer], key: str) -> list[str]:
    return sorted({str(answer[key]) for answer in answers if answer.get(key)})
