"""The training stages on a tiny study, each by its torchrun line, on machines without pyarrow too.

    python -m benchmarks.gpu_stages '{"device": "cuda", "precision": "bfloat16"}'

SFT, export, then reference and pretraining of the scheduler at the same time, then preference training with SamS.
Prints one JSON line per stage. The stages read and write tables with pyarrow. Where it is missing (or
`without_pyarrow` is set), columns of tokens and tables of log-probs are JSON files: `Tables` stands for the few
functions that the stages call. Everything else is the stage's own code in a process of its own.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
WORDS = 40
STAGES = {
    "sft": "sams.training.sft",
    "export": "sams.training.export",
    "reference": "sams.training.reference",
    "pretrain_scheduler": "sams.training.pretrain_scheduler",
    "preference": "sams.training.preference",
}


class Tables:
    """Parquet tables as JSON files: `pyarrow.array`, `.table` and `.parquet` as the stages call them."""

    @staticmethod
    def install() -> None:
        """Make `import pyarrow` return the stand-in, and read tokens from JSON."""
        import sams.training.tasks.base as base

        def read_table(file: Path) -> Any:
            return types.SimpleNamespace(to_pydict=lambda: json.loads(file.read_text(encoding="utf-8")))

        def read_columns(folder: Path) -> dict[str, Any]:
            columns: dict[str, Any] = json.loads((folder / "columns.json").read_text(encoding="utf-8"))
            return columns

        parquet = types.ModuleType("pyarrow.parquet")
        parquet.__dict__.update(
            read_table=read_table,
            write_table=lambda table, file: Path(file).write_text(json.dumps(table), encoding="utf-8"),
        )
        pyarrow = types.ModuleType("pyarrow")
        pyarrow.__dict__.update(array=lambda values: values.tolist(), table=dict, parquet=parquet)
        for module in (pyarrow, parquet):
            # Libraries that ask whether it is installed look at this.
            module.__spec__ = importlib.machinery.ModuleSpec(module.__name__, None)
        sys.modules |= {"pyarrow": pyarrow, "pyarrow.parquet": parquet}
        base.read_columns = read_columns


def pairs(count: int, seed: int) -> dict[str, list[Any]]:
    """Return pairs with a lesson: the chosen response repeats the prompt's first word, the rejected another one."""
    draw = random.Random(seed)
    columns: dict[str, list[Any]] = {
        name: [] for name in ("id", "prompt_ids", "chosen_ids", "rejected_ids", "flipped")
    }
    for number in range(count):
        prompt = [1, *(draw.randrange(3, 3 + WORDS) for _ in range(draw.randint(3, 9)))]
        other = draw.choice([word for word in range(3, 3 + WORDS) if word != prompt[1]])
        row = (
            f"{seed:04x}{number:012x}",
            prompt,
            [prompt[1]] * draw.randint(1, 4) + [2],
            [other] * draw.randint(1, 4) + [2],
            False,
        )
        for column, value in zip(columns.values(), row, strict=True):
            column.append(value)
    return columns


def write_tokens(folder: Path, arrow: bool) -> None:
    """Write tokeniser and splits as the stage `tokenise` does, or as JSON columns without pyarrow."""
    import transformers
    from tokenizers import Tokenizer, models

    from sams.data.tokens import token_writer
    from sams.runtime.files import write_manifest

    names = ["<pad>", "<bos>", "<eos>", *(f"w{number}" for number in range(WORDS))]
    vocabulary = {word: number for number, word in enumerate(names)}
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>")),
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
    ).save_pretrained(folder / "tokenizer")
    examples = pairs(512, 3)
    sft = {"id": examples["id"], "prompt_ids": examples["prompt_ids"], "response_ids": examples["chosen_ids"]}
    for split, columns in {"train": pairs(512, 1), "test": pairs(128, 2), "sft": sft}.items():
        if arrow:
            with token_writer(folder / split, list(columns), unknown=None) as writer:
                writer.write(columns)
        else:
            (folder / split).mkdir()
            (folder / split / "columns.json").write_text(json.dumps(columns), encoding="utf-8")
    write_manifest(folder)


