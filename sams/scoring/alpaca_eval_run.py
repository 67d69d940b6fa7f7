"""Run the alpaca_eval package in a child process, in a temporary folder.

The folder holds judgments, hub cache and client configuration, so that nothing is written into the installation of
the package or the caches of the user.
"""

import importlib.util
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import yaml

from sams.judge.endpoint import DEFAULT_MODEL, Endpoint
from sams.runtime.errors import UserError
from sams.runtime.files import read_json, sha256_of, write_json
from sams.runtime.processes import end_child, start_child
from sams.scoring.inputs import Row, read_text, some_of

if TYPE_CHECKING:  # the child is started by name; this import makes its code part of the digest
    import sams.scoring.alpaca_eval_child  # noqa: F401

Key = tuple[str, str, str]  # instruction, baseline's output, model's output

ANNOTATOR = "weighted_alpaca_eval_gpt4_turbo"
BOOTSTRAP_SAMPLES = 200
POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Result:
    """Result of one model: its leaderboard row, and one annotation per instruction."""

    metrics: dict[str, Any]
    annotations: list[Row]


def run_alpaca_eval(
    reference: Sequence[Row],
    models: Sequence[Sequence[Row]],
    *,
    endpoint: Endpoint | None,
    recorded: Mapping[Key, float] = MappingProxyType({}),
    difficulty: Path | None = None,
    bootstrap: int = BOOTSTRAP_SAMPLES,
) -> list[Result]:
    """Score models against reference outputs of the same instructions in the same order.

    Args:
        reference: the baseline's rows {instruction, output, generator}.
        models: rows of each model.
        endpoint: the judge; None if `recorded` holds every judgment. Paid calls are planned first.
        recorded: known preferences, 1 (baseline) to 2 (model).
        difficulty: checked difficulty table; None for no length control.
        bootstrap: samples for the standard error of the length-controlled win rate; 0 for none.

    Raises:
        UserError: instructions without a verdict; calls that failed or would cost too much.
        DryRun: in a dry run.
    """
    with tempfile.TemporaryDirectory(prefix="sams-alpaca-eval-") as name:
        folder = Path(name)
        if difficulty is not None:
            _make_hub_cache(folder / "hub", difficulty)
        write_json(
            folder / "job.json",
            {
                "reference": list(reference),
                "models": [list(rows) for rows in models],
                "annotators_config": _annotator(endpoint, folder),
                "annotation_kwargs": {
                    "num_procs": 1 if endpoint is None else endpoint.concurrency,
                    "chunksize": None,  # all at once; the proxy stores the answers
                },
                "plan_calls": endpoint is not None and endpoint.proxy is not None,
                "length_control": difficulty is not None,
                "bootstrap": bootstrap,
            },
        )
        for number, rows in enumerate(models):
            if known := _known(reference, rows, recorded):
                write_json(folder / f"annotations-{number}.json", known)
        _run(folder, _environment(folder, endpoint), endpoint)
        results = [Result(**result) for result in read_json(folder / "result.json")]
    for rows, result in zip(models, results, strict=True):
        _check_coverage(rows, result)
    return results


def key_of(reference: Row, output: Row) -> Key:
    """Return the key of a judgment."""
    return reference["instruction"], reference["output"], output["output"]


def _known(reference: Sequence[Row], outputs: Sequence[Row], recorded: Mapping[Key, float]) -> list[Row]:
    """Return the recorded judgments of one model, in the form of the package's store."""
    keys = [key_of(*pair) for pair in zip(reference, outputs, strict=True)]
    return [
        {
            "instruction": key[0],
            "output_1": key[1],
            "output_2": key[2],
            "annotator": ANNOTATOR,
            "preference": recorded[key],
        }
        for key in keys
        if key in recorded
    ]


def _annotator(endpoint: Endpoint | None, folder: Path) -> str:
    """Return the annotator of the package; for another judge model, a copy of its configuration with that name."""
    if endpoint is None or endpoint.model == DEFAULT_MODEL:
        return ANNOTATOR
    package = importlib.util.find_spec("alpaca_eval")
    assert package is not None and package.origin is not None
    configs = Path(package.origin).parent / "evaluators_configs"
    config = yaml.safe_load((configs / ANNOTATOR / "configs.yaml").read_text(encoding="utf-8"))
    settings = config[ANNOTATOR]
    settings["prompt_template"] = str(configs / settings["prompt_template"])
    # The package recognises chat models by OpenAI names; here every judge is a chat model.
    settings["completions_kwargs"].update(model_name=endpoint.model, requires_chatml=True)
    path = folder / "annotator" / "configs.yaml"
    path.parent.mkdir()
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return str(path)


def _make_hub_cache(hub: Path, difficulty: Path) -> None:
    """Write the table in the layout of the hub's cache, from which the package reads it."""
    commit = sha256_of(difficulty)[:40]
    repository = hub / "datasets--tatsu-lab--alpaca_eval"
    for path, text in (
        (repository / "refs" / "main", commit),
        (repository / "snapshots" / commit / "df_gamed.csv", read_text(difficulty)),
    ):
        path.parent.mkdir(parents=True)
        path.write_text(text, encoding="utf-8")


def _environment(folder: Path, endpoint: Endpoint | None) -> dict[str, str]:
    clients = folder / "clients.yaml"
    # The package creates a client for every call; `judge_client` returns one per process.
    client: dict[str, Any] = {"client_class": "sams.judge.client.no_judge"}
    if endpoint is not None:
        client = {
            "client_class": "sams.judge.client.judge_client",
            "base_url": endpoint.base_url,
            "token": endpoint.token,
        }
    clients.write_text(yaml.safe_dump({"default": [client]}), encoding="utf-8")
    quiet = {} if sys.stderr.isatty() else {"TQDM_DISABLE": "1"}
    return {
        **{key: value for key, value in os.environ.items() if key != "DATASETS_FORCE_DOWNLOAD"},
        **quiet,
        "OPENAI_CLIENT_CONFIG_PATH": str(clients),
        "IS_ALPACA_EVAL_2": "True",
        "PYTHON_DOTENV_DISABLED": "1",
        "HF_HOME": str(folder),
        "HF_HUB_CACHE": str(folder / "hub"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }


def _run(folder: Path, environment: dict[str, str], endpoint: Endpoint | None) -> None:
    process = start_child(["sams.scoring.alpaca_eval_child", str(folder)], env=environment)
    try:
        waiting = proxy = endpoint.proxy if endpoint is not None else None
        while process.poll() is None:
            if endpoint is not None:
                endpoint.check()
            if waiting is not None and (folder / "planned").exists():
                waiting.admit()
                (folder / "admitted").touch()
                waiting = None
            time.sleep(POLL_SECONDS)
    finally:
        end_child(process)
    if proxy is not None:
        proxy.check_complete()
    if process.returncode:
        raise RuntimeError(f"alpaca_eval ended with status {process.returncode}; its messages are above")


def _check_coverage(rows: Sequence[Row], result: Result) -> None:
    """Raise an error for instructions without a verdict, which the package omits."""
    judged = {row["instruction"] for row in result.annotations if row.get("preference") is not None}
    unjudged = [row["instruction"] for row in rows if row["instruction"] not in judged]
    if unjudged:
        raise UserError(
            f"{len(unjudged)} of {len(rows)} instructions have no verdict of the judge: {some_of(unjudged)}",
            remedy="see the messages above, and run it again",
        )
    order = [row["instruction"] for row in result.annotations]
    if order != [row["instruction"] for row in rows] or result.metrics["n_total"] != len(rows):
        raise RuntimeError("alpaca_eval changed the order or the number of the instructions")
