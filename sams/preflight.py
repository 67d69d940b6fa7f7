"""The first job of a study: what depends on this machine is checked before anything is computed."""

import logging
import os
import shutil
from pathlib import Path
from typing import Any

import typer

from sams.config import Study
from sams.data.fetch import FOLDER, PUBLISHED, check, published
from sams.data.sources import data_set_name, looks_like_file
from sams.errors import UserError
from sams.files import write_json
from sams.launch import gpus_here, processes
from sams.settings import Model

log = logging.getLogger("preflight")

DISK_BYTES = 2 * 2**30
HUB_SECONDS = 30.0


def main(study: str, out: Path, results: Path = Path("results")) -> None:
    """Check GPUs, keys, paths and disk; prepare the MLflow database; write what was found to `out`."""
    from sams.provenance import commit, environment
    from sams.stage import read_recipe

    settings = read_recipe(study, Study)
    found: dict[str, Any] = {"gpus": check_gpus(settings), "disk_bytes": check_disk(results)}
    check_judge(settings)
    check_sources(settings)
    found["commits"] = hub_commits(settings)
    if settings.tracking.enabled:
        from sams.tracking import prepare_database

        prepare_database(results)
    write_json(out, found | {"environment": environment(), "commit": commit()})
    typer.echo(f"this machine is ready: {found}")


def check_gpus(study: Study) -> int:
    """See that there are as many GPUs as processes, or none and none wanted.

    Raises:
        UserError: naming the key and what to set it to.
    """
    gpus = gpus_here()
    wanted = processes(study.launch, gpus)
    where = "launch.nproc_per_node"
    if study.launch.device == "cuda" and not gpus:
        raise UserError(
            "cuda, but this machine shows no GPU", where="launch.device", remedy="set auto or cpu"
        )
    if study.launch.device != "cpu" and isinstance(study.launch.nproc_per_node, int) and wanted > gpus:
        raise UserError(
            f"{wanted} processes, but this machine has {gpus} GPUs",
            where=where,
            remedy="set it to auto, or launch.device to cpu",
        )
    world = study.launch.nodes * wanted
    for key, size in batch_sizes(study).items():
        if size % world:
            raise UserError(
                f"{size} is not divisible by {world} processes", where=key, remedy=f"or set {where}"
            )
    return gpus


def batch_sizes(study: Study) -> dict[str, int]:
    """Global batch of every training stage, by config key."""
    sizes = {
        f"{method}.batch_size": study.preference_of(method).batch_size for method in study.preference_methods
    }
    if study.sft:
        sizes["sft.batch_size"] = study.sft.batch_size
    if study.pretrain:
        sizes["pretrain.batch_size"] = study.pretrain.batch_size
    return sizes


def check_disk(results: Path) -> int:
    """See that the results folder has room for anything at all.

    Raises:
        UserError: naming the folder.
    """
    results.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(results).free
    if free < DISK_BYTES:
        raise UserError(
            f"only {free / 2**30:.1f} GiB free", where=str(results), remedy="make room or move it"
        )
    return free


def check_judge(study: Study) -> None:
    """See that a judge behind an endpoint has its key.

    Raises:
        UserError: naming the variable.
    """
    scored = study.benchmarks.alpaca_eval or study.benchmarks.mt_bench
    if scored and study.benchmarks.judge.kind == "openai" and not os.environ.get("OPENAI_API_KEY"):
        raise UserError(
            "the judge needs a key",
            where="environment variable OPENAI_API_KEY",
            remedy="export it; it is never written anywhere",
        )


def check_sources(study: Study) -> None:
    """See that files exist and hub ids can be found, before hours are spent.

    Raises:
        UserError: naming the key.
    """
    named = {f"data.{split}": getattr(study.data, split) for split in ("train", "test", "sft")}
    for key, source in named.items():
        if source is not None and names_a_missing_path(source):
            raise UserError(f"no such file: {source}", where=key, remedy="correct the path, or give a hub id")
    for key, source in benchmark_sources(study).items():
        file, known = Path(source), published(source)
        if known is not None and file.is_file():
            check(file, known)
        elif known is None and not file.is_file():
            raise UserError(
                f"no such file: {source}",
                where=key,
                remedy=f"correct the path; these are fetched: {', '.join(f'{FOLDER}/{name}' for name in PUBLISHED)}",
            )
    for key, model in models(study).items():
        if model.path is not None and not Path(model.path).exists():
            if looks_like_file(model.path):
                raise UserError(
                    f"no such folder: {model.path}", where=key, remedy="correct it, or give a hub id"
                )
            check_hub_model(model.path, model.revision, key)


def names_a_missing_path(source: str) -> bool:
    """Whether a source of data is meant as a file or folder (`folder:split` too), and is not there."""
    name, _ = data_set_name(source)
    return looks_like_file(name) and not Path(source).exists() and not Path(name).is_dir()


def models(study: Study) -> dict[str, Model]:
    """The models that the study starts from or scores, by config key."""
    finished = {
        f"method_settings.{method}.model.path": study.model_of(method) for method in study.finished_methods
    }
    return {"model.path": study.model} | finished


def hub_commits(study: Study) -> dict[str, str | None]:
    """The commit that each hub id of the study stands for, by `id@revision`; null where the hub does not say.

    A revision such as `main` moves: whoever repeats the study pins what stands here.
    """
    from huggingface_hub import HfApi

    asked = {
        (model.path, model.revision or "main", "model")
        for model in models(study).values()
        if model.path is not None and not Path(model.path).exists()
    }
    for source in (study.data.train, study.data.test, study.data.sft):
        name, revision = data_set_name(source or "")
        if name and not looks_like_file(name) and not Path(name).exists() and not Path(source or "").exists():
            asked.add((name, revision or "main", "dataset"))
    commits: dict[str, str | None] = {}
    for name, revision, kind in sorted(asked):
        try:
            found = HfApi().repo_info(name, repo_type=kind, revision=revision, timeout=HUB_SECONDS)
            commits[f"{name}@{revision}"] = found.sha
        except Exception as error:  # the hub's client lets the errors of its HTTP library through
            commits[f"{name}@{revision}"] = None
            log.warning("%s@%s: its commit is not known (%s)", name, revision, str(error).splitlines()[0])
    return commits


def benchmark_sources(study: Study) -> dict[str, str]:
    """Files that the benchmarks' settings name, by key."""
    groups = {"alpaca_eval": study.benchmarks.alpaca_eval, "mt_bench": study.benchmarks.mt_bench}
    return {
        f"benchmarks.{name}.{key}": value
        for name, group in groups.items()
        if group is not None
        for key, value in group
        if isinstance(value, str)
    }


def check_hub_model(model: str, revision: str | None, key: str = "model.path") -> None:
    """See that a model's config can be had from the hub or its cache.

    Raises:
        UserError: saying what the hub answered.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        hf_hub_download(model, "config.json", revision=revision)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise UserError(
            f"{model} cannot be had: {str(error).splitlines()[0]}",
            where=key,
            remedy="check the id, the network, and HF_TOKEN for a gated model",
        ) from None


if __name__ == "__main__":
    from sams.stage import run

    run(main)
