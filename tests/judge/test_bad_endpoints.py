"""Endpoints that misbehave: each fault has a known end, without a traceback, a hang or a false score."""

import asyncio
import json
import multiprocessing
import os
import re
import signal
import ssl
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from sams.judge import upstream
from sams.judge.ask import DEFAULT_MODEL
from sams.judge.calls import Call, is_snapshot, label_call
from sams.runtime.errors import UserError
from sams.runtime.processes import EXIT_INTERRUPTED, stop_on_signals
from tests.judge.endpoint import KEY, CallOf, Endpoint, always, ask, call_of, endpoint, serving

__all__ = ["call_of", "endpoint"]

CALLS = 8
ALL = f"{CALLS} judgments of judge-2024-01-01"
ONE = "no idea 3"  # occurs in one prompt
PRICES = {"input": 10.0, "output": 30.0}


def calls(call_of: CallOf, count: int = CALLS, **fields: Any) -> list[Call]:
    return [call_of(number) for number in range(count)]


def end_of(endpoint: Endpoint, made: list[Call], store: Path | None = None, **settings: Any) -> str:
    """Ask, and return how it ends: the error, or the numbers of judgments, the judge and the first reason."""
    try:
        judgments = ask(endpoint, made, store, **{"tries": 2, "timeout_seconds": 20, **settings})
    except UserError as error:
        return f"error: {error}"
    missing = [judgment.missing for judgment in judgments.each if judgment.missing]
    named = f"{len(made) - len(missing)} judgments of {judgments.judge}"
    return f"{named}; {len(missing)} missing: {missing[0]}" if missing else named


NOTHING = r"the judge gives no judgment in 3 answers each to 6 calls, with 0 judgments so far"
DOWN = r"the judge is down: 3 calls in a row failed after 2 tries each, the last with"
# All calls end in this way.
ENDS: list[tuple[str, str]] = [
    ("thinks", ALL),  # with a warning: test_a_small_label_mass
    ("spaced", rf"{NOTHING} \(no label among the log-probs of ' m', ' M'\); check 'judge.model'"),
    ("null_log_prob", rf"{NOTHING} \(a log-prob that is not one\)"),
    ("nan_log_prob", rf"{NOTHING} \(a log-prob that is not one\)"),
    ("positive_log_prob", rf"{NOTHING} \(a log-prob that is not one\)"),
    ("text_log_prob", rf"{NOTHING} \(a log-prob that is not one\)"),
    ("huge_log_prob", rf"{NOTHING} \(an answer of another form: OverflowError\)"),
    ("both_impossible", rf"{NOTHING} \(labels of probability 0\)"),
    ("no_log_probs", rf"{NOTHING} \(no log-probs\)"),
    ("filtered", rf"{NOTHING} \(stopped by the content filter\)"),
    ("another_model", f"{CALLS} judgments of gpt-3.5-turbo"),
    ("no_model", f"{CALLS} judgments of judge$"),
    ("markup_model", f"{CALLS} judgments of x_.._raw::_html_<script>$"),
    ("usage_text", ALL),
    ("usage_negative", ALL),
    ("no_usage", ALL),
    ("surrogate", ALL),
    ("parts", rf"{DOWN} broken JSON"),
    ("no_choices", rf"{DOWN} broken JSON"),
    ("null_choices", rf"{DOWN} broken JSON"),
    ("null_message", rf"{DOWN} broken JSON"),
    ("no_object", rf"{DOWN} broken JSON"),
    ("deep", rf"{DOWN} broken JSON"),
    ("long_number", rf"{DOWN} broken JSON"),
    ("bytes", rf"{DOWN} broken JSON"),
    ("nothing", rf"{DOWN} broken JSON"),
    ("no_content", rf"{DOWN} broken JSON"),
    ("half", rf"{DOWN} connection error"),
    ("bad_redirect", "refuses a call with HTTP 302|" + DOWN),
    ("deep_error", "refuses a call with HTTP 400"),
    ("page", r"a web page answers here, no judge; check 'judge.base_url'; it usually ends with /v1"),
    ("error_400", "refuses a call with HTTP 400: unknown field logprobs; check"),
    ("error_401", "the judge refuses the key; check OPENAI_API_KEY$"),
    ("error_502", rf"{DOWN} HTTP 502"),
    ("error_text", rf"{DOWN} HTTP 500"),
    ("error_object", "refuses a call with HTTP 400: too long"),
    ("bomb", rf"{DOWN} a compressed answer"),
    ("bomb_error", rf"{DOWN} a compressed answer"),
    ("no_gzip", rf"{DOWN} a compressed answer"),
    ("endless", rf"{DOWN} an answer of more than \d+ bytes"),
]


