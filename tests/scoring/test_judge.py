import json
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from sams.errors import UserError
from sams.recipes import ScoreRecipe
from sams.scoring import alpaca_eval_run, child
from sams.scoring.judge import open_judge
from sams.scoring.local_judge import HOST, _Handler, _Server
from sams.settings import Judge

KEY = "sk-test-0123456789abcdef"


def recipe(**settings: Any) -> ScoreRecipe:
    return ScoreRecipe(judge=Judge.model_validate({"kind": "openai", **settings}), world=None)


class Endpoint(_Handler):
    """The local judge as an endpoint that wants a key and keeps what it was asked."""

    calls: list[tuple[str | None, dict[str, Any]]]

    def __init__(self, *args: Any, calls: list[Any], refuse: bool) -> None:
        self.calls, self.refuse = calls, refuse
        super().__init__(*args, length_lean=0.0)

    def do_GET(self) -> None:
        if self.refuse:
            return self._send(401, {"error": {"message": f"Incorrect API key provided: {KEY}"}})  # type: ignore[arg-type]
        return super().do_GET()

    def _judge(self, body: bytes) -> None:
        self.calls.append((self.headers.get("Authorization"), json.loads(body)))
        super()._judge(body)


@pytest.fixture
def calls() -> list[Any]:
    return []


@pytest.fixture
def base_url(request: pytest.FixtureRequest, calls: list[Any]) -> Iterator[str]:
    handler: Any = partial(Endpoint, calls=calls, refuse=getattr(request, "param", False))
    assert issubclass(Endpoint, BaseHTTPRequestHandler)
    server = _Server((HOST, 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://{HOST}:{server.server_address[1]}/v1"
    server.shutdown()
    server.server_close()


def test_a_missing_key_is_named() -> None:
    with pytest.raises(UserError, match="OPENAI_API_KEY is not set"), open_judge(recipe()):
        pass


@pytest.mark.parametrize("base_url", [True], indirect=True)
def test_a_refused_key_is_told_at_once_and_not_quoted(base_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    refused = pytest.raises(UserError, match="refuses the key; check OPENAI_API_KEY")
    with refused as error, open_judge(recipe(base_url=base_url)):
        pass
    assert KEY not in str(error.value) and error.value.__suppress_context__


def test_an_endpoint_that_is_not_there_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with (
        pytest.raises(UserError, match="cannot be reached"),
        open_judge(recipe(base_url=f"http://{HOST}:9/v1")),
    ):
        pass


def test_the_local_judge_needs_a_world() -> None:
    with (
        pytest.raises(UserError, match="can only grade the synthetic world"),
        open_judge(recipe(kind="local")),
    ):
        pass


def test_an_endpoint_is_asked_for_its_model_with_a_key_that_no_file_holds(
    base_url: str,
    calls: list[Any],
    question: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """The package's own route to an endpoint, with worker processes and a judge that it does not know."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    held: list[bool] = []
    end = child.end

    def look_and_end(process: Any) -> None:
        texts = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
        held.append(bool(texts) and any(KEY.encode() in text for text in texts))
        arguments = Path(f"/proc/{process.pid}/cmdline")
        held.append(arguments.exists() and KEY.encode() in arguments.read_bytes())
        end(process)

    monkeypatch.setattr(alpaca_eval_run.child, "end", look_and_end)
    asked, right = question
    with open_judge(recipe(base_url=base_url, model="open-judge", concurrency=2)) as endpoint:
        [result] = alpaca_eval_run.run_alpaca_eval(
            [{"instruction": asked, "output": "no idea", "generator": "base", "dataset": ""}],
            [[{"instruction": asked, "output": right, "generator": "ours", "dataset": ""}]],
            endpoint=endpoint,
        )
    assert held == [False, False]
    [(authorization, request)] = calls
    assert authorization == f"Bearer {KEY}"
    assert request["model"] == "open-judge" and request["logprobs"] and request["max_tokens"] == 1
    assert result.annotations[0]["preference"] == pytest.approx(1.982, abs=1e-3)
    assert KEY not in json.dumps(result.annotations)
