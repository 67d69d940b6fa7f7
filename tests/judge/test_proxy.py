"""The caching proxy with an endpoint on loopback that fails as real endpoints do."""

import json
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from sams.judge.proxy import MAX_REQUEST_BYTES
from sams.judge.upstream import CallFailed
from sams.runtime.errors import UserError
from sams.study.settings import Judge
from tests.judge.endpoint import (
    KEY,
    Ask,
    Endpoint,
    Faults,
    always,
    endpoint,
    many_faults,
    plan,
    proxied,
    request_of,
)

__all__ = ["endpoint", "request_of"]


def once(fault: str) -> Faults:
    return lambda request, time: fault if time == 1 else "ok"


# --- the store ------------------------------------------------------------------------------------


def test_an_answer_is_paid_once_whatever_comes(endpoint: Endpoint, request_of: Ask, tmp_path: Path) -> None:
    path = tmp_path / "folder" / "calls.jsonl"
    with proxied(endpoint, path) as (_, proxy):
        proxy.admit()
        first = proxy.answer(request_of(0), 1)
        # Neither the order of keys nor another connection makes it another request; a parameter does.
        assert proxy.answer(dict(reversed(request_of(0).items())), 1) == first
        proxy.answer(request_of(0) | {"temperature": 0.5}, 1)
        proxy.answer(request_of(0), 2)
    assert endpoint.billed == 3
    assert endpoint.requests[0][1] == request_of(0)
    lines = path.read_bytes().splitlines()
    assert json.loads(lines[0])["answer"] == first

    # A kill in the middle of a line: that call is made again, and the file is whole again.
    path.write_bytes(b"\n".join(lines)[:-5])
    with proxied(endpoint, path) as (_, proxy):
        proxy.admit()
        assert proxy.answer(request_of(0), 1) == first
        proxy.answer(request_of(0), 2)
        facts = proxy.facts()
    assert endpoint.billed == 4 and (facts["n_calls"], facts["n_cached"]) == (1, 1)
    assert [json.loads(line)["key"] for line in path.read_bytes().splitlines()] == [
        json.loads(line)["key"] for line in lines
    ]

    path.write_bytes(b"not an answer\n" + lines[0] + b"\n")
    with pytest.raises(UserError, match=r"calls.jsonl, line 1: expected an answer"), proxied(endpoint, path):
        pass


def test_equal_requests_in_flight_are_made_once(endpoint: Endpoint, request_of: Ask) -> None:
    endpoint.seconds = 0.2
    with proxied(endpoint) as (_, proxy), ThreadPoolExecutor(8) as pool:
        proxy.admit()
        answers = list(pool.map(lambda _: proxy.answer(request_of(0), 1), range(8)))
    assert endpoint.billed == 1 and all(answer == answers[0] for answer in answers)


def test_an_answer_on_its_way_is_kept_when_scoring_ends(
    endpoint: Endpoint, request_of: Ask, tmp_path: Path
) -> None:
    endpoint.seconds = 0.3
    with proxied(endpoint, tmp_path / "calls") as (_, proxy):
        proxy.admit()
        threading.Thread(target=proxy.answer, args=(request_of(0), 1), daemon=True).start()
        while not endpoint.billed:
            time.sleep(0.01)
    assert len((tmp_path / "calls").read_bytes().splitlines()) == 1


# --- limits and retries ---------------------------------------------------------------------------


def test_calls_at_once_are_bounded(endpoint: Endpoint, request_of: Ask) -> None:
    endpoint.seconds = 0.02
    with proxied(endpoint, concurrency=3) as (_, proxy), ThreadPoolExecutor(12) as pool:
        proxy.admit()
        list(pool.map(lambda number: proxy.answer(request_of(number), 1), range(24)))
    assert endpoint.billed == 24 and endpoint.peak == 3


