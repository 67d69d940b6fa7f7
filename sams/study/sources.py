"""Files and folders outside the results that each stage reads."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sams.runtime.digests import digest_of_source
from sams.study.model_files import BESIDE_WEIGHTS, TOKENIZER, WEIGHTS, matching
from sams.study.recipes import (
    DataRecipe,
    ExportRecipe,
    PreferenceRecipe,
    PretrainRecipe,
    QuestionsRecipe,
    SftRecipe,
    TokeniseRecipe,
)
from sams.study.settings import Settings


def sources_of(recipe: Settings) -> list[str]:
    """Return the local files and folders of a recipe that its job reads in addition to results of other jobs.

    Models and data sets of a hub are left out: their revision identifies them. Files that do not exist are
    included.
    """
    given: Sequence[str | None] = []
    match recipe:
        case DataRecipe(data=data):
            given = [_local(source) for source in data.sources.values()]
        case QuestionsRecipe():
            given = [value for keys in recipe.benchmarks.values() for value in keys.values()]
        case TokeniseRecipe(model=model):
            given = [model.chat_template, *_files(model.path, "config.json", *TOKENIZER)]
        case SftRecipe(model=model, watching=watching):
            given = [*_files(model.path, "config.json", *WEIGHTS), *_encoder(watching and watching.scheduler)]
        case PretrainRecipe() | PreferenceRecipe():
            given = _encoder(recipe.scheduler)
        case ExportRecipe(model=model):
            given = [model.chat_template, *_files(model.path, *BESIDE_WEIGHTS, *WEIGHTS)]
    return sorted({source for source in given if isinstance(source, str)})


def digests_of_sources(recipe: Settings) -> dict[str, str]:
    """Return the digest of each existing file or folder of `sources_of`."""
    return {source: digest_of_source(Path(source)) for source in sources_of(recipe) if Path(source).exists()}


def _local(source: str | None) -> str | None:
    """Return the file or folder of a data source; None for a hub id."""
    if source is None or Path(source).exists():
        return source
    folder = source.partition(":")[0].partition("@")[0]  # folder@revision:split
    return folder if Path(folder).is_dir() else None


def _files(folder: str | None, *patterns: str) -> list[str]:
    """Return the files of a local model; none for a model of the hub."""
    if folder is None or not Path(folder).is_dir():
        return []
    return [str(file) for file in matching(Path(folder), patterns)]


def _encoder(scheduler: Any) -> list[str]:
    """Return the folder of the scheduler's encoder; empty without one."""
    return [scheduler.encoder] if scheduler is not None and Path(scheduler.encoder).is_dir() else []
