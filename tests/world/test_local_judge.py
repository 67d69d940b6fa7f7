import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sams.world.local_judge import MAX_REQUEST_BYTES, LocalJudge, local_judge


@pytest.fixture(scope="module")
def judge() -> Iterator[LocalJudge]:
    with local_judge(0.0) as running:
        yield running


def ask(url: str, body: bytes | None = None) -> tuple[int, Any]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data=body), timeout=10) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def chat(judge: LocalJudge, prompt: Any) -> tuple[int, Any]:
    body = {"model": "gpt-4", "messages": [{"role": "user", "content": prompt}]}
    return ask(f"{judge.base_url}/chat/completions", json.dumps(body).encode())


def test_it_answers_on_loopback_as_openai_does(
    judge: LocalJudge, pair_prompt: Callable[[str, str, str], str], question: tuple[str, str]
) -> None:
    assert judge.base_url.startswith("http://127.0.0.1:")
    assert ask(judge.base_url.removesuffix("/v1") + "/health") == (200, {"status": "ok"})
    assert [model["id"] for model in ask(f"{judge.base_url}/models")[1]["data"]] == ["local-judge"]
    status, answer = chat(judge, pair_prompt(question[0], "no idea", question[1]))
    choice = answer["choices"][0]
    assert status == 200 and answer["model"] == "gpt-4"
    assert choice["message"] == {"role": "assistant", "content": "M"}
    token = choice["logprobs"]["content"][0]
    assert token["token"] == "M" and [top["token"] for top in token["top_logprobs"]] == ["M", "m"]


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/chat/completions", b"not json", 400),
        ("/chat/completions", b'{"messages": []}', 400),
        ("/chat/completions", b'{"messages": [{"content": 5}]}', 400),
        ("/chat/completions", b"[]", 400),
        ("/chat/completions", b" " * (MAX_REQUEST_BYTES + 1), 413),
        ("/embeddings", b"{}", 404),
        ("/nothing", None, 404),
    ],
)
def test_bad_requests_are_refused(judge: LocalJudge, path: str, body: bytes | None, status: int) -> None:
    assert ask(judge.base_url + path, body)[0] == status
    assert judge.is_alive()


def test_an_unknown_prompt_is_refused_without_retry(judge: LocalJudge) -> None:
    status, answer = chat(judge, "Which is better?")
    assert status == 400 and answer["error"]["message"].endswith("Please try again with a different prompt.")


def test_it_ends_with_the_block_even_after_an_error() -> None:
    started = []

    def fail() -> None:
        with local_judge(0.0) as judge:
            started.append(judge)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not started[0].is_alive()
    with pytest.raises(urllib.error.URLError):
        ask(f"{started[0].base_url}/models")


def test_it_ends_when_its_parent_is_killed() -> None:
    script = (
        "import time\nfrom sams.world.local_judge import local_judge\n"
        "with local_judge(0.0) as judge:\n    print(judge.process.pid, flush=True)\n    time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 120
    while _runs(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _runs(pid)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        with open(f"/proc/{pid}/stat") as stat:  # a zombie waits for init, which a container may lack
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_a_judge_that_dies_is_noticed() -> None:
    with local_judge(0.0) as judge:
        os.killpg(judge.process.pid, signal.SIGKILL)
        judge.process.wait()
        assert not judge.is_alive()