def test_calls_in_a_minute_are_bounded(endpoint: Endpoint, request_of: Ask) -> None:
    with proxied(endpoint, requests_per_minute=600) as (_, proxy), ThreadPoolExecutor(8) as pool:
        proxy.admit()
        began = time.monotonic()
        list(pool.map(lambda number: proxy.answer(request_of(number), 1), range(6)))
    assert max(endpoint.starts) - began >= 0.5  # six calls, a tenth of a second apart


@pytest.mark.parametrize("fault", ["429", "408", "500", "503", "broken", "no_log_probs", "hangs_up"])
def test_what_may_pass_is_tried_again(endpoint: Endpoint, request_of: Ask, fault: str) -> None:
    endpoint.faults = once(fault)
    with proxied(endpoint) as (_, proxy):
        proxy.admit()
        choice = proxy.answer(request_of(0), 1)["choices"][0]
        proxy.check_complete()
        assert proxy.facts()["n_retried"] == 1
    assert endpoint.billed == 2 and choice["logprobs"]["content"][0]["top_logprobs"]


def test_a_late_answer_counts_as_none(endpoint: Endpoint, request_of: Ask) -> None:
    endpoint.seconds = 0.5
    with proxied(endpoint, timeout_seconds=0.1, tries=2) as (_, proxy):
        proxy.admit()
        with pytest.raises(CallFailed, match="time-out"):
            proxy.answer(request_of(0), 1)


@pytest.mark.parametrize("header", ["1", "date"])
def test_the_pause_that_is_asked_for_is_kept(endpoint: Endpoint, request_of: Ask, header: str) -> None:
    endpoint.faults = once("429")
    date = int(time.time() + 2)
    endpoint.headers = {"Retry-After": "1" if header == "1" else formatdate(date, usegmt=True)}
    with proxied(endpoint) as (_, proxy):
        proxy.admit()
        proxy.answer(request_of(0), 1)
    first, second = endpoint.starts
    if header == "1":
        assert second - first > 0.95
    else:
        assert second + time.time() - time.monotonic() > date - 0.05


def test_many_faults_cost_the_failed_tries_and_no_more(endpoint: Endpoint, request_of: Ask) -> None:
    endpoint.faults = many_faults
    with proxied(endpoint, tries=30) as (_, proxy), ThreadPoolExecutor(8) as pool:
        proxy.admit()
        list(pool.map(lambda number: proxy.answer(request_of(number), 1), range(100)))
        facts = proxy.facts()
    failed = endpoint.billed - endpoint.outcomes["ok"]
    assert endpoint.outcomes["ok"] == endpoint.distinct == facts["n_calls"] == 100
    assert facts["n_retried"] == failed and 0.3 < failed / endpoint.billed < 0.6


# --- failures -------------------------------------------------------------------------------------


def test_a_call_that_fails_every_time_is_told_in_one_line(endpoint: Endpoint, request_of: Ask) -> None:
    endpoint.faults = lambda request, time: "500" if len(endpoint.requests) >= 2 else "ok"
    with proxied(endpoint, tries=3) as (_, proxy):
        proxy.admit()
        for number in range(2):
            proxy.answer(request_of(number), 1)
        with pytest.raises(CallFailed):
            proxy.answer(request_of(2), 1)
        proxy.check()  # others may go on
        with pytest.raises(
            UserError, match=r"1 of 3 calls of the judge failed after 3 tries each \(1 x HTTP 500\)"
        ):
            proxy.check_complete()
        with pytest.raises(CallFailed):
            proxy.answer(request_of(2), 1)
    assert endpoint.billed == 2 + 3  # what has failed is not paid again in the same run


def test_a_judge_that_is_down_ends_it(endpoint: Endpoint, request_of: Ask) -> None:
    endpoint.faults = always("hangs_up")
    with proxied(endpoint, tries=2) as (_, proxy):
        proxy.admit()
        for number in range(5):
            with pytest.raises(CallFailed):
                proxy.answer(request_of(number), 1)
        with pytest.raises(UserError, match="the judge is down: 3 calls in a row failed after 2 tries each"):
            proxy.check()
    assert endpoint.billed == 6


