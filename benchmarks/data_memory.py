"""Memory and time of `prepare_data`, `tokenise` and reading tokens in training, by size of the data.

    python -m benchmarks.data_memory --pairs pairs.jsonl.gz --rows 30000 --rows 300000
    python -m benchmarks.data_memory --pairs pairs.jsonl.gz --form list --form hub --stage prepare_data

The data sets repeat the given pairs with other words at the end of both responses. Each stage runs in a separate
process, as in the workflow. The kernel counts its peak of resident memory, including pages of memory-mapped files,
which can be evicted at any time; anonymous memory is sampled.
"""

import contextlib
import gzip
import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from sams.data.sources import Row, numbered_rows
from sams.runtime.files import read_json, write_json
from sams.runtime.stage import run
from sams.study.recipes import DataRecipe, TokeniseRecipe, recipe_json
from sams.study.settings import Data, Model

DIGITS = "zero one two three four five six seven eight nine".split()
OTHER_ROWS = 500
PART_ROWS = 10_000
SAMPLE_SECONDS = 0.1
# Work of a training process with its pairs before the first step, then the first 1,000 pairs.
READ = """
from pathlib import Path
from sams.training.tasks.base import read_tokens
from sams.training.tasks.pairs import PairTask
task = PairTask(read_tokens(Path("tokens"), "train"))
for start in range(0, 1000, 50):
    task.sequences(list(range(start, start + 50)))
"""
MODEL = Model.model_validate(
    {"architecture": {"model_type": "llama"}, "tokenizer": "bpe", "vocab_size": 4096}
)


def main(
    pairs: Path = Path("config/studies/own_data/train.jsonl"),
    out: Path = Path("results/bench/data_memory.json"),
    rows: Annotated[list[int], typer.Option()] = [30_000, 300_000],  # noqa: B006
    form: Annotated[list[str], typer.Option()] = ["lines"],  # noqa: B006
    stage: Annotated[list[str], typer.Option()] = ["prepare_data", "tokenise"],  # noqa: B006
) -> None:
    """Run the stages on each size and form, and add the figures to `out`.

    Args:
        pairs: preference pairs whose responses are text.
        out: file of the figures; those of other sizes and forms stay in it.
        rows: numbers of training pairs.
        form: lines (gzipped JSON lines), list (a JSON list) or hub (a folder of Parquet files).
        stage: stages to run, in this order: prepare_data, tokenise, read_tokens, or nothing (read_tokens' imports).
    """
    all_figures: dict[str, Any] = read_json(out) if out.is_file() else {}
    for kind in form:
        for count in rows:
            with tempfile.TemporaryDirectory() as folder:
                for name, figures in measured(pairs, Path(folder), kind, count, stage):
                    all_figures[f"{name}, {kind}, {count} rows"] = figures
                    print(f"{name}, {kind}, {count} rows: {figures}")
                    write_json(out, all_figures)


def measured(
    pairs: Path, folder: Path, kind: str, count: int, stages: list[str]
) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield the figures of each stage on a data set of one size and form."""
    data = Data(
        train=write(folder / "train", repeated(pairs, count), kind),
        test=write(folder / "test", repeated(pairs, OTHER_ROWS), "lines"),
        sft=write(folder / "sft", examples(OTHER_ROWS), "lines"),
    )
    prepare = recipe_json(DataRecipe(data=data))
    tokenise = recipe_json(TokeniseRecipe(model=MODEL, max_length=1024, max_prompt_length=512))
    commands = {
        "prepare_data": ["-m", "sams.data.prepare", "--recipe", prepare, "--out", "data"],
        "tokenise": [*"-m sams.data.tokenise --data data --out tokens --recipe".split(), tokenise],
        "read_tokens": ["-c", READ],
        "nothing": ["-c", READ.partition("task =")[0]],
    }
    for stage in stages:
        yield stage, watched([sys.executable, *commands[stage]], folder)


def repeated(pairs: Path, count: int) -> Iterator[Row]:
    """Yield `count` pairs: the given ones repeated, each time with other words at the end."""
    given = [row for _, row in numbered_rows(str(pairs), "train")]
    for number in range(count):
        row, turn = given[number % len(given)], number // len(given)
        words = "".join(f" {DIGITS[int(digit)]}" for digit in str(turn)) if turn else ""
        yield {**row, "chosen": row["chosen"] + words, "rejected": row["rejected"] + words}


def examples(count: int) -> Iterator[Row]:
    """Yield supervised examples, which a study needs."""
    for number in range(count):
        yield {"prompt": f"Which number is {number}?", "response": str(number)}


def write(path: Path, rows: Iterable[Row], kind: str) -> str:
    """Write a data set in one of the forms and return its name for a study."""
    if kind == "hub":
        import pyarrow as pa
        from pyarrow import parquet

        path.mkdir()
        rows = iter(rows)
        for part in itertools.count():
            if not (some := list(itertools.islice(rows, PART_ROWS))):
                return str(path)
            parquet.write_table(pa.Table.from_pylist(some), path / f"train-{part:05d}.parquet")
    with gzip.open(path, "wt", compresslevel=1) if kind == "lines" else path.open("w") as stream:
        for number, row in enumerate(rows):
            if kind == "list":
                stream.write("," if number else "[")
            stream.write(json.dumps(row) + "\n")
        if kind == "list":
            stream.write("]")
    return str(path)


def watched(command: list[str], folder: Path) -> dict[str, float]:
    """Run a process in a folder; return its CPU and wall seconds, and peak resident and anonymous memory in MB."""
    started = time.monotonic()
    peaks = {"VmHWM": 0, "RssAnon": 0}
    environment = os.environ | {
        "PYTHONPATH": str(Path.cwd()),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_DATASETS_CACHE": str(folder / "cache"),
        "HF_HUB_OFFLINE": "1",
    }
    with subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.DEVNULL) as process:
        status = Path(f"/proc/{process.pid}/status")
        while (ended := os.wait4(process.pid, os.WNOHANG))[0] == 0:
            with contextlib.suppress(OSError):
                for key, _, value in (line.partition(":") for line in status.read_text().splitlines()):
                    if key in peaks:
                        peaks[key] = max(peaks[key], int(value.split()[0]))
            time.sleep(SAMPLE_SECONDS)
        usage: resource.struct_rusage = ended[2]
        process.returncode = os.waitstatus_to_exitcode(ended[1])
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return {
        # Not `ru_maxrss`, which a process inherits from the one that started it.
        "peak_mb": round(peaks["VmHWM"] / 2**10, 1),
        "peak_anonymous_mb": round(peaks["RssAnon"] / 2**10, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "wall_seconds": round(time.monotonic() - started, 1),
    }


if __name__ == "__main__":
    run(main)
