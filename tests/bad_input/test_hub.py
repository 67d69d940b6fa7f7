"""Models, data sets and folders that cannot be found: `preflight` reports each in one line."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from sams.launch import preflight
from tests.bad_input.refused import Case, Refused, cases, refused
from tests.study.test_config import tiny_study

__all__ = ["refused"]


class Hub(BaseHTTPRequestHandler):
    """A hub that answers as Hugging Face's does."""

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        status, code, body = 404, "RepoNotFound", b"{}"
        if "gated/model" in self.path:
            status, code = 403, "GatedRepo"
        elif "known/model" in self.path and "/v9" in self.path:
            code = "RevisionNotFound"
        elif "known/model" in self.path and "resolve" in self.path:
            status, code = 200, ""
        elif "known/model" in self.path:
            files = [{"rfilename": name} for name in ("config.json", "pytorch_model.bin")]
            status, code, body = 200, "", json.dumps({"id": "known/model", "siblings": files}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", '"0123"')
        self.send_header("X-Repo-Commit", "0" * 40)
        if code:
            self.send_header("X-Error-Code", code)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
        address + "/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setattr(
        "huggingface_hub.file_download.HUGGINGFACE_CO_URL_TEMPLATE",
        address + "/{repo_id}/resolve/{revision}/{filename}",
        raising=False,
    )
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


HUB: list[Any] = [
    (
        "a model that does not exist",
        {"path": "nobody/nothing"},
        "model.path: nobody/nothing .*no such id.*; correct the id",
    ),
    (
        "a gated model without a token",
        {"path": "gated/model"},
        "gated/model cannot be fetched: it is gated; accept .*HF_TOKEN",
    ),
    (
        "a revision that does not exist",
        {"path": "known/model", "revision": "v9"},
        "known/model cannot be fetched: it has no revision v9; correct",
    ),
    (
        "a model with pickles only",
        {"path": "known/model"},
        "known/model has pickled weights only .*; give a revision",
    ),
]


@cases(*HUB)
def test_the_hub(case: Case, hub: None, refused: Refused, tmp_path: Path) -> None:
    study = tiny_study(model=case.made, benchmarks={})
    refused(
        preflight.main,
        study=study.model_dump_json(),
        out=tmp_path / "f",
        results=tmp_path / "r",
        says=case.says,
    )


def test_a_data_set_that_the_hub_has_not(hub: None, refused: Refused, tmp_path: Path) -> None:
    data = {"world": None, "train": "stanfordnlp/SHPP@v1", "test": "stanfordnlp/SHPP@v1"}
    study = tiny_study(data=data, benchmarks={})
    says = r"dataset stanfordnlp/SHPP@v1: the hub has no such id.*; did you mean stanfordnlp/SHP\?; correct"
    refused(
        preflight.main, study=study.model_dump_json(), out=tmp_path / "f", results=tmp_path / "r", says=says
    )


PLACES: list[Any] = [
    (
        "no network",
        {"model": {"path": "some/model"}},
        "model.path: some/model cannot be fetched: the hub cannot be reached.*; check",
    ),
    (
        "a folder that is not there",
        {"model": {"path": "./no-model"}},
        "model.path: no such folder: ./no-model; correct",
    ),
    (
        "a file for a folder",
        {"model": {"path": "pyproject.toml"}},
        "model.path: no such folder: pyproject.toml.*; correct",
    ),
    (
        "an encoder that is not there",
        {"scheduler__encoder": "all-MiniLM"},
        r"scheduler.encoder: no such folder: all-MiniLM; did you mean all-MiniLM-L6-v2\?; set",
    ),
    (
        "data that are not there",
        {"data": {"world": None, "train": "config/studies/own_data/trian.jsonl", "test": "README.md"}},
        r"data.train: no such file: .*; did you mean train.jsonl\?; correct",
    ),
]


@cases(*PLACES)
def test_places(case: Case, refused: Refused, tmp_path: Path) -> None:
    study = tiny_study(**{"benchmarks": {}} | case.made)
    refused(
        preflight.main,
        study=study.model_dump_json(),
        out=tmp_path / "f",
        results=tmp_path / "r",
        says=case.says,
    )
