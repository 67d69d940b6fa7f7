"""A judge endpoint that cannot be used: `preflight` reports it in one line, after a few small calls."""

from pathlib import Path
from typing import Any

import pytest

from sams.judge.upstream import ATTEMPTS
from sams.launch import preflight
from sams.runtime.errors import UserError
from sams.study.study import Study
from tests.bad_input.refused import Case, Refused, cases, refused
from tests.judge.endpoint import KEY, Endpoint, always, serving
from tests.study.test_config import tiny_study

__all__ = ["refused"]

# How the endpoint answers, what differs in the settings, the key.
JUDGES: list[Any] = [
    (
        "no key",
        ("ok", {"base_url": "https://127.0.0.1:9/v1"}, None),
        "https://127.0.0.1:9/v1: the judge needs a key, and .* OPENAI_API_KEY is not set; export",
    ),
    (
        "a key with its line end",
        ("ok", {}, f"{KEY}\n"),
        "OPENAI_API_KEY: the key contains white space.*; export it again",
    ),
    (
        "a key in quotes of another kind",
        ("ok", {}, f"\u201c{KEY}\u201d"),
        "OPENAI_API_KEY: the key contains .*; export",
    ),
    ("a wrong key", ("ok", {}, "sk-another"), "URL: the judge refuses the key; check OPENAI_API_KEY"),
    ("a key that is withdrawn", ("401", {}, KEY), "URL: the judge refuses the key; check OPENAI_API_KEY"),
    (
        "nobody at the address",
        ("ok", {"base_url": "http://127.0.0.1:9/v1"}, KEY),
        "127.0.0.1:9/v1: the judge cannot be reached (.*Connect.*); check",
    ),
    (
        "another address",
        ("404", {}, KEY),
        "URL: the judge refuses a call with HTTP 404; check 'judge.base_url', 'judge.model' and 'judge.parameters'",
    ),
    (
        "no log-probs",
        ("no_log_probs", {}, KEY),
        "URL: judge judge gives no log-probs, from which AlpacaEval reads preferences; set 'judge.log_probs'",
    ),
    (
        "no text",
        ("empty", {"log_probs": False}, KEY),
        "URL: judge judge gives no judgment of a pair .no text.; check",
    ),
    (
        "an endpoint that is down",
        ("500", {}, KEY),
        "URL: judge judge gives no judgment of a pair .HTTP 500.; check",
    ),
    (
        "answers that are no JSON",
        ("broken", {}, KEY),
        "URL: judge judge gives no judgment of a pair .broken JSON.; check",
    ),
    (
        "a call that is refused",
        ("400", {}, KEY),
        "URL: the judge refuses a call with HTTP 400; check 'judge.base_url', 'judge.model' and 'judge.parameters'",
    ),
    (
        "a key that may not judge",
        ("403", {}, KEY),
        "URL: the judge refuses a call with HTTP 403; check .*, and what OPENAI_API_KEY may be used for",
    ),
    (
        "thoughts first",
        ("thinks", {}, KEY),
        "URL: judge judge gives the labels m and M a probability of 0.00017 together.*; set 'judge.parameters'",
    ),
    (
        "other tokens",
        ("spaced", {}, KEY),
        "URL: judge judge gives no judgment of a pair .no label among the log-probs of ' m', ' M'.; check",
    ),
    (
        "log-probs that are none",
        ("nan_log_prob", {}, KEY),
        "URL: judge judge gives no judgment of a pair .a log-prob that is not one.; check",
    ),
    (
        "one label whatever comes",
        ("always_m", {}, KEY),
        "URL: judge judge does not prefer .*Paris.* to .*Berlin.* in both orders; set 'judge.model'",
    ),
    (
        "a rating out of range",
        ("text:Rating: [[85]]", {}, KEY),
        "URL: judge judge gives no judgment of a rating .no rating from 1 to 10: .*85.*; check",
    ),
    ("a web page", ("page", {}, KEY), "URL: a web page answers here, no judge; check 'judge.base_url'"),
    (
        "an error with status 200",
        ("error_400", {}, KEY),
        "URL: the judge refuses a call with HTTP 400: unknown field logprobs; check",
    ),
]


@cases(*JUDGES)
def test_the_judge_is_asked_before_anything_is_trained(
    case: Case, refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome, settings, key = case.made
    if key is not None:
        monkeypatch.setenv("OPENAI_API_KEY", key)
    with serving(Endpoint(always(outcome))) as endpoint:
        judge = {"kind": "openai", "base_url": endpoint.base_url, "model": "judge", "retry_seconds": 0.001}
        study = tiny_study(benchmarks__judge=judge | settings)
        said = refused(
            preflight.main,
            study=study.model_dump_json(),
            out=tmp_path / "f",
            results=tmp_path / "r",
            says=case.says.replace("URL", endpoint.base_url),
        )
        assert endpoint.billed <= 2 + ATTEMPTS, "no more than a few small calls"
    assert KEY[3:] not in said


CALLS = {"alpaca_eval": 2, "mt_bench": 1, "own_prompts": 2}


@pytest.mark.parametrize("benchmark", CALLS)
def test_a_judge_that_answers_passes(
    benchmark: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    with serving(Endpoint()) as endpoint:
        preflight.check_judge(study_with(benchmark, endpoint, monkeypatch))
        assert endpoint.billed == CALLS[benchmark]
    said = {
        "alpaca_eval": "right in both orders, label mass 1.000",
        "mt_bench": "rating 10 for a right answer",
        "own_prompts": "right in both orders",
    }
    assert f"judge judge: {said[benchmark]}" in caplog.text


def study_with(benchmark: str, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> Study:
    """Return a study of one benchmark, judged by an endpoint."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    judge = {"kind": "openai", "base_url": endpoint.base_url, "model": "judge"}
    others = {f"benchmarks__{name}": None for name in CALLS}
    return tiny_study(benchmarks__judge=judge, **others | {f"benchmarks__{benchmark}": {}})


def test_a_judge_that_takes_the_wrong_answer_for_the_better_one_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with serving(Endpoint(always("text:[[B]]"))) as endpoint:
        study = study_with("own_prompts", endpoint, monkeypatch)
        with pytest.raises(UserError, match=r"does not prefer 'The capital of France is Paris\.'"):
            preflight.check_judge(study)
