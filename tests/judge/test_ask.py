"""Judgments of an endpoint on loopback that fails as real endpoints do."""

import json
import multiprocessing
import re
import time
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from sams.judge.ask import DryRun, Judgments, ask_judge, check_missing
from sams.judge.calls import Call
from sams.judge.upstream import FEW_WITHOUT
from sams.runtime.errors import UserError
from sams.study.recipes import ScoreRecipe
from sams.study.settings import Judge, World
from tests.judge.endpoint import (
    KEY,
    CallOf,
    Endpoint,
    Faults,
    always,
    ask,
    call_of,
    endpoint,
    many_faults,
)

__all__ = ["call_of", "endpoint"]


def once(fault: str) -> Faults:
    return lambda request, time: fault if time == 1 else "ok"


def calls(call_of: CallOf, count: int) -> list[Call]:
    return [call_of(number) for number in range(count)]


def values(judgments: Judgments) -> list[float]:
    return [judgment.value for judgment in judgments.each]


def test_limits_of_an_endpoint_are_none_of_the_local_judge(call_of: CallOf) -> None:
    limited = Judge.model_validate(
        {"prices": {"input": 1e6, "output": 1e6}, "max_cost": 0.01, "requests_per_minute": 1}
    )
    recipes = [ScoreRecipe(judge=judge, world=World()) for judge in (limited, Judge())]
    calls = [call_of(0), call_of(1)]
    first, second = (values(ask_judge(recipe, calls)) for recipe in recipes)
    assert first == second
    with pytest.raises(DryRun):
        ask_judge(recipes[0], calls, dry_run=True)


# --- the store ------------------------------------------------------------------------------------


def test_an_answer_is_paid_once_whatever_comes(endpoint: Endpoint, call_of: CallOf, tmp_path: Path) -> None:
    path = tmp_path / "folder" / "calls.jsonl"
    first = ask(endpoint, [call_of(0), call_of(0), call_of(1)], path)
    assert values(first)[0] == values(first)[1] and endpoint.billed == 2
    assert endpoint.requests[0][1] == call_of(0).request(Judge(), "judge")
    # A parameter makes another request, and so does a repeat.
    ask(endpoint, [call_of(0)], path, parameters={"temperature": 0.5})
    assert endpoint.requests[2][1]["temperature"] == 0.5
    ask(endpoint, [call_of(0)], path, repeats=2)
    assert endpoint.billed == 4
    lines = path.read_bytes().splitlines()
    assert len(lines) == 4 and set(json.loads(lines[0])) == {"key", "answer", "sha256"}

    # A kill in the middle of a line: that call is made again, and the file is complete again.
    path.write_bytes(b"\n".join(lines)[:-5])
    again = ask(endpoint, [call_of(0)], path, repeats=2)
    assert again.facts is not None
    assert endpoint.billed == 5 and (again.facts["n_calls"], again.facts["n_cached"]) == (1, 1)
    assert [json.loads(line)["key"] for line in path.read_bytes().splitlines()] == [
        json.loads(line)["key"] for line in lines
    ]

    path.write_bytes(b"not an answer\n" + lines[0] + b"\n")
    with pytest.raises(UserError, match=r"calls.jsonl, line 1: expected an answer"):
        ask(endpoint, [call_of(0)], path)


def _score(endpoint: Endpoint, calls: list[dict[str, Any]], path: Path, count: Any, begin: Any) -> None:
    import openai  # noqa: F401  # which takes a second

    from sams.judge.calls import label_call

    made = [label_call(call["name"], call["messages"], ("m", "M"), log_probs=True) for call in calls]
    begin.wait(60)
    judgments = ask(endpoint, made, path, concurrency=4)
    count.put((judgments.facts or {})["n_calls"])


