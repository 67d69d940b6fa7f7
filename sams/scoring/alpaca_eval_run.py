"""Prepares a private folder for the alpaca_eval package, runs it there in a child process, reads the result.

Nothing is written into the package's installation or the user's caches: judgments, hub cache and client
configuration live in a temporary folder that goes when the run is over.
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

if TYPE_CHECKING:  # the child is started by name; imported here, its code counts as part of this one's
    import sams.scoring.alpaca_eval_child  # noqa: F401

Key = tuple[str, str, str]  # instruction, baseline's output, model's output

ANNOTATOR = "weighted_alpaca_eval_gpt4_turbo"
BOOTSTRAP_SAMPLES = 200
POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Result:
    """What the package says of one model: its leaderboard row, and one annotation per instruction."""

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
        models: for each model its rows, likewise.
        endpoint: the judge; None when `recorded` holds every judgment. Calls that cost are rehearsed first.
        recorded: preferences known already, 1 (baseline) to 2 (model).
        difficulty: checked difficulty table; None leaves length control out.
        bootstrap: samples for the standard error of the length-controlled win rate; 0 leaves it out.

    Raises:
        UserError: an instruction without a verdict, naming some; calls that failed or would cost too much.
        DryRun: only an estimate of the calls was wanted.
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
                    "chunksize": None,  # all at once; what is answered is kept by the proxy
                },
                "rehearse": endpoint is not None and endpoint.proxy is not None,
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
    """What a judgment is known by."""
    return reference["instruction"], reference["output"], output["output"]


def _known(reference: Sequence[Row], outputs: Sequence[Row], recorded: Mapping[Key, float]) -> list[Row]:
    """Recorded judgments of one model's outputs, in the form of the package's own store."""
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
    """The package's annotator; for another judge model a copy of its configuration with that model's name."""
    if endpoint is None or endpoint.model == DEFAULT_MODEL:
        return ANNOTATOR
    package = importlib.util.find_spec("alpaca_eval")
    assert package is not None and package.origin is not None
    configs = Path(package.origin).parent / "evaluators_configs"
    config = yaml.safe_load((configs / ANNOTATOR / "configs.yaml").read_text(encoding="utf-8"))
    settings = config[ANNOTATOR]
    settings["prompt_template"] = str(configs / settings["prompt_template"])
    # The package tells chat models by their OpenAI names; here every judge is one.
    settings["completions_kwargs"].update(model_name=endpoint.model, requires_chatml=True)
    path = folder / "annotator" / "configs.yaml"
    path.parent.mkdir()
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return str(path)


def _make_hub_cache(hub: Path, difficulty: Path) -> None:
    """Lay the table out as the hub's cache would, where the package looks for it."""
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
    # The package builds a client for every call; ours is one per process.
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
            if waiting is not None and (folder / "rehearsed").exists():
                waiting.admit()
                (folder / "admitted").touch()
                waiting = None
            time.sleep(POLL_SECONDS)
    finally:
        end_child(process)
    if proxy is not None:
        proxy.check_complete()
    if process.returncode:
        raise RuntimeError(f"alpaca_eval ended with status {process.returncode}; its own words are above")


def _check_coverage(rows: Sequence[Row], result: Result) -> None:
    """The package leaves out what has no verdict and goes on; here that is an error."""
    judged = {row["instruction"] for row in result.annotations if row.get("preference") is not None}
    unjudged = [row["instruction"] for row in rows if row["instruction"] not in judged]
    if unjudged:
        raise UserError(
            f"{len(unjudged)} of {len(rows)} instructions have no verdict of the judge: {some_of(unjudged)}",
            remedy="see above what the judge said, and run it again",
        )
    order = [row["instruction"] for row in result.annotations]
    if order != [row["instruction"] for row in rows] or result.metrics["n_total"] != len(rows):
        raise RuntimeError("alpaca_eval changed the order or the number of the instructions")