@pytest.mark.parametrize(("fault", "end"), ENDS, ids=[fault for fault, _ in ENDS])
def test_every_answer_is_bad(
    endpoint: Endpoint, call_of: CallOf, fault: str, end: str, tmp_path: Path
) -> None:
    endpoint.faults, store = always(fault), tmp_path / "calls"
    matches(end, end_of(endpoint, calls(call_of), store, concurrency=1))
    assert endpoint.billed <= 6 * upstream.ATTEMPTS
    stored = store.read_bytes() if store.exists() else b""
    assert stored.count(b"\n") == (CALLS if end.startswith(f"{CALLS} ") else 0)
    assert b"\xed\xa0" not in stored and b"\\ud800" not in stored
    # No answer is paid again, and one that has no judgment is not kept.
    endpoint.faults = always("another_model" if fault == "another_model" else fault if stored else "ok")
    before = endpoint.billed
    matches(end if stored else ALL, end_of(endpoint, calls(call_of), store))
    assert endpoint.billed == before + (0 if stored else CALLS)


def matches(pattern: str, text: str) -> None:
    assert re.search(pattern, text), text


# One prompt of eight ends in this way, the first one too; the others are judged.
ONES: list[tuple[str, str, str, str]] = [
    (
        "400",
        "",
        "This model's maximum context length is 8192 tokens",
        "HTTP 400: This model's maximum context",
    ),
    ("400", "content_filter", "The response was filtered", "HTTP 400: The response was filtered"),
    ("403", "", "Your input was flagged", "HTTP 403: Your input was flagged"),
    ("413", "", "too large", "HTTP 413: too large"),
    ("422", "", "too long", "HTTP 422: too long"),
    ("500", "", "", "HTTP 500"),
    ("filtered", "", "", "stopped by the content filter"),
    ("error_object", "", "", "HTTP 400: too long"),
    ("page", "", "", "a web page"),
    ("spaced", "", "", "no label among the log-probs of ' m', ' M'"),
    ("half", "", "", "connection error"),
]


@pytest.mark.parametrize(
    ("fault", "code", "message", "reason"), ONES, ids=[f"{row[0]}-{row[1]}" for row in ONES]
)
def test_one_prompt_has_a_fault(
    endpoint: Endpoint, call_of: CallOf, fault: str, code: str, message: str, reason: str, tmp_path: Path
) -> None:
    endpoint.faults, endpoint.code, endpoint.message = always(fault), code, message
    endpoint.only, endpoint.seconds = "no idea 0" if fault != "page" else ONE, 0.0
    end = f"{CALLS - 1} judgments of judge-2024-01-01; 1 missing: {reason}"
    assert end_of(endpoint, calls(call_of), tmp_path / "calls", concurrency=4).startswith(end)
    # Again: this call alone is requested, with the same end; other faults do not make it the endpoint's.
    before = endpoint.billed
    again = end_of(endpoint, calls(call_of), tmp_path / "calls", concurrency=4)
    if fault == "page":  # nothing has passed in this run
        assert "a web page answers here" in again
    else:
        assert again.startswith(end)
    assert endpoint.billed - before <= upstream.ATTEMPTS
    endpoint.faults = always("ok")
    assert end_of(endpoint, calls(call_of), tmp_path / "calls") == ALL


def test_many_prompts_are_refused_after_others_were_judged(
    endpoint: Endpoint, call_of: CallOf, tmp_path: Path
) -> None:
    """They do not end the scoring as long as there are as many judgments, stored ones among them."""
    made = calls(call_of, 40)
    endpoint.message = "too long"
    assert end_of(endpoint, made[:20], tmp_path / "calls").startswith("20 judgments")
    endpoint.faults = always("400")
    assert end_of(endpoint, made[:40], tmp_path / "calls").startswith(
        "20 judgments of judge-2024-01-01; 20 missing"
    )
    assert "refuses a call" in end_of(endpoint, made[19:], tmp_path / "calls")