@pytest.mark.parametrize(
    ("status", "message", "told"),
    [
        ("401", f"Incorrect API key provided: {KEY}", "the judge refuses the key; check OPENAI_API_KEY"),
        ("403", f"{KEY} may not", "the judge refuses the key"),
        ("404", "The model `judge` does not exist", "HTTP 404: The model `judge` does not exist; check"),
        ("400", f"bad: {KEY[:10]}***", "HTTP 400; check"),
        ("302", "elsewhere", "HTTP 302"),
    ],
)
def test_what_cannot_pass_ends_it_at_once_without_the_key(
    endpoint: Endpoint, request_of: Ask, status: str, message: str, told: str
) -> None:
    endpoint.faults, endpoint.message = always(status), message
    endpoint.headers = {"Location": "/elsewhere"}
    with proxied(endpoint) as (_, proxy):
        proxy.admit()
        for number in range(3):
            with pytest.raises(CallFailed):
                proxy.answer(request_of(number), 1)
        with pytest.raises(UserError) as stopped:
            proxy.check()
    assert told in str(stopped.value) and endpoint.billed == 1
    assert not any(KEY[at : at + 6] in str(stopped.value) for at in range(len(KEY) - 5))


@pytest.mark.parametrize(("code", "pause"), [("insufficient_quota", "1"), ("", "3600")])
def test_an_exhausted_quota_is_not_waited_for(
    endpoint: Endpoint, request_of: Ask, code: str, pause: str
) -> None:
    endpoint.faults, endpoint.code = always("429"), code
    endpoint.headers = {"Retry-After": pause}
    with proxied(endpoint) as (_, proxy):
        proxy.admit()
        with pytest.raises(CallFailed):
            proxy.answer(request_of(0), 1)
        with pytest.raises(UserError, match=f"no quota left for this key, for {pause} s"):
            proxy.check()


@pytest.mark.parametrize("outcome", ["refusal", "empty", "400"])
def test_a_refusal_is_an_answer(endpoint: Endpoint, request_of: Ask, tmp_path: Path, outcome: str) -> None:
    endpoint.faults, endpoint.code = always(outcome), "content_filter"
    for _ in range(2):
        with proxied(endpoint, tmp_path / "calls") as (_, proxy):
            proxy.admit()
            assert not proxy.answer(request_of(0), 1)["choices"][0]["message"]["content"]
            proxy.check_complete()
            assert proxy.facts()["n_refused"] == 1
    assert endpoint.billed == 1


def test_a_full_disk_ends_it(endpoint: Endpoint, request_of: Ask) -> None:
    with proxied(endpoint, Path("/dev/full")) as (_, proxy):
        proxy.admit()
        with pytest.raises(CallFailed):
            proxy.answer(request_of(0), 1)
        with pytest.raises(UserError, match="/dev/full: cannot store the judge's answers: No space left"):
            proxy.check()


# --- key and address ------------------------------------------------------------------------------


def test_key_and_address_are_looked_at_before_the_first_call(endpoint: Endpoint, request_of: Ask) -> None:
    for key, told in (
        (None, "OPENAI_API_KEY is not set"),
        ("sk-wrong", "refuses the key; check OPENAI_API_KEY"),
    ):
        with proxied(endpoint, key=key) as (_, proxy):
            plan(proxy, [request_of(0)])
            with pytest.raises(UserError, match=told) as error:
                proxy.admit()
        assert error.value.__suppress_context__ or key is None
        assert KEY not in str(error.value)
    with proxied(endpoint, base_url="http://127.0.0.1:9/v1") as (_, proxy):
        plan(proxy, [request_of(0)])
        with pytest.raises(UserError, match=r":9/v1: the judge cannot be reached"):
            proxy.admit()
    assert endpoint.billed == 0


def test_a_key_in_an_answer_is_not_kept(endpoint: Endpoint, request_of: Ask, tmp_path: Path) -> None:
    endpoint.faults = always("quotes_key")
    with proxied(endpoint, tmp_path / "calls") as (_, proxy):
        proxy.admit()
        assert proxy.answer(request_of(0), 1)["choices"][0]["message"]["content"] == "m [key]"
    assert KEY.encode() not in (tmp_path / "calls").read_bytes()


