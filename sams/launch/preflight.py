"""Stage `preflight`: check GPUs, disk, judge, data and models before anything is computed."""

import importlib.util
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import typer

from sams.data.sources import (
    data_set_name,
    is_hub_id,
    is_missing_path,
    looks_like_file,
    similar_data_set,
    similar_file,
)
from sams.judge.known import judge_warnings
from sams.launch.machine import gpus_here, processes
from sams.runtime.errors import UserError, first_line, nearest
from sams.runtime.extras import require
from sams.runtime.files import write_json
from sams.scoring.fetch import FOLDER, PUBLISHED, check, published
from sams.scoring.question_set import question_set
from sams.scoring.table import judged
from sams.study.rates import rates_to_check
from sams.study.settings import Model
from sams.study.study import Study

log = logging.getLogger("preflight")

DISK_BYTES = 2 * 2**30
HUB_SECONDS = 30.0
ENCODERS = ("random", "all-MiniLM-L6-v2")


def main(study: str, out: Path, results: Path = Path("results")) -> None:
    """Check GPUs, keys, paths and disk, prepare the MLflow database, and write the findings to `out`."""
    from sams.runtime.provenance import commit, environment
    from sams.runtime.stage import read_recipe

    settings = read_recipe(study, Study)
    findings: dict[str, Any] = {"gpus": check_gpus(settings), "disk_bytes": check_disk(results)}
    check_packages(settings)
    check_lm_eval(settings)
    check_judge(settings)
    check_sources(settings)
    check_questions(settings)
    check_adapters(settings)
    for sentence in rates_to_check(settings):
        log.warning("warning: %s", sentence)
    findings["commits"] = hub_commits(settings)
    if settings.tracking.enabled:
        from sams.tracking.log import prepare_database

        prepare_database(results)
    write_json(out, findings | {"environment": environment(), "commit": commit()})
    typer.echo(f"this machine is ready: {findings}")


def check_gpus(study: Study) -> int:
    """Check that each process has a GPU, or all run on CPUs, and return the number of GPUs.

    Raises:
        UserError: the settings do not fit this machine; the message names the key and a value for it.
    """
    gpus = gpus_here()
    here = processes(study.launch, gpus)
    where = "launch.nproc_per_node"
    if study.launch.device == "cuda" and not gpus:
        raise UserError(
            "cuda, but this machine shows no GPU", where="launch.device", remedy="set auto or cpu"
        )
    if study.launch.device != "cpu" and isinstance(study.launch.nproc_per_node, int) and here > gpus:
        raise UserError(
            f"{here} processes, but this machine has {gpus} GPUs",
            where=where,
            remedy="set it to auto, or launch.device to cpu",
        )
    world = study.launch.nodes * here
    if (uneven := study.undivided(world)) is not None:
        key, size = uneven
        raise UserError(f"{size} is not divisible by {world} processes", where=key, remedy=f"or set {where}")
    return gpus


def check_packages(study: Study) -> None:
    """Check that packages of extras are installed that the study needs.

    Raises:
        UserError: naming the key and the extra.
    """
    if study.uses_4bit and importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            "4-bit weights need the package bitsandbytes",
            where="lora.load_in_4bit",
            remedy="install it (extra `qlora` of this package), or set load_in_4bit: false",
        )
    if study.benchmarks.judged:
        require("score", where="benchmarks")


def check_lm_eval(study: Study) -> None:
    """Check that lm-eval is installed and knows the study's tasks, and fetch their data.

    Raises:
        UserError: naming the package, the task or its data.
    """
    if study.benchmarks.lm_eval is not None:
        from sams.judge.client import key_withheld
        from sams.scoring.lm_eval import check_tasks

        with key_withheld():  # from the code of tasks
            check_tasks(study.benchmarks.lm_eval)


def check_disk(results: Path) -> int:
    """Check that the results folder has a minimum of free space, and return the free bytes.

    Raises:
        UserError: there is less; the message names the folder.
    """
    results.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(results).free
    if free < DISK_BYTES:
        raise UserError(
            f"only {free / 2**30:.1f} GiB free", where=str(results), remedy="free space or move the folder"
        )
    return free


def check_judge(study: Study) -> None:
    """Check that a judge endpoint has its key and judges a question with a known answer.

    Raises:
        UserError: the key is missing or the call fails; the message names the variable or the endpoint.
    """
    judge = study.benchmarks.judge
    if judge.agreement is not None:
        from sams.tables.agreement_note import read_agreement

        read_agreement(Path(judge.agreement))
    if not study.benchmarks.judged or judge.kind != "openai":
        return
    for sentence in judge_warnings(judge):
        log.warning("warning: %s", sentence)
    from sams.judge.trial import try_out

    kinds = {benchmark.judgment for benchmark in judged(study)}
    comparisons = [call for benchmark in judged(study) for call in benchmark.trial()]
    try_out(judge, pairs="pair" in kinds, ratings="rating" in kinds, comparisons=comparisons)