def recipes(precision: str) -> dict[str, Any]:
    """Return the recipe of each stage: a Llama of 3 M weights, 16 steps of 32 items."""
    from sams.study.recipes import ExportRecipe, PreferenceRecipe, PretrainRecipe, ReferenceRecipe, SftRecipe
    from sams.study.settings import Model, Preference, Pretrain, Scheduler, Sft

    model = Model.model_validate(
        {
            "architecture": {
                "model_type": "llama",
                "hidden_size": 256,
                "num_hidden_layers": 4,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "intermediate_size": 688,
                "max_position_embeddings": 128,
            },
            "tokenizer": "words",
            "precision": precision,
        }
    )
    training = {
        "batch_size": 32,
        "micro_batch_size": 16,
        "scoring_micro_batch_size": 32,
        "learning_rate": 3e-4,
        "checkpoint_every": 8,
        "evaluations": 1,
        "log_every": 4,
    }
    scheduler = Scheduler()
    preference = training | {"selector": "sams", "ratio": 0.5}
    return {
        "sft": SftRecipe(seed=0, model=model, training=Sft.model_validate(training)),
        "export": ExportRecipe(model=model),
        "reference": ReferenceRecipe(model=model, micro_batch_size=64),
        "pretrain_scheduler": PretrainRecipe(
            seed=0, model=model, scheduler=scheduler, training=Pretrain.model_validate(training)
        ),
        "preference": PreferenceRecipe(
            seed=0,
            method="dpo-sams",
            model=model,
            training=Preference.model_validate(preference),
            scheduler=scheduler,
        ),
    }


def start(stage: str, recipe: Any, arrow: bool, device: str, folder: Path, **paths: Path) -> Any:
    """Start a stage: under torchrun with one process, except the export, which is a process of its own."""
    from sams.study.recipes import Job

    job = Job.model_validate({"launch": {"device": device, "timeout_minutes": 5.0}}).model_dump_json()
    given = json.dumps({"stage": stage, "arrow": arrow, "recipe": recipe.model_dump_json()})
    words = [f"{name}={path}" for name, path in paths.items()]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
    command = [sys.executable, *([] if stage == "export" else torchrun), "-m", "benchmarks.gpu_stages"]
    log = (folder / f"{stage}.log").open("w", encoding="utf-8")
    return subprocess.Popen(
        [*command, given, *words],
        cwd=ROOT,
        env=os.environ | {"SAMS_JOB": job, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        stdout=log,
        stderr=subprocess.STDOUT,
    )


def finished(stage: str, process: Any, started: float, folder: Path) -> dict[str, Any]:
    """Wait for a stage; return its seconds, the time of its first step, and its error."""
    status = process.wait()
    text = (folder / f"{stage}.log").read_text(encoding="utf-8")
    figures: dict[str, Any] = {"seconds": round(time.monotonic() - started, 1)}
    if found := re.search(r"first step ([\d.]+) s after", text):
        figures["first_step_seconds"] = float(found[1])
    if found := re.search(r"rows are ([^;\n]+)", text):
        figures["rows"] = found[1]
    if status:
        figures["error"] = text[-3000:]
    return figures


def main(arrow: bool, device: str, precision: str) -> None:
    """Run the stages and print a JSON line for each."""
    recipe = recipes(precision)

    def report(stage: str, figures: dict[str, Any]) -> None:
        print(json.dumps({stage: figures}), flush=True)
        if "error" in figures:
            raise SystemExit(1)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokens, model = folder / "tokens", folder / "model"
        tokens.mkdir()
        write_tokens(tokens, arrow)
        print(json.dumps({"tables": "pyarrow" if arrow else "JSON, for want of pyarrow"}), flush=True)

        def begin(stage: str, **paths: Path) -> tuple[Any, float]:
            started = time.monotonic()
            return start(stage, recipe[stage], arrow, device, folder, **paths), started

        def job(stage: str) -> dict[str, Path]:
            return {"tokens": tokens, "out": folder / stage, "checkpoints": folder / f"{stage}-checkpoints"}

        report("sft", finished("sft", *begin("sft", **job("sft")), folder))
        exporting = begin("export", tokens=tokens, trained=folder / "sft" / "trained", out=model)
        report("export", finished("export", *exporting, folder))
        together = {
            "reference": begin("reference", tokens=tokens, model=model, out=folder / "reference"),
            "pretrain_scheduler": begin("pretrain_scheduler", model=model, **job("pretrain_scheduler")),
        }
        for stage, begun in together.items():
            report(stage, finished(stage, *begun, folder))
        inputs = {"reference": folder / "reference", "scheduler": folder / "pretrain_scheduler" / "weights"}
        begun = begin("preference", model=model, **inputs, **job("preference"))
        figures = finished("preference", *begun, folder)
        metrics = folder / "preference" / "train_metrics.json"
        if metrics.is_file():
            figures["test_accuracy"] = json.loads(metrics.read_text(encoding="utf-8"))["test_accuracy"]
        report("preference", figures)


def stage(given: dict[str, Any], words: list[str]) -> None:
    """Run one stage in this process."""
    import logging

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", stream=sys.stderr)
    module = importlib.import_module(STAGES[given["stage"]])
    if not given["arrow"]:
        Tables.install()
    paths = {name: Path(path) for name, _, path in (word.partition("=") for word in words)}
    module.main(recipe=given["recipe"], **paths)


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    if "stage" in given:
        stage(given, sys.argv[2:])
    else:
        installed = importlib.util.find_spec("pyarrow") is not None
        main(installed and not given.get("without_pyarrow"), given["device"], given["precision"])