def test_an_azure_address(endpoint: Endpoint, request_of: Ask) -> None:
    with proxied(endpoint, base_url=f"{endpoint.base_url}?api-version=2024-10-21") as (_, proxy):
        proxy.admit()
        proxy.answer(request_of(0), 1)
    assert endpoint.queries == {"api-version=2024-10-21"}
    assert endpoint.keys == {KEY, f"Bearer {KEY}"}


@pytest.mark.parametrize(
    "url", ["api.openai.com/v1", "https://user:secret@host/v1", "https://host/v1?api-key=secret"]
)
def test_an_address_holds_no_secret(url: str) -> None:
    with pytest.raises(ValueError, match="OPENAI_API_KEY"):
        Judge(kind="openai", base_url=url)


# --- over HTTP ------------------------------------------------------------------------------------


def post(url: str, body: bytes, token: str, **headers: str) -> tuple[int, Any]:
    headers = {"Authorization": f"Bearer {token}"} | headers
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=10) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_it_serves_its_own_scoring_and_nothing_else(endpoint: Endpoint, request_of: Ask) -> None:
    body = json.dumps(request_of(0)).encode()
    with proxied(endpoint) as (base_url, proxy):
        proxy.admit()
        url = f"{base_url}/chat/completions"
        assert base_url.startswith("http://127.0.0.1:")
        assert post(url, body, KEY)[0] == post(url, body, "")[0] == 401
        assert post(f"{base_url}/embeddings", body, proxy.token)[0] == 404
        for bad in (b"no", b"[]", b"{}", b'{"model": "m", "messages": [1]}', b'{"model": 1, "messages": []}'):
            assert post(url, bad, proxy.token)[0] == 400
        assert endpoint.billed == 0
        assert post(url, body, proxy.token)[0] == 200 and endpoint.keys == {f"Bearer {KEY}", None}
        endpoint.faults = always("401")
        status, answer = post(url, json.dumps(request_of(1)).encode(), proxy.token)
    # The words by which AlpacaEval knows that calling again is of no use.
    assert status == 424 and "Please try again with a different prompt." in answer["error"]["message"]
    assert KEY not in json.dumps(answer)


def test_a_request_is_bounded(endpoint: Endpoint) -> None:
    with proxied(endpoint) as (base_url, proxy):
        url = f"{base_url}/chat/completions"
        assert post(url, b"{}", proxy.token, **{"Content-Length": str(MAX_REQUEST_BYTES + 1)})[0] == 413


def test_fifty_slow_connections_are_served_together(endpoint: Endpoint, request_of: Ask) -> None:
    endpoint.drips = (
        0.05  # ten pieces: half a second an answer, and nothing is ever silent for longer than this
    )
    requests = [request_of(number) for number in range(50)]
    with proxied(endpoint, concurrency=50, timeout_seconds=60) as (_, proxy), ThreadPoolExecutor(50) as pool:
        plan(proxy, requests)
        proxy.admit()
        answers = list(pool.map(lambda request: proxy.answer(request, 1), requests))
        proxy.check_complete()
        assert proxy.facts()["n_calls"] == 50 == len(answers)
    assert endpoint.peak > 25


def test_an_endpoint_that_drips_is_given_up_in_bounded_time(endpoint: Endpoint, request_of: Ask) -> None:
    endpoint.drips = 0.3  # three seconds an answer
    requests = [request_of(number) for number in range(50)]

    def ask(request: dict[str, Any]) -> str:
        try:
            proxy.answer(request, 1)
        except CallFailed as error:
            return str(error)
        return "answered"

    with (
        proxied(endpoint, concurrency=50, timeout_seconds=0.5, tries=1) as (_, proxy),
        ThreadPoolExecutor(50) as pool,
    ):
        proxy.admit()
        said = set(pool.map(ask, requests))
    assert "answered" not in said and any("time-out" in each for each in said)