def test_prompts_that_make_the_endpoint_fail_are_missing(
    endpoint: Endpoint, call_of: CallOf, tmp_path: Path
) -> None:
    """Four of them in a row, and alone when it is run again: another prompt is answered."""
    made = calls(call_of, 14)  # 1 and 10 to 13
    endpoint.faults, endpoint.only = always("500"), "no idea 1"
    end = "9 judgments of judge-2024-01-01; 5 missing: HTTP 500"
    for _ in range(2):
        assert end_of(endpoint, made, tmp_path / "calls", concurrency=1) == end
    endpoint.only = ""
    matches(DOWN, end_of(endpoint, made, tmp_path / "calls", concurrency=1))


def test_a_mixture_of_models_ends_at_its_first_answer(
    endpoint: Endpoint, call_of: CallOf, tmp_path: Path
) -> None:
    store = tmp_path / "calls"
    made = calls(call_of)
    endpoint.faults = lambda request, time: "another_model" if len(endpoint.requests) >= 3 else "ok"
    said = end_of(endpoint, made, store, concurrency=1)
    assert "2 models have answered: judge-2024-01-01 (3), gpt-3.5-turbo (1); their judgments" in said
    assert endpoint.billed == 4 and store.read_bytes().count(b"\n") == 4  # what was paid is kept
    assert "2 models have answered" in end_of(endpoint, made, store) and endpoint.billed == 4
    # An alias that moves on to another snapshot is a mixture too.
    store.write_bytes(
        b"".join(line for line in store.read_bytes().splitlines(True) if b"gpt-3.5" not in line)
    )
    endpoint.faults = always("snapshot")
    assert "judge-2024-01-01 (3), judge-2024-06-06 (1)" in end_of(endpoint, made, store, concurrency=1)


@pytest.mark.parametrize(
    ("model", "requested", "expected"),
    [
        ("gpt-4-0613", "gpt-4", True),
        ("gpt-4o-2024-08-06", "gpt-4o", True),
        (DEFAULT_MODEL, DEFAULT_MODEL, True),
        ("gpt-4o-mini", "gpt-4o", False),
        ("gpt-4o", "gpt-4", False),
        ("gpt-3.5-turbo", "gpt-4", False),
    ],
)
def test_names_of_snapshots(model: str, requested: str, expected: bool) -> None:
    assert is_snapshot(model, requested) == expected


def test_doubtful_judges_are_warned_of(
    endpoint: Endpoint, call_of: CallOf, caplog: pytest.LogCaptureFixture
) -> None:
    endpoint.faults = always("another_model")
    ask(endpoint, calls(call_of, 2))
    assert "warning: judge judge answers as gpt-3.5-turbo: the scores are labelled so" in caplog.text
    caplog.clear()
    endpoint.faults = always("thinks")
    facts = ask(endpoint, calls(call_of, 2)).facts
    assert facts is not None and facts["label_mass"] == pytest.approx(0.000169, abs=1e-6)
    assert "warning: the labels have a mean probability of 0.000" in caplog.text
    caplog.clear()
    endpoint.faults = always("ok")
    ask(endpoint, calls(call_of, 2))
    assert not caplog.text


# --- requests -------------------------------------------------------------------------------------


def text_calls(call_of: CallOf, count: int = CALLS) -> list[Call]:
    """Calls whose labels are read from the text."""
    return [
        label_call(call.name, call.messages, ("m", "M"), log_probs=False) for call in calls(call_of, count)
    ]


@pytest.mark.parametrize(
    ("fault", "end"),
    [
        ("ok", ALL),
        ("no_log_probs", ALL),
        ("reasoned", ALL),
        ("text:**M**.", ALL),
        ("reasoning_alone", rf"{NOTHING} \(no text\)"),
        ("filtered", rf"{NOTHING} \(stopped by the content filter\)"),
        ("text:Both are good", rf"{NOTHING} \(no label: 'Both are good'\)"),
    ],
)
def test_labels_in_words(endpoint: Endpoint, call_of: CallOf, fault: str, end: str) -> None:
    endpoint.faults = always(fault)
    made = text_calls(call_of)
    matches(end, end_of(endpoint, made, concurrency=1, parameters={"max_tokens": None, "seed": 1}))
    assert endpoint.requests[0][1].keys() == {"model", "messages", "temperature", "seed"}