def test_two_scorings_share_a_store(endpoint: Endpoint, call_of: CallOf, tmp_path: Path) -> None:
    """Both need the same 24 answers at the same time: each is paid once, and none is lost."""
    endpoint.seconds, path = 0.1, tmp_path / "calls.jsonl"
    made = [{"name": call.name, "messages": call.messages} for call in calls(call_of, 24)]
    fork = multiprocessing.get_context("fork")
    count, begin = fork.Queue(), fork.Barrier(2)
    workers = [fork.Process(target=_score, args=(endpoint, made, path, count, begin)) for _ in range(2)]
    for worker in workers:
        worker.start()
    paid = [count.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert sum(paid) == endpoint.billed == 24
    assert len({json.loads(line)["key"] for line in path.read_bytes().splitlines()}) == 24


# --- limits and retries ---------------------------------------------------------------------------


def test_calls_at_once_are_bounded(endpoint: Endpoint, call_of: CallOf) -> None:
    endpoint.seconds = 0.02
    ask(endpoint, calls(call_of, 24), concurrency=3)
    assert endpoint.billed == 24 and endpoint.peak == 3


def test_calls_in_a_minute_are_bounded(endpoint: Endpoint, call_of: CallOf) -> None:
    ask(endpoint, calls(call_of, 6), requests_per_minute=600)
    assert max(endpoint.starts) - min(endpoint.starts) >= 0.45  # six calls, a tenth of a second apart


@pytest.mark.parametrize("fault", ["429", "408", "500", "503", "broken", "no_log_probs", "hangs_up"])
def test_what_may_pass_is_tried_again(endpoint: Endpoint, call_of: CallOf, fault: str) -> None:
    endpoint.faults = once(fault)
    judgments = ask(endpoint, [call_of(0)])
    assert endpoint.billed == 2 and judgments.facts is not None
    assert judgments.facts["n_retried"] == 1 and judgments.each[0].readings[0].label_mass == pytest.approx(1)


def test_a_late_answer_counts_as_none(endpoint: Endpoint, call_of: CallOf) -> None:
    endpoint.seconds = 0.5
    judgments = ask(endpoint, [call_of(0)], timeout_seconds=0.1, tries=2)
    assert judgments.each[0].missing == "time-out"


@pytest.mark.parametrize("header", ["1", "date"])
def test_the_requested_pause_is_kept(endpoint: Endpoint, call_of: CallOf, header: str) -> None:
    endpoint.faults = once("429")
    date = int(time.time() + 2)
    endpoint.headers = {"Retry-After": "1" if header == "1" else formatdate(date, usegmt=True)}
    ask(endpoint, [call_of(0)])
    first, second = endpoint.starts
    if header == "1":
        assert second - first > 0.95
    else:
        assert second + time.time() - time.monotonic() > date - 0.05


def test_many_faults_cost_the_failed_tries_and_no_more(endpoint: Endpoint, call_of: CallOf) -> None:
    endpoint.faults = many_faults
    facts = ask(endpoint, calls(call_of, 100), tries=30).facts
    assert facts is not None
    failed = endpoint.billed - endpoint.outcomes["ok"]
    assert endpoint.outcomes["ok"] == endpoint.distinct == facts["n_calls"] == 100
    assert facts["n_retried"] == failed and 0.3 < failed / endpoint.billed < 0.6


# --- failures -------------------------------------------------------------------------------------


def test_a_call_that_fails_every_time_is_reported_in_one_line(endpoint: Endpoint, call_of: CallOf) -> None:
    endpoint.faults = lambda request, time: "500" if len(endpoint.requests) >= 2 else "ok"
    judgments = ask(endpoint, calls(call_of, 3), tries=3, concurrency=1)
    assert endpoint.billed == 2 + 3
    check_missing(judgments.each, 1, "here")
    with pytest.raises(UserError, match=r"1 of 3 judgments are missing \(pair 2: HTTP 500\); run it again"):
        check_missing(judgments.each, 0, "here")


def test_a_judge_that_is_down_ends_it(endpoint: Endpoint, call_of: CallOf) -> None:
    endpoint.faults = always("hangs_up")
    with pytest.raises(UserError, match="the judge is down: 3 calls in a row failed after 2 tries each"):
        ask(endpoint, calls(call_of, 9), tries=2, concurrency=1)
    assert endpoint.billed < 18


@pytest.mark.parametrize(
    ("status", "message", "expected"),
    [
        ("401", f"Incorrect API key provided: {KEY}", "the judge refuses the key; check OPENAI_API_KEY"),
        ("402", "Insufficient balance", "the judge has no quota left for this key"),
        ("404", "The model `judge` does not exist", "HTTP 404: The model `judge` does not exist; check"),
        ("302", "elsewhere", "HTTP 302"),
        # These may be the fault of the prompt: others are tried.
        ("403", f"{KEY} may not", "HTTP 403; check .* and what OPENAI_API_KEY may be used for"),
        ("400", f"bad: {KEY[:10]}***", "HTTP 400; check"),
    ],
)
def test_what_cannot_pass_ends_it_without_the_key(
    endpoint: Endpoint, call_of: CallOf, status: str, message: str, expected: str
) -> None:
    endpoint.faults, endpoint.message = always(status), message
    endpoint.headers = {"Location": "/elsewhere"}
    with pytest.raises(UserError) as stopped:
        ask(endpoint, calls(call_of, 9), concurrency=1)
    assert re.search(expected, str(stopped.value))
    assert endpoint.billed == (1 if status not in ("400", "403") else FEW_WITHOUT + 1)
    assert not any(KEY[at : at + 6] in str(stopped.value) for at in range(len(KEY) - 5))


@pytest.mark.parametrize(("code", "pause"), [("insufficient_quota", "1"), ("", "3600")])
def test_an_exhausted_quota_is_not_waited_for(
    endpoint: Endpoint, call_of: CallOf, code: str, pause: str
) -> None:
    endpoint.faults, endpoint.code = always("429"), code
    endpoint.headers = {"Retry-After": pause}
    with pytest.raises(UserError, match=f"no quota left for this key, for {pause} s"):
        ask(endpoint, [call_of(0)])


@pytest.mark.parametrize(
    ("outcome", "billed", "code"),
    [
        ("refusal", 3, ""),
        ("empty", 3, ""),
        ("400", 1, "content_filter"),
        ("400", 1, "exceed_context_size_error"),
    ],
)
def test_a_refusal_is_no_judgment_and_is_not_stored(
    endpoint: Endpoint, call_of: CallOf, tmp_path: Path, outcome: str, billed: int, code: str
) -> None:
    endpoint.faults, endpoint.code, endpoint.message = always(outcome), code, "filtered"
    judgments = ask(endpoint, [call_of(0)], tmp_path / "calls")
    assert judgments.each[0].missing and endpoint.billed == billed
    assert not (tmp_path / "calls").read_bytes()
    endpoint.faults = always("ok")
    assert not ask(endpoint, [call_of(0)], tmp_path / "calls").each[0].missing
    assert endpoint.billed == billed + 1


def test_a_full_disk_ends_it(endpoint: Endpoint, call_of: CallOf) -> None:
    with pytest.raises(UserError, match="/dev/full: cannot store the judge's answers: No space left"):
        ask(endpoint, calls(call_of, 3), Path("/dev/full"), concurrency=1)
    assert endpoint.billed == 1


# --- key and address ------------------------------------------------------------------------------


def test_key_and_address_are_checked_before_the_first_call(endpoint: Endpoint, call_of: CallOf) -> None:
    with pytest.raises(UserError, match="refuses the key; check OPENAI_API_KEY") as error:
        ask(endpoint, [call_of(0)], key="sk-wrong")
    assert error.value.__suppress_context__ and KEY not in str(error.value)
    with pytest.raises(UserError, match=r":9/v1: the judge cannot be reached"):
        ask(endpoint, [call_of(0)], base_url="http://127.0.0.1:9/v1")
    with pytest.raises(UserError, match="OPENAI_API_KEY is not set"):
        ask(endpoint, [call_of(0)], key=None, base_url="https://127.0.0.1:9/v1")
    assert endpoint.billed == 0


def test_a_key_in_an_answer_is_not_kept(endpoint: Endpoint, call_of: CallOf, tmp_path: Path) -> None:
    endpoint.faults = always("quotes_key")
    assert ask(endpoint, [call_of(0)], tmp_path / "calls").each[0].text == "m [key]"
    assert KEY.encode() not in (tmp_path / "calls").read_bytes()


def test_an_azure_address(endpoint: Endpoint, call_of: CallOf) -> None:
    ask(endpoint, [call_of(0)], base_url=f"{endpoint.base_url}?api-version=2024-10-21")
    assert endpoint.queries == {"api-version=2024-10-21"}
    assert endpoint.keys == {KEY, f"Bearer {KEY}"}


@pytest.mark.parametrize(
    "url", ["api.openai.com/v1", "https://user:secret@host/v1", "https://host/v1?api-key=secret"]
)
def test_an_address_holds_no_secret(url: str) -> None:
    with pytest.raises(ValueError, match="OPENAI_API_KEY"):
        Judge(kind="openai", model="judge", base_url=url)


# --- slow endpoints -------------------------------------------------------------------------------


def test_fifty_slow_connections_are_served_together(endpoint: Endpoint, call_of: CallOf) -> None:
    # Ten pieces: half a second an answer, and nothing is ever silent for longer than this.
    endpoint.drips = 0.05
    facts = ask(endpoint, calls(call_of, 50), concurrency=50, timeout_seconds=60).facts
    assert facts is not None and facts["n_calls"] == 50
    assert endpoint.peak > 25


def test_an_endpoint_that_drips_is_given_up_in_bounded_time(endpoint: Endpoint, call_of: CallOf) -> None:
    endpoint.drips = 0.3  # three seconds an answer
    began = time.monotonic()
    with pytest.raises(UserError, match=r"the judge is down: .* the last with time-out"):
        ask(endpoint, calls(call_of, 50), concurrency=50, timeout_seconds=0.5, tries=1)
    assert time.monotonic() - began < 10


# --- cost -----------------------------------------------------------------------------------------

PRICES = {"input": 10.0, "output": 30.0}


def test_the_estimate_is_logged_first(
    endpoint: Endpoint, call_of: CallOf, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = calls(call_of, 10)
    ask(endpoint, made[:4], tmp_path / "calls")
    paid = endpoint.billed
    caplog.set_level("INFO")
    with pytest.raises(DryRun):
        ask(endpoint, made, tmp_path / "calls", key=None, dry_run=True, prices=PRICES)
    characters = sum(len(call.messages[0]["content"]) for call in made[4:])
    kept = [json.loads(line)["answer"]["usage"] for line in (tmp_path / "calls").read_text().splitlines()]
    dollars = (sum(u["prompt_tokens"] for u in kept) + characters // 4) * 1e-5 + (4 + 6) * 3e-5
    assert (
        f"10 calls, 4 of them in the store; 6 to make, with about {characters // 4} prompt tokens "
        f"(characters / 4) and 6 answer tokens; ${dollars:.2f} in all" in caplog.text
    )
    assert endpoint.billed == paid


def test_nothing_is_called_that_would_cost_too_much(endpoint: Endpoint, call_of: CallOf) -> None:
    with pytest.raises(
        UserError, match=r"'judge.max_cost': the judge would cost about \$0.0\d, more than 0.01"
    ):
        ask(endpoint, calls(call_of, 20), prices=PRICES, max_cost=0.01)
    assert endpoint.billed == 0


def test_the_running_cost_ends_it_and_counts_what_was_paid_before(
    endpoint: Endpoint, call_of: CallOf, tmp_path: Path
) -> None:
    """Each call costs more than the estimate of all, by characters."""
    prices, path, endpoint.more_tokens = {"input": 1000.0, "output": 0.0}, tmp_path / "calls", 10_000
    facts = ask(endpoint, [call_of(0)], path, prices=prices).facts
    assert facts is not None
    each = facts["cost"]
    assert each == pytest.approx((len(call_of(0).messages[0]["content"].split()) + 10_000) / 1000)
    # The first was paid before; with the second 2.0 of 2.5 are spent.
    with pytest.raises(UserError, match=r"'judge.max_cost': the judgments have cost .*; raise it"):
        ask(endpoint, calls(call_of, 4), path, prices=prices, max_cost=2.5 * each, concurrency=1)
    assert endpoint.billed == 3


def test_an_answer_that_cannot_be_used_is_paid_too(
    endpoint: Endpoint, call_of: CallOf, tmp_path: Path
) -> None:
    endpoint.faults = once("no_log_probs")
    judgments = ask(endpoint, [call_of(0)], tmp_path / "calls", prices=PRICES)
    facts = judgments.facts
    assert facts is not None
    stored = json.loads((tmp_path / "calls").read_text())["answer"]["usage"]
    assert facts["prompt_tokens"] == 2 * stored["prompt_tokens"]
    assert judgments.judge == "judge-2024-01-01"
    assert facts["models"] == ["judge-2024-01-01"] and facts["system_fingerprints"] == ["fp_1"]


def test_a_limit_without_prices_is_refused() -> None:
    with pytest.raises(ValueError, match="`max_cost` needs `prices`"):
        Judge(max_cost=5.0)
