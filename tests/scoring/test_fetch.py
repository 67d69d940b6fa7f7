"""Published inputs: downloaded completely and as published from a server on loopback, or not at all."""

import gzip
import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from sams.runtime.errors import UserError
from sams.scoring import fetch
from sams.scoring.fetch import PUBLISHED, Source, published

CONTENT = b'[{"instruction": "\xc3\xa9"}]\n'
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """/good is moved to /here, which has the content; /cut breaks off; everything else is not found."""

    def do_GET(self) -> None:
        if self.path == "/good":
            self.send_response(302)
            self.send_header("Location", "/here")
            self.end_headers()
        elif self.path in ("/here", "/cut"):
            self.send_response(200)
            self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()
            self.wfile.write(CONTENT if self.path == "/here" else CONTENT[:5])
        else:
            self.send_error(404, "Not Found")

    def log_message(self, *arguments: object) -> None:
        """Log nothing."""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_file_with_the_right_checksum_is_kept(address: str, tmp_path: Path) -> None:
    out = tmp_path / "inputs" / "file.json"
    fetch.fetch(Source(f"{address}/good", SHA256), out)
    assert out.read_bytes() == CONTENT
    assert list(out.parent.iterdir()) == [out]


@pytest.mark.parametrize(
    ("path", "sha256", "problem"),
    [
        ("/here", "0" * 64, f"sent {len(CONTENT)} bytes with SHA-256 {SHA256}, expected 0000"),
        ("/cut", SHA256, r"cannot be fetched \(IncompleteRead"),
        ("/absent", SHA256, r"cannot be fetched \(Not Found\)"),
    ],
)
def test_anything_else_is_refused_and_leaves_nothing(
    address: str, tmp_path: Path, path: str, sha256: str, problem: str
) -> None:
    with pytest.raises(UserError, match=problem) as error:
        fetch.fetch(Source(address + path, sha256), tmp_path / "file.json")
    assert str(error.value).startswith(f"{address}{path}: ")
    assert str(error.value).endswith(f"put the file at {tmp_path / 'file.json'} by hand")
    assert not list(tmp_path.iterdir())


def test_without_a_network_the_command_ends_in_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sams.scoring.fetch", "--out", "inputs/df_gamed.csv"],
        cwd=tmp_path,
        env={**os.environ, "https_proxy": "http://127.0.0.1:9", "no_proxy": ""},  # nothing listens there
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    [line] = done.stderr.strip().splitlines()
    assert line.startswith(f"error: {PUBLISHED['df_gamed.csv'].url}: cannot be fetched (")
    assert line.endswith("or put the file at inputs/df_gamed.csv by hand")


def test_only_the_named_paths_are_fetched() -> None:
    assert published("inputs/df_gamed.csv") == PUBLISHED["df_gamed.csv"]
    assert published("mine/df_gamed.csv") is published("df_gamed.csv") is published("inputs/mine.csv") is None
    with pytest.raises(UserError, match=r"no published file has this name; one of alpaca_eval_gpt4_base"):
        fetch.main(Path("inputs/mine.csv"))


def test_a_file_put_there_by_hand_must_be_the_published_one(tmp_path: Path) -> None:
    file = tmp_path / "df_gamed.csv"
    file.write_bytes(CONTENT)
    fetch.check(file, Source("http://x", SHA256))
    with pytest.raises(UserError, match=f"has SHA-256 {SHA256}, but http://x has 00"):
        fetch.check(file, Source("http://x", "0" * 64))


def test_checksums_are_those_of_the_published_files(shared_data: Path) -> None:
    common = shared_data / "mt_bench" / "common"
    baseline = shared_data / "alpaca_eval" / "common" / "gpt4_1106_preview.model_outputs.json.gz"
    contents = {
        "question.jsonl": (common / "question.jsonl").read_bytes(),
        "judge_prompts.jsonl": (common / "judge_prompts.jsonl").read_bytes(),
        "gpt-4.jsonl": (common / "reference_answer" / "gpt-4.jsonl").read_bytes(),
        "alpaca_eval_gpt4_baseline.json": gzip.decompress(baseline.read_bytes()),
    }
    found = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    assert found == {name: PUBLISHED[name].sha256 for name in contents}
