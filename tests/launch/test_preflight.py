"""Stage `preflight`: problems of the machine are reported in one line before anything is computed."""

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from sams.data.sources import is_missing_path
from sams.launch import preflight
from sams.launch.machine import gpus_wanted, processes
from sams.runtime.errors import UserError
from sams.scoring.difficulty_table import TableRow, write_table
from sams.study.study import Study
from sams.world.judge_prompts import judge_prompts
from tests.study.test_config import tiny_study


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Set how many GPUs the machine shows."""

    def show(count: int) -> None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join(str(number) for number in range(count)))

    return show


@pytest.mark.parametrize(
    ("count", "nproc", "device", "expected"),
    [
        (0, "auto", "auto", 2),
        (1, "auto", "auto", 1),
        (8, "auto", "auto", 8),
        (8, "auto", "cpu", 2),
        (0, 8, "cpu", 8),
    ],
)
def test_processes(count: int, nproc: Any, device: str, expected: int) -> None:
    study = tiny_study(launch__nproc_per_node=nproc, launch__device=device)
    assert processes(study.launch, count) == expected


def test_a_cpu_job_holds_no_gpu_and_a_wish_for_eight_shows_in_a_dry_run() -> None:
    assert gpus_wanted(tiny_study().launch, 0) == 0
    assert gpus_wanted(tiny_study().launch, 4) == 4
    assert gpus_wanted(tiny_study(launch__nproc_per_node=8).launch, 0) == 8
    assert gpus_wanted(tiny_study(launch__nproc_per_node=8, launch__device="cpu").launch, 4) == 0


def refused(study: Study, out: Path, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        preflight.main(study.model_dump_json(), out / "found.json", out / "results")
    assert "\n" not in str(error.value)
    assert not (out / "found.json").exists()


def test_more_processes_than_gpus(gpus: Any, tmp_path: Path) -> None:
    gpus(2)
    refused(
        tiny_study(launch__nproc_per_node=8),
        tmp_path,
        "launch.nproc_per_node: 8 processes, but .* 2 GPUs; set",
    )


def test_cuda_without_a_gpu(gpus: Any, tmp_path: Path) -> None:
    gpus(0)
    refused(tiny_study(launch__device="cuda"), tmp_path, "launch.device: cuda, but this machine shows no GPU")


def test_a_batch_that_the_machines_gpus_do_not_divide(gpus: Any, tmp_path: Path) -> None:
    gpus(3)
    refused(tiny_study(), tmp_path, "batch_size: 64 is not divisible by 3 processes")


def test_a_judge_without_its_key(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    study = tiny_study(benchmarks__judge={"kind": "openai", "model": "gpt-4-turbo"})
    refused(study, tmp_path, "the judge needs a key, and .* OPENAI_API_KEY is not set; export")
    assert "gpt-4-turbo was shut down on 2026-10-23" in caplog.text


def test_missing_files_and_folders(tmp_path: Path) -> None:
    no_benchmarks = {"benchmarks__alpaca_eval": None, "benchmarks__mt_bench": None}
    data = {"world": None, "train": "no/such/pairs.jsonl", "test": "x.jsonl"}
    refused(
        tiny_study(data=data, **no_benchmarks),
        tmp_path,
        "data.train: no such file: no/such/pairs.jsonl; correct",
    )
    model = {"path": "./no-model", "attention": "sdpa"}
    refused(tiny_study(model=model), tmp_path, "model.path: no such folder: ./no-model")
    refused(
        tiny_study(benchmarks__mt_bench__questions="mine/question.jsonl"),
        tmp_path,
        "benchmarks.mt_bench.questions: no such file: mine/question.jsonl; .* fetched: .*inputs/question.jsonl",
    )


def test_a_published_input_is_fetched_and_one_put_there_by_hand_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    study = tiny_study(benchmarks__mt_bench__questions="inputs/question.jsonl")
    preflight.check_sources(study)
    Path("inputs").mkdir()
    Path("inputs/question.jsonl").write_text("{}")
    refused(study, tmp_path, "inputs/question.jsonl: has SHA-256 44136fa3.*; delete it to have it fetched")


def test_a_model_that_the_hub_does_not_give(tmp_path: Path) -> None:
    refused(
        tiny_study(model={"path": "nobody/nothing"}), tmp_path, "model.path: nobody/nothing cannot be fetched"
    )


def test_a_package_of_an_extra_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    study = tiny_study(preference__lora={"load_in_4bit": True}, launch__strategy="ddp")
    refused(
        study, tmp_path, "lora.load_in_4bit: 4-bit weights need the package bitsandbytes; .*extra `qlora`"
    )


def test_a_machine_that_is_ready(tmp_path: Path) -> None:
    preflight.main(
        tiny_study(tracking__enabled=False).model_dump_json(), tmp_path / "found.json", tmp_path / "r"
    )
    assert '"gpus": 0' in (tmp_path / "found.json").read_text()


def test_a_folder_of_the_hubs_form_is_named_with_its_split(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    assert not is_missing_path(f"{tmp_path}/set:train")
    assert is_missing_path(f"{tmp_path}/sett:train")
    assert not is_missing_path("some/data@v1:train")


def study_on_the_hub(folder: Path) -> Study:
    files = {"train": "some/data@v1:train", "test": "some/data@v1:test", "sft": str(folder)}
    return tiny_study(
        data__world=None,
        model__path="some/model",
        model__architecture=None,
        model__tokenizer=None,
        benchmarks={},
        **{f"data__{split}": source for split, source in files.items()},
    )


class Hub(BaseHTTPRequestHandler):
    """Knows the commit of `some/data` at v1."""

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        known = self.path == "/api/datasets/some/data/revision/v1"
        body = json.dumps(
            {"id": "some/data", "sha": "0123abcd"} if known else {"error": "not found"}
        ).encode()
        self.send_response(200 if known else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def test_the_commit_behind_a_hub_id_is_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = study_on_the_hub(tmp_path)
    unknown = {"some/data@v1": None, "some/model@main": None}
    assert preflight.hub_commits(study) == unknown, "off-line"
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    try:
        assert preflight.hub_commits(study) == unknown | {"some/data@v1": "0123abcd"}
    finally:
        server.shutdown()
        server.server_close()
    assert preflight.hub_commits(study) == unknown, "nobody answers"


JUDGED = {"questions": "mine.jsonl", "references": "answers.jsonl", "judge_prompts": "prompts.jsonl"}


def test_files_of_benchmarks_are_read_by_their_scorers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is wrong with them would be found after training; files that are still to be fetched are left out."""
    monkeypatch.chdir(tmp_path)
    question = {"question_id": 1, "category": "Math", "turns": ["One?", "Two?"]}
    answer = {"question_id": 1, "model_id": "someone", "choices": [{"turns": ["1", "2"]}]}
    for file, rows in zip(JUDGED.values(), ([question], [answer], judge_prompts()), strict=True):
        Path(file).write_text("".join(json.dumps(row) + "\n" for row in rows))
    study = tiny_study(benchmarks__mt_bench=JUDGED)
    refused(study, tmp_path, "benchmarks.mt_bench.questions: mine.jsonl, row 1, .* did you mean 'math'")
    preflight.check_questions(
        tiny_study(benchmarks__mt_bench={**JUDGED, "questions": "inputs/question.jsonl"})
    )


def test_a_difficulty_table_belongs_to_its_instructions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.json").write_text(json.dumps([{"instruction": "Why?", "output": "So.", "generator": "own"}]))
    rows = [TableRow(index, name, 0.5, 1.0, 0.1) for name in ("concise", "verbose") for index in (0, 1)]
    write_table(tmp_path / "own.csv", rows)
    study = tiny_study(benchmarks__alpaca_eval={"reference_outputs": "own.json", "difficulty": "own.csv"})
    refused(
        study, tmp_path, "benchmarks.alpaca_eval.difficulty: own.csv: expected 2 variants with index 0 to 0"
    )
