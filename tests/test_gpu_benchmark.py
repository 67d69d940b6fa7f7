"""The GPU benchmark: rehearsed on a CPU with the packages that it promises to need, and killed while it writes."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.gpu import GROUPS, Record
from benchmarks.gpu_report import MARKS
from sams.runtime.files import read_json
from tests.conftest import ROOT, patience

ABSENT = (
    "datasets pyarrow mlflow snakemake trl typer rich scipy pandas sklearn matplotlib jinja2 tenacity pynvml"
)
SECTIONS = [section.name for group in GROUPS for section in group]


@pytest.mark.slow
def test_all_sections_run_on_a_cpu_without_packages_of_data_tables_and_command_lines(tmp_path: Path) -> None:
    # None says "not installed", both to an import and to those who ask first.
    (tmp_path / "sitecustomize.py").write_text(
        f"import sys\nsys.modules.update(dict.fromkeys({ABSENT.split()!r}))\n"
    )
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "benchmarks.gpu",
            "--device",
            "cpu",
            "--minutes",
            "15",
            "--out",
            str(tmp_path),
        ],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"},
        capture_output=True,
        text=True,
        timeout=patience(900),
    )
    page = (tmp_path / "gpu.md").read_text()
    assert done.returncode == 0, page + done.stderr[-2000:]
    result = read_json(tmp_path / "gpu.json")
    assert result["sections"].keys() == set(SECTIONS)
    assert {name for name, section in result["sections"].items() if "not_run" in section} <= {
        "trl",
        "lora_8b_4bit",
    }
    assert result["sections"]["stages"]["preference"]["test_accuracy"] > 0
    assert set(result["not_run"]) <= {"plain_over_trl", "sams_over_trl", "mfu", "lora_8b_4bit_gib"}
    assert result["plain_over_hf_padded"] > 0 and result["sections"]["plain"]["rows"] == "sams_segments"
    for name in ("plain", "sams", "plain_large", "sams_large"):
        compiled = result["sections"][name]["compiled"]
        assert compiled["graphs"] > 0 and compiled["graphs_while_measuring"] == 0, name
    profile = result["sections"]["plain_large"]["eager"]["profile"]["ms_by_class"]
    assert profile["matrix products"] > 0 and profile["attention"] > 0
    assert all(name in page for name in MARKS) and "Failures" not in page


def test_a_killed_benchmark_has_what_it_has_measured(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from benchmarks.gpu import Record
record = Record(Path({str(tmp_path)!r}), {{"device": "x", "date": "", "precision": "", "rehearsal": True,
    "environment": {{"libraries": {{}}}}}}, keep=False)
record.begin("plain")
for number in range(10**6):
    record.add("plain", {{"eager": {{"ms": number}}, "padding": "x" * 100_000}})
    print(number, flush=True)
"""
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        for _ in range(20):
            number = int(process.stdout.readline())
        time.sleep(0.003)
        process.kill()
        number = [number, *map(int, process.stdout.read().split())][-1]
        measured = json.loads((tmp_path / "gpu.json").read_text())["sections"]["plain"]["eager"]["ms"]
        assert measured in (number, number + 1), "what was printed is on disk"
        assert "plain, eager" in (tmp_path / "gpu.md").read_text()


def test_earlier_figures_stay(tmp_path: Path) -> None:
    facts = {"device": "x", "date": "", "precision": "", "rehearsal": True, "environment": {"libraries": {}}}
    first = Record(tmp_path, facts, keep=False)
    for section, took in (("plain", 50.0), ("trl", 100.0)):
        first.begin(section)
        first.add(section, {"eager": {"ms": took, "repeated_ms": took}})
    again = Record(tmp_path, facts, keep=True)
    again.begin("plain")
    again.add("plain", {"error": "out of memory"})
    again.add("plain", {"compiled": {"ms": 40.0, "repeated_ms": 39.0}})
    result = read_json(tmp_path / "gpu.json")
    assert result["plain_over_trl"] == 0.4 and "plain_over_trl" not in result["not_run"]
    assert result["sams_over_trl"] is None and "sams_over_trl" in result["not_run"]
    assert "out of memory" in (tmp_path / "gpu.md").read_text()
    Record(tmp_path, facts, keep=False)
    assert len(list(tmp_path.glob("gpu-*.json"))) == 1 and not (tmp_path / "gpu.json").exists()