def check_sources(study: Study) -> None:
    """Check that files exist and that the hub knows the ids.

    Raises:
        UserError: a source cannot be found; the message names the key.
    """
    for key, source in study.data.sources.items():
        if is_missing_path(source):
            raise UserError(
                f"no such file: {source}{similar_file(source)}",
                where=f"data.{key}",
                remedy="correct the path, or give a hub id",
            )
    for key, source in benchmark_sources(study).items():
        file, known = Path(source), published(source)
        if known is not None and file.is_file():
            check(file, known)
        elif known is None and not file.is_file():
            raise UserError(
                f"no such file: {source}{similar_file(source)}",
                where=key,
                remedy=f"correct the path; these are fetched: {', '.join(f'{FOLDER}/{name}' for name in PUBLISHED)}",
            )
    for key, model in models(study).items():
        check_model_source(model, key)
    for key, model in reward_models(study).items():
        check_reward_source(model, key)
    schedulers = {
        f"method_settings.{method}.scheduler": study.scheduler_of(method)
        for method in study.preference_methods
        if study.preference_of(method).selector_entry.reads_scheduler
    }
    shared = {"scheduler": study.scheduler} if study.pretrains else {}
    for key, scheduler in (shared | schedulers).items():
        encoder = scheduler.encoder
        if encoder not in ENCODERS and not Path(encoder).is_dir():
            raise UserError(
                f"no such folder: {encoder}{nearest(encoder, list(ENCODERS))}",
                where=f"{key}.encoder",
                remedy=f"set {' or '.join(ENCODERS)}, or name a folder",
            )


def check_questions(study: Study) -> None:
    """Check the files of the benchmarks by the scorers' own readers; those of files that are not fetched yet later.

    Raises:
        UserError: naming key, file and row.
    """
    for name, group in study.benchmarks.scored.items():
        files = [path for path in group.part(group.question_keys).values() if path is not None]
        if group.question_keys and all(Path(path).is_file() for path in files):
            question_set(name).check(group, study.data.world)


def check_model_source(model: Model, key: str) -> None:
    """Check that a model exists, and validate the weights of a local one.

    Raises:
        UserError: it cannot be used; the message names the key, the file or the tensor.
    """
    if model.path is None:
        return
    if Path(model.path).is_dir():
        from sams.policy.model import load_model
        from sams.policy.weights import check_weights

        check_weights(Path(model.path), allow_pickle=model.allow_pickle)
        load_model(model.path, model, outline=True)
    elif looks_like_file(model.path) or Path(model.path).exists():
        raise UserError(
            f"no such folder: {model.path}{similar_file(model.path)}",
            where=key,
            remedy="correct it, or give a hub id",
        )
    else:
        check_hub_model(model, key)


def check_reward_source(model: Model, key: str) -> None:
    """Check that a reward model exists, has one output and a chat template.

    Raises:
        UserError: it cannot be used; the message names the key.
    """
    from sams.scoring.reward import check_reward_model

    path = str(model.path)
    if not Path(path).is_dir():
        if looks_like_file(path) or Path(path).exists():
            raise UserError(
                f"no such folder: {path}{similar_file(path)}",
                where=key,
                remedy="correct it, or give a hub id",
            )
        check_hub_model(model, key)
    check_reward_model(path if model.revision is None else f"{path}@{model.revision}", key)


def check_adapters(study: Study) -> None:
    """Check that the start model can get the adapters of each stage.

    Raises:
        UserError: the model does not have a target module, or its weight is tied to another.
    """
    stages = study.trainings.values()
    adapters = {stage.lora.model_dump_json(): stage.lora for stage in stages if stage.lora}
    if study.model.path is None or not adapters:
        return
    import torch
    from transformers import AutoConfig

    from sams.policy.model import add_lora, from_config

    config = AutoConfig.from_pretrained(
        study.model.path, revision=study.model.revision, trust_remote_code=False
    )
    for lora in adapters.values():
        with torch.device("meta"):
            add_lora(from_config(config, study.model.attention), lora)


def models(study: Study) -> dict[str, Model]:
    """Return the models that the study starts from or scores, by config key."""
    finished = {
        f"method_settings.{method}.model.path": study.model_of(method) for method in study.finished_methods
    }
    return {"model.path": study.model} | finished