def test_repeats_are_judgments_of_their_own(endpoint: Endpoint, call_of: CallOf, tmp_path: Path) -> None:
    judgments = ask(endpoint, calls(call_of, 2), tmp_path / "calls", repeats=3)
    assert endpoint.billed == 6 and [len(each.readings) for each in judgments.each] == [3, 3]
    ask(endpoint, calls(call_of, 2), tmp_path / "calls", repeats=4)
    assert endpoint.billed == 8
    # Without one of its repeats, a judgment is missing.
    endpoint.only, endpoint.faults = "no idea 1", lambda request, time: "500" if time > 4 else "ok"
    said = end_of(endpoint, calls(call_of, 2), tmp_path / "calls", repeats=5)
    assert said == "1 judgments of judge-2024-01-01; 1 missing: HTTP 500"


def test_a_prompt_that_is_no_text_cannot_be_sent(endpoint: Endpoint, call_of: CallOf, tmp_path: Path) -> None:
    odd = label_call("odd", [{"role": "user", "content": "\ud800"}], ("m", "M"), log_probs=True)
    said = end_of(endpoint, [odd, call_of(1)], tmp_path / "calls")
    assert said == "1 judgments of judge-2024-01-01; 1 missing: cannot be sent: UnicodeEncodeError"


def test_a_limit_of_the_cost_holds_without_usage(endpoint: Endpoint, call_of: CallOf) -> None:
    for fault in ("no_usage", "usage_text", "usage_negative"):
        endpoint.faults = always(fault)
        facts = ask(endpoint, calls(call_of, 1), prices=PRICES).facts
        assert facts is not None and facts["prompt_tokens"] == len(call_of(0).messages[0]["content"]) // 4
        assert facts["completion_tokens"] > 0 and facts["cost"] > 0


def test_it_can_be_asked_within_a_notebook(endpoint: Endpoint, call_of: CallOf) -> None:
    async def cell() -> str:
        return end_of(endpoint, calls(call_of, 2))

    assert asyncio.run(cell()).startswith("2 judgments")


