"""Code that each stage's result depends on: its entry point, its own loss, selector and questions."""

import functools

from sams.losses.table import LOSSES
from sams.runtime.code import code_of
from sams.scheduling.selectors.table import SELECTORS
from sams.study.recipes import (
    AssessRecipe,
    GenerateRecipe,
    PreferenceRecipe,
    PretrainRecipe,
    QuestionsRecipe,
    SftRecipe,
)
from sams.study.settings import Preference, Settings, benchmark_settings

ENTRY_POINTS = {
    "prepare_data": "sams.data.prepare",
    "prepare_questions": "sams.scoring.questions",
    "tokenise": "sams.data.tokenise",
    "train_sft": "sams.training.sft",
    "pretrain_scheduler": "sams.training.pretrain_scheduler",
    "compute_reference": "sams.training.reference",
    "train_crossfit": "sams.training.crossfit",
    "train_preference": "sams.training.preference",
    "export_model": "sams.training.export",
    "assess": "sams.generation.assess",
    "generate_answers": "sams.generation.generate",
    "sample_pairs": "sams.generation.on_policy",
    "make_difficulty": "sams.scoring.difficulty",
    **{f"score_{name}": f"sams.scoring.{name}" for name in benchmark_settings()},
}
"""Module of each stage, started by `python -m`."""

WATCHING = "sams.training.watching"
"""Module that trains a scheduler during SFT, imported by name: other SFT jobs do not depend on it."""


def code_of_job(stage: str, recipe: Settings) -> dict[str, str]:
    """Return the `sams` modules that a job runs, each with a digest of its code.

    Args:
        stage: key of `ENTRY_POINTS`.
        recipe: the job's recipe, which names its loss and its selector.
    """
    module = ENTRY_POINTS[stage]
    # The files of benchmarks also have questions, captions and pages, on which a score does not depend.
    entry = f"{module}:main" if stage.startswith("score_") else module
    return dict(_code_of(entry, *named_modules(recipe)))


_code_of = functools.cache(code_of)  # many jobs share a loss and a selector


def named_modules(recipe: Settings) -> list[str]:
    """Return the modules that a job imports by a name in its recipe: of losses, selectors and benchmarks."""
    match recipe:
        case PreferenceRecipe(training=training):
            return [*_loss(training), training.selector_entry.module]
        case AssessRecipe(runs=runs):
            return sorted({module for run in runs.values() for module in _loss(run)})
        case PretrainRecipe():
            return [SELECTORS["sams"].module]
        case SftRecipe(watching=watching):
            return [] if watching is None else [WATCHING, SELECTORS["sams"].module]
        case GenerateRecipe(benchmark=name):
            return [questions_of(name)]
        case QuestionsRecipe(benchmarks=benchmarks):
            return [questions_of(name) for name in benchmarks]
        case _:
            return []


def questions_of(benchmark: str) -> str:
    """Return module and name of the questions of a benchmark; `samples` are the test prompts."""
    return f"sams.scoring.{'question_set' if benchmark == 'samples' else benchmark}:QUESTIONS"


def _loss(training: Preference) -> list[str]:
    return [LOSSES[training.loss].module]