def reward_models(study: Study) -> dict[str, Model]:
    """Return the reward models of a study, by config key."""
    given = {}
    if study.on_policy is not None:
        given["on_policy.reward_model"] = study.on_policy.reward_model
    if study.benchmarks.reward_model is not None:
        given["benchmarks.reward_model.model"] = study.benchmarks.reward_model.model
    found = {}
    for key, source in given.items():
        name, _, revision = (source, "", "") if Path(source).is_dir() else source.partition("@")
        found[key] = Model(path=name, revision=revision or None)
    return found


def hub_commits(study: Study) -> dict[str, str | None]:
    """Return the commit of each hub id of the study, by `id@revision`; None if the hub does not answer.

    A revision such as `main` moves; to repeat the study, pin the commits.

    Raises:
        UserError: the hub has no such id or revision.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    hub_ids = {
        (model.path, model.revision or "main", "model")
        for model in (*models(study).values(), *reward_models(study).values())
        if model.path is not None and not Path(model.path).exists()
    }
    for source in study.data.sources.values():
        if is_hub_id(source):
            name, revision = data_set_name(source)
            hub_ids.add((name, revision or "main", "dataset"))
    commits: dict[str, str | None] = {}
    for name, revision, kind in sorted(hub_ids):
        try:
            info = HfApi().repo_info(name, repo_type=kind, revision=revision, timeout=HUB_SECONDS)
            commits[f"{name}@{revision}"] = info.sha
        except (RepositoryNotFoundError, RevisionNotFoundError) as error:
            reason, remedy = hub_problem(error, revision)
            near = similar_data_set(name) if kind == "dataset" else ""
            raise UserError(f"{reason}{near}", where=f"{kind} {name}@{revision}", remedy=remedy) from None
        except Exception as error:  # the hub's client passes on errors of its HTTP library
            commits[f"{name}@{revision}"] = None
            log.warning("%s@%s: its commit is unknown (%s)", name, revision, first_line(error))
    return commits


def benchmark_sources(study: Study) -> dict[str, str]:
    """Return the files that the benchmarks' settings name, by key."""
    return {
        f"benchmarks.{name}.{key}": value
        for name, group in study.benchmarks.judged.items()
        for key, value in group
        if isinstance(value, str) and key in (*group.question_keys, *group.source_keys)
    }


def check_hub_model(model: Model, key: str = "model.path") -> None:
    """Check that a model's config is on the hub or in its cache, and that its weights are not pickled only.

    Raises:
        UserError: it cannot be used; the message holds the hub's answer.
    """
    from huggingface_hub import HfApi, hf_hub_download

    name = str(model.path)
    try:
        hf_hub_download(name, "config.json", revision=model.revision, etag_timeout=HUB_SECONDS)
    except Exception as error:  # the hub's client passes on errors of its HTTP library
        reason, remedy = hub_problem(error, model.revision)
        raise UserError(f"{name} cannot be fetched: {reason}", where=key, remedy=remedy) from None
    try:
        info = HfApi().model_info(name, revision=model.revision, timeout=HUB_SECONDS)
    except Exception as error:  # the config is in the cache: the weights may be, too
        log.info("%s: its list of files is unknown (%s)", name, first_line(error))
        return
    files = [file.rfilename for file in info.siblings or ()]
    pickled = next((file for file in files if file.endswith((".bin", ".pt", ".pth"))), None)
    if pickled and not any(file.endswith(".safetensors") for file in files) and not model.allow_pickle:
        raise UserError(
            f"{name} has pickled weights only ({pickled})",
            where=key,
            remedy="give a revision with safetensors, or set model.allow_pickle: true",
        )


def hub_problem(error: Exception, revision: str | None) -> tuple[str, str]:
    """Return the problem behind an error of the hub's client, and its remedy."""
    from huggingface_hub import errors

    token = "export HF_TOKEN" if not os.environ.get("HF_TOKEN") else "check HF_TOKEN"
    known: tuple[tuple[type[Exception], str, str], ...] = (
        (errors.GatedRepoError, "it is gated", f"accept its terms on the hub, and {token}"),
        (errors.RevisionNotFoundError, f"it has no revision {revision}", "correct the revision"),
        (
            errors.RepositoryNotFoundError,
            "the hub has no such id, or it is private",
            f"correct the id, or {token}",
        ),
        (
            errors.LocalEntryNotFoundError,
            "the hub cannot be reached, and it is not in the cache",
            "check the network, or fetch it beforehand with `hf download`",
        ),
        (errors.EntryNotFoundError, "it has no config.json", "give a model in Hugging Face's form"),
    )
    for kind, reason, remedy in known:
        if isinstance(error, kind):
            return reason, remedy
    return first_line(error), "check the id, the network, and HF_TOKEN for a gated model"


if __name__ == "__main__":
    from sams.runtime.stage import run

    run(main)
