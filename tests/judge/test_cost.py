"""Estimated and actual cost of a judge's calls."""

import json
import logging
from pathlib import Path

import pytest

from sams.judge.proxy import DryRun
from sams.judge.upstream import CallFailed
from sams.runtime.errors import UserError
from sams.study.settings import Judge
from tests.judge.endpoint import Ask, Endpoint, endpoint, plan, proxied, request_of

__all__ = ["endpoint", "request_of"]

PRICES = {"input": 10.0, "output": 30.0}


def test_what_it_will_take_is_said_first(
    endpoint: Endpoint, request_of: Ask, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    requests = [request_of(number) for number in range(10)]
    with proxied(endpoint, tmp_path / "calls") as (_, proxy):
        proxy.admit()
        for request in requests[:4]:
            proxy.answer(request, 1)
    paid = endpoint.billed
    with proxied(endpoint, tmp_path / "calls", key=None, dry_run=True, prices=PRICES) as (_, proxy):
        plan(proxy, requests)
        with pytest.raises(DryRun):
            proxy.admit()
    characters = sum(len(request["messages"][0]["content"]) for request in requests[4:])
    kept = [json.loads(line)["answer"]["usage"] for line in (tmp_path / "calls").read_text().splitlines()]
    dollars = (sum(u["prompt_tokens"] for u in kept) + characters // 4) * 1e-5 + (4 + 6) * 3e-5
    assert (
        f"10 calls, 4 of them in the store; 6 to make, with about {characters // 4} prompt tokens "
        f"(characters / 4) and 6 answer tokens; ${dollars:.2f} in all" in caplog.text
    )
    assert endpoint.billed == paid


def test_nothing_is_called_that_would_cost_too_much(endpoint: Endpoint, request_of: Ask) -> None:
    with proxied(endpoint, prices=PRICES, max_cost=0.01) as (_, proxy):
        plan(proxy, [request_of(number) for number in range(20)])
        with pytest.raises(
            UserError, match=r"'judge.max_cost': the judge would cost about \$0.0\d, more than 0.01"
        ):
            proxy.admit()
    assert endpoint.billed == 0


def test_the_running_cost_ends_it_and_counts_what_was_paid_before(
    endpoint: Endpoint, request_of: Ask, tmp_path: Path
) -> None:
    """Each call costs 0.001 x its prompt tokens, as the endpoint counts them."""
    prices = {"input": 1000.0, "output": 0.0}
    with proxied(endpoint, tmp_path / "calls", prices=prices) as (_, proxy):
        proxy.admit()
        proxy.answer(request_of(0), 1)
        each = proxy.facts()["cost"]
    assert each == pytest.approx(len(request_of(0)["messages"][0]["content"].split()) / 1000)
    with proxied(endpoint, tmp_path / "calls", prices=prices, max_cost=2.5 * each) as (_, proxy):
        proxy.admit()
        for number in range(3):  # the first was paid before; with the second 2.0 of 2.5 are spent
            proxy.answer(request_of(number), 1)
        with pytest.raises(CallFailed):
            proxy.answer(request_of(3), 1)
        with pytest.raises(UserError, match=r"'judge.max_cost': the judgments have cost .*; raise it"):
            proxy.check()
    assert endpoint.billed == 3


def test_an_answer_that_cannot_be_used_is_paid_too(endpoint: Endpoint, request_of: Ask) -> None:
    endpoint.faults = lambda request, time: "no_log_probs" if time == 1 else "ok"
    with proxied(endpoint, prices=PRICES) as (_, proxy):
        proxy.admit()
        usage = proxy.answer(request_of(0), 1)["usage"]
        facts = proxy.facts()
    assert facts["prompt_tokens"] == 2 * usage["prompt_tokens"]
    assert facts["models"] == ["judge-2024-01-01"] and facts["system_fingerprints"] == ["fp_1"]


def test_a_limit_without_prices_is_refused() -> None:
    with pytest.raises(ValueError, match="`max_cost` needs `prices`"):
        Judge(max_cost=5.0)
