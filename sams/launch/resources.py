"""Resources of each rule: GPUs, nodes, memory, time and disk, computed without torch.

Snakemake passes them to Slurm, Kubernetes and the like; on one machine `gpu` alone limits the jobs that run at once.
Memory and disk are computed from the settings. The time of a training job is a limit, not a forecast: a job at its
limit saves a checkpoint, is queued again and continues (docs/cluster.md). A profile's `set-resources` overrides
all of them.
"""

import json
import math
from pathlib import Path
from typing import Any

from sams.launch.machine import gpus_wanted, processes
from sams.runtime.errors import UserError
from sams.study.architectures import config_of
from sams.study.settings import Model
from sams.study.study import Study

MIB = 2**20

PROCESS_MB = 2000
"""Memory of a process that has imported torch and transformers, with buffers: 700 MB were measured on CPUs."""
ASSUMED_WEIGHTS = 8.0e9
"""Number of weights of a model whose architecture is not known."""
LAYERS = ("n_layer", "num_layers", "n_layers")
"""Names of the number of blocks in configs that do not call it num_hidden_layers."""
METADATA = "__metadata__"
PICKLED_BYTES = 2
"""Bytes a weight in pickled files, at least."""

TRAINING_BYTES = 16
"""Bytes a weight: float32 weight, gradient and AdamW's two moments."""
LOADING_BYTES = 4
"""Bytes a weight: float32, in host memory before it is moved to the GPU (all weights, or under FSDP2 the shard)."""
CHECKPOINT_BYTES = 3 * 12
"""Bytes a weight: float32 weight and moments in two kept checkpoints and the one being written."""

TRAINING_MINUTES = 24 * 60
SMALL_WEIGHTS = 1.0e8
"""Most weights of a model whose training jobs are short."""
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
"""Time of the other rules, by rule or kind of rule."""

MEMORY_MB = {"prepare_data": 8000, "tokenise": 16000, "score": 4000}
"""Memory of rules without weights that need more than `PROCESS_MB`."""


def training(study: Study, gpus: int) -> dict[str, Any]:
    """Return the resources of a rule that runs torchrun.

    Args:
        study: the study.
        gpus: GPUs of this machine, for `nproc_per_node: auto`.
    """
    launch, weights = study.launch, weights_of(study.model)
    each, on_gpus = processes(launch, gpus), gpus_wanted(launch, gpus)
    per_weight: float = LOADING_BYTES if on_gpus else TRAINING_BYTES
    trainings = [study.sft, *(study.preference_of(method) for method in study.preference_methods)]
    if launch.strategy == "fsdp2" and not any(
        training is not None and training.lora for training in trainings
    ):
        per_weight /= each
    resources = {
        **_gpus(study, on_gpus),
        "nodes": launch.nodes,
        "processes": each,
        "mem_mb": int(each * (PROCESS_MB + per_weight * weights / MIB)),
        "disk_mb": int(1000 + CHECKPOINT_BYTES * weights / MIB),
        "runtime": SMALL_MINUTES if weights < SMALL_WEIGHTS else TRAINING_MINUTES,
    }
    if launch.nodes > 1:
        # Snakemake's Slurm plugin: without `mpi` it would start one task on one node (`sams.launch.nodes` starts one
        # on each); `gres` counts GPUs per node, `gpu` counts all.
        resources |= {"mpi": "srun", "tasks": launch.nodes, "tasks_per_gpu": 0}
        if on_gpus:
            kind = f"{launch.gpu_model}:" if launch.gpu_model else ""
            resources = {key: value for key, value in resources.items() if key not in ("gpu", "gpu_model")}
            resources["gres"] = f"gpu:{kind}{on_gpus}"
    return resources


def generation(study: Study, gpus: int) -> dict[str, Any]:
    """Return the resources of a rule that generates in one process, on one GPU if there are any."""
    return {**_gpus(study, min(1, gpus_wanted(study.launch, gpus))), **_one_process(study, "generate")}


def checking(study: Study, gpus: int) -> dict[str, Any]:
    """Return the resources of `preflight`, which runs on a machine like those that train."""
    return {**_gpus(study, gpus_wanted(study.launch, gpus)), **_without_weights("preflight")}


def exporting(study: Study) -> dict[str, Any]:
    """Return the resources of a rule that holds the weights once, on a CPU."""
    return {"gpu": 0, **_one_process(study, "export_model")}


def plain(study: Study, kind: str) -> dict[str, Any]:
    """Return the resources of a rule without weights, one of `MINUTES`. The synthetic world's data is small."""
    made_here = {"mem_mb": PROCESS_MB} if study.data.world is not None and kind != "score" else {}
    return {"gpu": 0, **_without_weights(kind), **made_here}


def weights_of(model: Model) -> float:
    """Estimate the number of weights of a model, from the files of its folder or else from its config.

    A model whose files and config tell nothing counts as `ASSUMED_WEIGHTS`: an estimate is no reason not to start.
    """
    try:
        counted = _weights_in(Path(model.path)) if model.path is not None else 0.0
        return counted or _weights_by(config_of(model))
    except (UserError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return ASSUMED_WEIGHTS


def _weights_in(folder: Path) -> float:
    """Count the weights in the headers of safetensors, or by the bytes of pickled files; 0 without any."""
    files = [folder / "model.safetensors"]
    if not files[0].is_file():
        files = sorted(folder.glob("model-*.safetensors"))
    counted = 0.0
    for file in files:
        with file.open("rb") as opened:
            header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
        counted += sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != METADATA)
    return counted or sum(file.stat().st_size for file in folder.glob("pytorch_model*.bin")) / PICKLED_BYTES


def _weights_by(config: dict[str, Any]) -> float:
    """Estimate the number of weights from a transformers config, whose keys differ between types."""
    config = {**config, **(config.get("text_config") or {})}

    def size(*names: str, default: int = 0) -> int:
        return next((int(config[name]) for name in names if config.get(name)), default)

    width, layers = size("hidden_size", "n_embd", "d_model"), size("num_hidden_layers", *LAYERS)
    if not width or not layers:
        return ASSUMED_WEIGHTS
    heads = size("num_attention_heads", "n_head", "num_heads", "n_heads", "attention_heads", default=1)
    head = size("head_dim", default=width // heads)
    groups = size("num_key_value_heads", "num_kv_heads", default=heads)
    inner = size("moe_intermediate_size", "intermediate_size", "ffn_dim", "n_inner", default=4 * width)
    experts = size("num_local_experts", "num_experts", "n_routed_experts", default=1)
    gated = experts > 1 or (config.get("intermediate_size") and config["model_type"] != "gpt_neox")
    attention = 2 * width * head * (heads + groups)
    embeddings = size("vocab_size") * width * (1 if config.get("tie_word_embeddings") else 2)
    return float(embeddings + layers * (attention + experts * (3 if gated else 2) * width * inner))


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