# --- addresses, keys and networks -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("lists", "end"),
    [
        ("403", ALL),  # a key that may only make calls
        ("404", ALL),
        ("500", ALL),
        ("page", "a web page answers here, no judge; check 'judge.base_url'; it usually ends with /v1"),
        ("bomb", r"no call can be made \(a compressed answer\)"),
        ("bytes", ALL),
    ],
)
def test_the_list_of_models_is_no_call(endpoint: Endpoint, call_of: CallOf, lists: str, end: str) -> None:
    endpoint.lists_models = lists
    matches(end, end_of(endpoint, calls(call_of)))


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("ALL_PROXY", "socks5://127.0.0.1:9", "no connection can be set up: .*SOCKS.*ALL_PROXY"),
        ("HTTPS_PROXY", "http://127.0.0.1:9", r"the judge cannot be reached \("),
        ("HTTPS_PROXY", "nonsense://[", "no connection can be set up|cannot be reached|no call can be made"),
        ("SSL_CERT_FILE", "/no/such/file", "no connection can be set up: .*No such file.*SSL_CERT_FILE"),
    ],
)
def test_an_environment_that_reaches_no_judge(
    endpoint: Endpoint, call_of: CallOf, monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    monkeypatch.setenv(name, value)
    matches(said, end_of(endpoint, calls(call_of), base_url="https://judge.invalid/v1"))
    # Loopback is never reached through a network proxy.
    if "PROXY" in name:
        assert end_of(endpoint, calls(call_of)) == ALL


@pytest.mark.parametrize("url", ["http://exa mple/v1", "http://\u00e4\u0300..x/v1"])
def test_an_address_that_is_none(endpoint: Endpoint, call_of: CallOf, url: str) -> None:
    said = end_of(endpoint, calls(call_of), base_url=url)
    matches(r"(no call can be made|no connection can be set up|cannot be reached).*; check", said)
    with pytest.raises(ValueError, match="Port out of range"):
        end_of(endpoint, calls(call_of), base_url="http://127.0.0.1:99999/v1")


@pytest.mark.parametrize("key", ["x", "EMPTY", "none", None])
def test_a_placeholder_is_no_secret(endpoint: Endpoint, call_of: CallOf, key: str | None) -> None:
    """A server of one's own takes any key; an answer that contains it is not changed."""
    endpoint.any_key = True
    endpoint.faults = always("text:none of them, x or EMPTY")
    judgments = ask(endpoint, calls(call_of, 1), key=key)
    assert judgments.each[0].text == "none of them, x or EMPTY"


def test_a_key_in_escapes_is_not_kept(endpoint: Endpoint, call_of: CallOf, tmp_path: Path) -> None:
    endpoint.escaped = True
    endpoint.faults = always("quotes_key")
    assert ask(endpoint, [call_of(0)], tmp_path / "calls").each[0].text == "m [key]"
    assert KEY.encode() not in (tmp_path / "calls").read_bytes()


def test_a_key_that_goes_over_an_open_network_is_warned_of(
    call_of: CallOf, caplog: pytest.LogCaptureFixture, endpoint: Endpoint
) -> None:
    assert "cannot be reached" in end_of(endpoint, calls(call_of), base_url="http://judge.invalid/v1")
    assert "warning: OPENAI_API_KEY goes to http://judge.invalid/v1 without encryption" in caplog.text
    assert KEY not in caplog.text


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and the certificate that it has signed for 127.0.0.1, in one file."""
    path = tmp_path_factory.mktemp("tls") / "certificate.pem"
    words = (
        "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1"
    )
    made = subprocess.run(
        ["openssl", *words.split(), "-keyout", str(path), "-out", "/dev/stdout"],
        capture_output=True,
        check=True,
    )
    path.write_bytes(path.read_bytes() + made.stdout)
    return path


def test_a_certificate_of_ones_own(
    call_of: CallOf, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with serving(Endpoint(), context) as endpoint:
        said = end_of(endpoint, calls(call_of))
        assert "the judge's certificate is not accepted (" in said and "self-signed" in said
        assert "set SSL_CERT_FILE to the file" in said
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert end_of(endpoint, calls(call_of)) == ALL
        said = end_of(endpoint, calls(call_of), base_url=endpoint.base_url.replace("https", "http"))
        assert said.startswith("error: http://127.0.0.1")


def test_https_where_http_is_spoken(endpoint: Endpoint, call_of: CallOf) -> None:
    said = end_of(endpoint, calls(call_of), base_url=endpoint.base_url.replace("http:", "https:"))
    assert "the judge cannot be reached (" in said and "certificate" not in said


# --- slow and endless answers ---------------------------------------------------------------------


def test_headers_that_drip_hold_no_call(endpoint: Endpoint, call_of: CallOf) -> None:
    endpoint.faults, began = always("header_drip"), time.monotonic()
    said = end_of(endpoint, calls(call_of), timeout_seconds=0.5, tries=1)
    matches("the judge is down: .*with time-out", said)
    assert time.monotonic() - began < 8


# --- stops ----------------------------------------------------------------------------------------


def _score(endpoint: Endpoint, numbers: range, path: Path, prompts: list[Any], done: Any) -> None:
    made = [label_call(str(n), prompts[n], ("m", "M"), log_probs=True) for n in numbers]
    done.put((ask(endpoint, made, path, concurrency=4).facts or {})["n_calls"])


def test_scorings_of_different_calls_share_a_store_and_one_is_killed(
    endpoint: Endpoint, call_of: CallOf, tmp_path: Path
) -> None:
    """Answers 0-39 and 20-59 by two processes; the first is killed. What is lost was in flight at the kill."""
    endpoint.seconds, path = 0.05, tmp_path / "calls"
    prompts = [call.messages for call in calls(call_of, 60)]
    fork = multiprocessing.get_context("fork")
    done = fork.Queue()

    def start(numbers: range) -> Any:
        process = fork.Process(target=_score, args=(endpoint, numbers, path, prompts, done))
        process.start()
        return process

    first, second = start(range(40)), start(range(20, 60))
    while endpoint.billed < 30:
        time.sleep(0.01)
    os.kill(first.pid, signal.SIGKILL)
    first.join()
    second.join(60)
    assert second.exitcode == 0
    done.get(timeout=5)
    again = start(range(40))
    again.join(60)
    assert again.exitcode == 0
    lines = path.read_bytes().splitlines()
    assert len(lines) == len({json.loads(line)["key"] for line in lines}) == endpoint.distinct == 60
    assert endpoint.billed <= 60 + 4, "no more than what was in flight at the kill is paid again"


def _stopped(endpoint: Endpoint, made: Any, path: Path, log: Path, in_stage: bool = True) -> None:
    os.dup2(os.open(log, os.O_CREAT | os.O_WRONLY), 2)
    sys.stderr = os.fdopen(2, "w")
    if in_stage:
        stop_on_signals()
    _score(endpoint, range(len(made)), path, made, multiprocessing.SimpleQueue())


@pytest.mark.parametrize("in_stage", [True, False])
def test_a_request_to_stop_keeps_the_answers_in_flight(
    endpoint: Endpoint, call_of: CallOf, tmp_path: Path, in_stage: bool
) -> None:
    endpoint.seconds, store, log = 0.3, tmp_path / "calls", tmp_path / "log"
    made = [call.messages for call in calls(call_of, 40)]
    given = (endpoint, made, store, log, in_stage)
    process = multiprocessing.get_context("fork").Process(target=_stopped, args=given)
    process.start()
    while endpoint.billed < 6:
        time.sleep(0.01)
        assert process.is_alive()
    for number in (signal.SIGTERM, signal.SIGINT):  # Ctrl-C: one from the workflow, one from the terminal
        os.kill(process.pid or 0, number)
    process.join(30)
    assert process.exitcode == EXIT_INTERRUPTED
    assert "calls in flight are completed; run the same command to resume" in log.read_text()
    assert store.read_bytes().count(b"\n") == endpoint.billed < 40


def test_a_request_to_stop_waits_for_no_other_process(
    endpoint: Endpoint, call_of: CallOf, tmp_path: Path
) -> None:
    """The first has all calls in flight, for a minute; the second, which needs the same, ends at once."""
    endpoint.seconds, store, log = 60.0, tmp_path / "calls", tmp_path / "log"
    made = [call.messages for call in calls(call_of, 40)]
    fork = multiprocessing.get_context("fork")
    first = fork.Process(target=_score, args=(endpoint, range(4), store, made, fork.SimpleQueue()))
    first.start()
    while endpoint.billed < 4:
        time.sleep(0.01)
    second = fork.Process(target=_stopped, args=(endpoint, made[:4], store, log))
    second.start()
    time.sleep(1.5)
    os.kill(second.pid or 0, signal.SIGTERM)
    second.join(15)
    first.kill()
    assert second.exitcode == EXIT_INTERRUPTED and endpoint.billed == 4


def test_an_unexpected_error_loses_no_answer_in_flight(
    endpoint: Endpoint, call_of: CallOf, tmp_path: Path
) -> None:
    endpoint.seconds = 0.1
    first, *others = calls(call_of)
    with pytest.raises(RuntimeError, match="a bug"):
        ask(endpoint, [Call("odd", first.messages, _raise, first.fields), *others], tmp_path / "calls")
    assert (tmp_path / "calls").read_bytes().count(b"\n") >= endpoint.billed - 1


def _raise(answer: Any) -> Any:
    raise RuntimeError("a bug")


# --- the store ------------------------------------------------------------------------------------


def test_a_store_that_cannot_be_opened(endpoint: Endpoint, call_of: CallOf, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "calls"):
        assert "the judge's answers cannot be stored here: " in end_of(endpoint, calls(call_of), path)
    assert endpoint.billed == 0


def test_a_file_system_without_locks_is_warned_of(
    endpoint: Endpoint, call_of: CallOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    def no_locks(*args: Any) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.lockf", no_locks)
    assert end_of(endpoint, calls(call_of), tmp_path / "calls") == ALL
    assert caplog.text.count("cannot be locked") == 1
