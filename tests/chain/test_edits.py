"""What runs again after an edit on a finished study, and what `snakemake -n` says of it.

The outputs are empty files that Snakemake has marked as made by the jobs (`--touch`): what it compares is real.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from sams.runtime.files import write_json
from sams.study.code import ENTRY_POINTS
from tests.chain.test_workflow import jobs
from tests.conftest import ROOT

MODEL = {
    "model_type": "llama",
    "vocab_size": 8,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
}
STUDY: dict[str, Any] = {
    "study": "edits",
    "setting": "own",
    "methods": ["sft", "dpo", "ipo", "dpo-random", "dpo-sams"],
    "model": {"path": "start", "architecture": None, "chat_template": "template.jinja"},
    "data": {"world": None, "train": "train.jsonl", "test": "test.jsonl", "sft": "sft"},
    "method_settings": {
        "dpo": {"selector": "all"},
        "ipo": {"selector": "all", "loss": "ipo"},
        "dpo-random": {"selector": "random", "ratio": 0.5},
        "dpo-sams": {"selector": "sams", "ratio": 0.5},
    },
    "benchmarks": {"alpaca_eval": None, "mt_bench": None},
}
# Stages with the number of their jobs, from the first that runs again on.
METHOD = {"train_preference": 1, "export_model": 1}
REFERENCE = {"compute_reference": 1, "train_preference": 4, "export_model": 4}
SFT = {**REFERENCE, "train_sft": 1, "pretrain_scheduler": 1, "export_model": 5}
TOKENISE = {**SFT, "tokenise": 1}
DATA = {**TOKENISE, "prepare_data": 1}


@dataclass
class Finished:
    """A finished study, and a copy of the source tree that it is run from."""

    folder: Path
    source: Path

    def snakemake(self, *arguments: str) -> str:
        """Run snakemake on the study; return what it printed."""
        command = [
            sys.executable,
            "-m",
            "snakemake",
            "--snakefile",
            self.source / "Snakefile",
            "--cores",
            "1",
        ]
        command += ["--directory", self.folder, "--profile", self.source / "profiles/default"]
        command += ["--configfile", self.folder / "study.yaml", *arguments]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
        return done.stdout + done.stderr

    def rerun(self) -> tuple[dict[str, int], set[str]]:
        """Stages that a dry run would run, with their numbers of jobs, and the changes that it names."""
        output = self.snakemake("-n")
        stages = {rule: count for rule, count in jobs(output).items() if rule in ENTRY_POINTS}
        return stages, set(re.findall("Params have changed since last execution: (.*)", output))

    def write(self, settings: dict[str, Any]) -> None:
        """Write the study's file."""
        (self.folder / "study.yaml").write_text(yaml.safe_dump(settings))

    def finish(self) -> None:
        """Mark all jobs as done, with empty files."""
        rows = [line.split("\t") for line in self.snakemake("--summary").splitlines()]
        for name in (row[0] for row in rows if row[0].startswith("results/")):
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / name).touch()
        self.snakemake("--touch", "--forceall")

    def replace(self, file: str, old: str, new: str) -> None:
        """Edit a file of the source tree."""
        path = self.source / file
        text = path.read_text()
        assert text.count(old) >= 1, f"{file} has no {old!r}"
        path.write_text(text.replace(old, new, 1))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The study and the source tree before any edit."""
    study = Finished(tmp_path_factory.mktemp("finished"), tmp_path_factory.mktemp("source"))
    for name in ("sams", "rules", "config", "envs", "profiles", "workflow", "Snakefile"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
        copy(ROOT / name, study.source / name)
    folder = study.folder
    for name in ("sft", "models/a", "models/b"):
        (folder / name).mkdir(parents=True)
    for name in ("train.jsonl", "test.jsonl", "sft/part.jsonl", "template.jinja"):
        (folder / name).write_text(f"{name}\n")
    for name in ("a", "b"):
        write_json(folder / f"models/{name}/config.json", MODEL)
        (folder / f"models/{name}/model.safetensors").write_text(name)
    (folder / "start").symlink_to("models/a")
    study.write(STUDY)
    study.finish()
    return study


@pytest.fixture
def finished(made: Finished, tmp_path: Path) -> Iterator[Finished]:
    """The study, put back after the test as it was before."""
    kept = tmp_path / "kept"
    inputs = ("train.jsonl", "template.jinja", "sft", "start", "study.yaml")
    shutil.copytree(made.source, kept / "source", symlinks=True)
    for name in inputs:
        copy = shutil.copytree if name == "sft" else shutil.copy2
        copy(made.folder / name, kept / name, **({} if name == "sft" else {"follow_symlinks": False}))
    yield made
    shutil.rmtree(made.source)
    shutil.copytree(kept / "source", made.source, symlinks=True)
    shutil.rmtree(made.folder / "sft")
    for name in inputs:
        (made.folder / name).unlink(missing_ok=True)
        shutil.move(kept / name, made.folder / name)


def add_loss(study: Finished) -> None:
    """A loss as a user adds one: a file, and a line in the table."""
    shutil.copyfile(study.source / "sams/losses/ipo.py", study.source / "sams/losses/mine.py")
    study.replace(
        "sams/losses/table.py",
        '    "ipo": Entry(',
        '    "mine": Entry("sams.losses.mine:IPO"),\n    "ipo": Entry(',
    )


def add_selector(study: Finished) -> None:
    """A selector as a user adds one: a file, and a line in the table."""
    folder = study.source / "sams/scheduling/selectors"
    shutil.copyfile(folder / "top_margin.py", folder / "my_margin.py")
    study.replace(
        "sams/scheduling/selectors/table.py",
        '    "top_margin": Entry(',
        '    "my_margin": Entry("sams.scheduling.selectors.my_margin:TopMargin"),\n    "top_margin": Entry(',
    )


def edit_what_computes_nothing(study: Finished) -> None:
    """A docstring, a comment, a log line, the name of a GPU, an exit status, the words of an error."""
    study.replace("sams/training/loop.py", '"""', '"""Another first line. ')
    study.replace("sams/training/passes.py", "import torch\n", "import torch  # a comment\n")
    logger = "log = logging.getLogger(__name__)\n"
    study.replace("sams/training/tuning.py", logger, f'{logger}log.debug("read")\n')
    study.replace(
        "sams/runtime/gpus.py",
        "GPUS = {\n",
        'GPUS = {\n    "B300": Gpu(268.0 * GIB, 8.0e12, 2500e12, 0.3),\n',
    )
    study.replace("sams/runtime/watch.py", "EXIT_HUNG = 70", "EXIT_HUNG = 71")
    study.replace("sams/runtime/processes.py", "EXIT_INTERRUPTED = 75", "EXIT_INTERRUPTED = 76")
    study.replace("sams/data/tokenise.py", 'f"no row remains after', 'f"nothing remains after')


def nothing_new(study: Finished) -> None:
    """Sources that were touched, or written again with the same content."""
    for name in ("train.jsonl", "template.jinja", "sft/part.jsonl", "models/a/model.safetensors"):
        text = (study.folder / name).read_text()
        (study.folder / name).unlink()
        (study.folder / name).write_text(text)


def test_edits_that_change_no_result_run_nothing(finished: Finished) -> None:
    add_loss(finished)
    add_selector(finished)
    edit_what_computes_nothing(finished)
    nothing_new(finished)
    assert finished.rerun() == ({}, set())


def older_data(study: Finished) -> None:
    (study.folder / "train.jsonl").write_text("other rows\n")
    os.utime(study.folder / "train.jsonl", (0, 0))


def a_file_more(study: Finished) -> None:
    (study.folder / "sft/more.jsonl").write_text("more\n")


def another_template(study: Finished) -> None:
    (study.folder / "template.jinja").write_text("another\n")


def moved_link(study: Finished) -> None:
    (study.folder / "start").unlink()
    (study.folder / "start").symlink_to("models/b")


def beta_of_one_method(study: Finished) -> None:
    study.write(
        {
            **STUDY,
            "method_settings": {
                **STUDY["method_settings"],
                "ipo": {"loss": "ipo", "beta": 0.3, "selector": "all"},
            },
        }
    )


def formula_of_one_loss(study: Finished) -> None:
    study.replace("sams/losses/ipo.py", "return ", "return 1.0 * ")


def code_of_one_selector(study: Finished) -> None:
    study.replace("sams/scheduling/selectors/random.py", "return ", "return 1 and ")


def scheduler_networks(study: Finished) -> None:
    study.replace("sams/scheduling/networks.py", "\nclass ", "\nADDED = 1\n\n\nclass ")


def the_loop(study: Finished) -> None:
    study.replace("sams/training/loop.py", "\ndef train(", "\nADDED = 1\n\n\ndef train(")


def the_reference(study: Finished) -> None:
    study.replace("sams/training/reference.py", "MOST_ITEMS = 32", "MOST_ITEMS = 16")


@pytest.mark.parametrize(
    ("edit", "stages", "named"),
    [
        (beta_of_one_method, METHOD, "preference.beta: 0.1 -> 0.3"),
        (formula_of_one_loss, METHOD, "code of sams.losses.ipo"),
        (code_of_one_selector, METHOD, "code of sams.scheduling.selectors.random"),
        (scheduler_networks, {**METHOD, "pretrain_scheduler": 1}, "code of sams.scheduling.networks"),
        (the_reference, REFERENCE, "code of sams.training.reference"),
        (the_loop, SFT, "code of sams.training.loop"),
        (moved_link, SFT, "start/model.safetensors (source changed)"),
        (another_template, TOKENISE, "template.jinja (source changed)"),
        (older_data, DATA, "train.jsonl (source changed)"),
        (a_file_more, DATA, "sft (source changed)"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_an_edit_runs_what_depends_on_it_and_is_named(
    edit: Callable[[Finished], None], stages: dict[str, int], named: str, finished: Finished
) -> None:
    edit(finished)
    assert finished.rerun() == (stages, {named})


def test_a_method_with_a_loss_and_a_selector_of_the_users_own_runs_its_jobs_alone(finished: Finished) -> None:
    add_loss(finished)
    add_selector(finished)
    settings = {**STUDY["method_settings"], "mine": {"loss": "mine", "selector": "my_margin", "ratio": 0.5}}
    finished.write({**STUDY, "methods": [*STUDY["methods"], "mine"], "method_settings": settings})
    stages, _ = finished.rerun()
    assert stages == METHOD


@pytest.mark.slow
def test_a_further_benchmark_leaves_the_answers_and_judgments_of_the_others(finished: Finished) -> None:
    judge = {"kind": "openai", "base_url": "http://localhost:9/v1", "model": "judge"}
    (finished.folder / "prompts.jsonl").write_text('{"prompt": "Say hello."}\n')
    benchmarks = {"judge": judge, "alpaca_eval": None, "mt_bench": None, "own_prompts": "prompts.jsonl"}
    finished.write(STUDY | {"benchmarks": benchmarks})
    finished.finish()
    assert finished.rerun() == ({}, set())
    (finished.folder / "baseline.json").write_text("[]")
    further = {"alpaca_eval": {"reference_outputs": "baseline.json"}}
    finished.write(STUDY | {"benchmarks": benchmarks | further})
    methods = len(STUDY["methods"])
    again = jobs(finished.snakemake("-n"))
    assert {
        name: again[name] for name in again if "prompts" in name or "alpaca" in name or "questions" in name
    } == {
        "prepare_questions": 1,
        "generate_alpaca_eval": methods,
        "score_alpaca_eval": methods,
    }
