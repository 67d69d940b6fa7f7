"""What each rule asks a scheduler for: GPUs, nodes, memory, time, disk; told without importing torch.

Snakemake hands these to Slurm, Kubernetes and the like; on one machine `gpu` alone limits what runs at once. Memory
and disk follow from the recipe. The time of a training job is a slot, not a forecast: a job whose time is up saves,
is queued again and goes on (docs/cluster.md). A profile's `set-resources` overrides any of it.
"""

from typing import Any

from sams.launch.machine import gpus_wanted, processes
from sams.runtime.errors import UserError
from sams.study.architectures import config_of
from sams.study.settings import Model
from sams.study.study import Study

MIB = 2**20

PROCESS_MB = 2000
"""Memory of a process that has imported torch and transformers, buffers included: 700 MB were seen on CPUs."""
ASSUMED_WEIGHTS = 8.0e9
"""Of a model whose architecture is not known here."""

TRAINING_BYTES = 16
"""Float32 weights, gradient and AdamW's two moments, of each weight."""
LOADING_BYTES = 4
"""Float32 weights, which a process holds before they go to its GPU: all of them, or under FSDP2 its shard."""
CHECKPOINT_BYTES = 3 * 12
"""Float32 weights and moments, of each weight: two checkpoints that are kept, and the one being written."""

TRAINING_MINUTES = 24 * 60
SMALL_WEIGHTS = 1.0e8
"""Weights of a model whose jobs are short."""
SMALL_MINUTES = 120

MINUTES = {
    "preflight": 30,
    "prepare_data": 120,
    "fetch_benchmark_inputs": 30,
    "prepare_questions": 30,
    "tokenise": 240,
    "export_model": 120,
    "generate": 720,
    "score": 720,
    "tables": 60,
}
"""Slot of the other rules, by rule or kind of rule."""

MEMORY_MB = {"prepare_data": 8000, "tokenise": 16000, "score": 4000}
"""Memory of the rules that hold no weights, where it is not that of one process."""


def training(study: Study, gpus: int) -> dict[str, Any]:
    """Resources of a rule that is one torchrun.

    Args:
        study: the study.
        gpus: GPUs of this machine, which `nproc_per_node: auto` counts.
    """
    launch, weights = study.launch, weights_of(study.model)
    each, on_gpus = processes(launch, gpus), gpus_wanted(launch, gpus)
    per_weight: float = LOADING_BYTES if on_gpus else TRAINING_BYTES
    trainings = [study.sft, *(study.preference_of(method) for method in study.preference_methods)]
    if launch.strategy == "fsdp2" and not any(
        training is not None and training.lora for training in trainings
    ):
        per_weight /= each
    asked = {
        **_gpus(study, on_gpus),
        "nodes": launch.nodes,
        "processes": each,
        "mem_mb": int(each * (PROCESS_MB + per_weight * weights / MIB)),
        "disk_mb": int(1000 + CHECKPOINT_BYTES * weights / MIB),
        "runtime": SMALL_MINUTES if weights < SMALL_WEIGHTS else TRAINING_MINUTES,
    }
    if launch.nodes > 1:
        # What Slurm's plugin needs to hear of a job on several nodes: `mpi` stops it from starting one task on one of
        # them (`sams.launch.nodes` starts one on each), `gres` counts per node where `gpu` counts all.
        asked |= {"mpi": "srun", "tasks": launch.nodes, "tasks_per_gpu": 0}
        if on_gpus:
            kind = f"{launch.gpu_model}:" if launch.gpu_model else ""
            asked = {key: value for key, value in asked.items() if key not in ("gpu", "gpu_model")}
            asked["gres"] = f"gpu:{kind}{on_gpus}"
    return asked


def generation(study: Study, gpus: int) -> dict[str, Any]:
    """Resources of a rule that generates with one process, on one GPU if there are any."""
    return {**_gpus(study, min(1, gpus_wanted(study.launch, gpus))), **_one_process(study, "generate")}


def checking(study: Study, gpus: int) -> dict[str, Any]:
    """Resources of `preflight`, which looks at a machine like those that train."""
    return {**_gpus(study, gpus_wanted(study.launch, gpus)), **_without_weights("preflight")}


def exporting(study: Study) -> dict[str, Any]:
    """Resources of a rule that holds the weights once, on a CPU."""
    return {"gpu": 0, **_one_process(study, "export_model")}


def plain(study: Study, kind: str) -> dict[str, Any]:
    """Resources of a rule without weights: one of `MINUTES`. The synthetic world's data are small."""
    made_here = {"mem_mb": PROCESS_MB} if study.data.world is not None and kind != "score" else {}
    return {"gpu": 0, **_without_weights(kind), **made_here}


def weights_of(model: Model) -> float:
    """About how many weights a model has, by its config."""
    try:
        config = config_of(model)
    except UserError:
        return ASSUMED_WEIGHTS
    width, layers = config["hidden_size"], config["num_hidden_layers"]
    heads = config["num_attention_heads"]
    head = config.get("head_dim") or width // heads
    groups = config.get("num_key_value_heads") or heads
    matrices = 2 if config["model_type"] == "gpt_neox" else 3
    attention = 2 * width * head * (heads + groups)
    embeddings = config["vocab_size"] * width * (1 if config.get("tie_word_embeddings") else 2)
    return float(embeddings + layers * (attention + matrices * width * config["intermediate_size"]))


def _gpus(study: Study, number: int) -> dict[str, Any]:
    model = study.launch.gpu_model
    return {"gpu": number, **({"gpu_model": model} if model and number else {})}


def _one_process(study: Study, kind: str) -> dict[str, Any]:
    weights = weights_of(study.model)
    return {
        "nodes": 1,
        "mem_mb": int(PROCESS_MB + 2 * LOADING_BYTES * weights / MIB),
        "disk_mb": int(1000 + LOADING_BYTES * weights / MIB),
        "runtime": MINUTES[kind],
    }


def _without_weights(kind: str) -> dict[str, Any]:
    return {
        "nodes": 1,
        "mem_mb": MEMORY_MB.get(kind, PROCESS_MB),
        "disk_mb": 2000,
        "runtime": MINUTES[kind],
    }
