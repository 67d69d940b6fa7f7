"""Rehearse a study: the same jobs, losses, selectors, template, scoring and tables, in minutes and off-line.

A tiny fresh model of the study's architecture class replaces its model. The synthetic world replaces the data; it is
written in the form of the study's data and read back by the same converter. The questions of the world and the local
judge replace those of the benchmarks. Methods, losses, selectors, ratios, global batches and seeds stay.
"""

import copy
from typing import Any

from sams.runtime.errors import UserError
from sams.runtime.source import SOURCE
from sams.study.settings import benchmark_settings
from sams.study.settings.scheduling import PRESETS

TEMPLATES = SOURCE / "config" / "rehearsal"

SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 512,
}
# Keys particular to each architecture class, and the control tokens that its template writes.
CLASSES: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 2},
    "mistral": {"num_key_value_heads": 2, "sliding_window": 64},
    "gemma2": {"num_key_value_heads": 2, "head_dim": 16, "sliding_window": 64},
    "gpt_neox": {},
}
CONTROL_TOKENS = {
    "llama": ["<|start_header_id|>", "<|end_header_id|>"],
    "gemma2": ["<start_of_turn>", "<end_of_turn>"],
}

# The methods add the label noise of a study, so the pairs of the world are clean, unless settings are chosen on noisy
# validation pairs.
WORLD: dict[str, Any] = {"sft_examples": 384, "train_pairs": 384, "test_pairs": 96, "flipped_share": 0.0}
VALIDATION_PAIRS = 96
LENGTHS = {"max_length": 192, "max_prompt_length": 144}
VOCABULARY = 640

# A tiny model hardly moves at the learning rates of a large one.
LEARNING_RATE_FACTOR = 1000.0
HIGHEST_LEARNING_RATE = 1.0e-3
MOST_STEPS = 12
MICRO_BATCHES = {"micro_batch_size": 16, "scoring_micro_batch_size": 64}
DECODING = {"max_new_tokens": 12, "batch_size": 805, "stop_token_ids": []}


def rehearsal_of(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a study's rehearsal. Mistakes of the study stay in them and are found by validation.

    Args:
        settings: resolved settings of the study.

    Raises:
        UserError: the architecture class of the model is unknown.
    """
    made = copy.deepcopy(settings)
    made["study"] = f"rehearsal-{made.get('study', '')}"
    made["model"] = _model(made.get("model") or {})
    made["data"] = _data(made.get("data") or {})
    for stage in ("sft", "preference"):
        if made.get(stage):
            made[stage] = {**_quick(made[stage]), **MICRO_BATCHES, "epochs": 1, "evaluations": 2}
    if made.get("pretrain"):
        made["pretrain"] |= MICRO_BATCHES
    made["scheduler"] = _scheduler(made.get("scheduler") or {}) | {"preset": "small"}
    made["method_settings"] = {
        method: _method(own) for method, own in (made.get("method_settings") or {}).items()
    }
    made["benchmarks"] = _benchmarks(made.get("benchmarks") or {})
    if made.get("samples", True) is not None:
        made["samples"] = {"prompts": 8, "decoding": {"max_new_tokens": 12}}
    made["grids"], made["tuning_budget"] = {}, None
    made["launch"] = {"nproc_per_node": 1, "device": "cpu"}
    return made


def _model(given: dict[str, Any]) -> dict[str, Any]:
    architecture = given.get("architecture") or {}
    kind = given.get("model_type") or architecture.get("model_type")
    if kind not in CLASSES:
        raise UserError(
            f"a rehearsal has no small model of class {kind!r}",
            where="model.model_type",
            remedy=f"name the architecture class of the model: {', '.join(CLASSES)}",
        )
    template = TEMPLATES / f"{kind}.jinja"
    return {
        "architecture": {"model_type": kind, **SIZES, **CLASSES[kind]},
        "tokenizer": "bpe",
        "vocab_size": VOCABULARY,
        "control_tokens": CONTROL_TOKENS.get(kind, []),
        # Models without a template, such as Pythia, get the plain one here too.
        "chat_template": given.get("chat_template") or (str(template) if template.is_file() else None),
        "attention": "eager" if kind == "gemma2" else "sdpa",
        "activation_checkpointing": given.get("activation_checkpointing", False),
    }


def _data(given: dict[str, Any]) -> dict[str, Any]:
    form = given.get("form", "auto")
    if form == "auto" and not given.get("world"):
        form = "messages"
    kept: dict[str, Any] = {key: given[key] for key in ("broken_rows", "shared_prompts") if key in given}
    own = given.get("world") or {}
    world = WORLD | {"per_seed": own.get("per_seed", False)}
    if own.get("validation_pairs"):
        world |= {"validation_pairs": VALIDATION_PAIRS, "flipped_share": own.get("flipped_share", 0.0)}
    return {"world": world, "form": form, **kept, **LENGTHS}


def _quick(training: dict[str, Any]) -> dict[str, Any]:
    """Return settings of a training with a higher learning rate and fewer steps."""
    made = {key: value for key, value in training.items() if key not in MICRO_BATCHES}
    if isinstance(rate := made.get("learning_rate"), float):
        made["learning_rate"] = min(rate * LEARNING_RATE_FACTOR, HIGHEST_LEARNING_RATE)
    if isinstance(most := made.get("max_steps"), int):
        made["max_steps"] = min(most, MOST_STEPS)
    return made


def _scheduler(given: dict[str, Any]) -> dict[str, Any]:
    """Return settings of a scheduler without its sizes."""
    return {key: value for key, value in given.items() if key not in ("preset", *PRESETS["paper"])}


def _method(own: dict[str, Any]) -> dict[str, Any]:
    if "model" in own:
        return {"model": {}}
    made = _quick(own)
    if "scheduler" in made:
        made["scheduler"] = _scheduler(made["scheduler"])
    return made


def _benchmarks(given: dict[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = {"judge": {"kind": "local"}}
    for name, kind in benchmark_settings().items():
        if kind.has_judge and given.get(name) is not None:
            own = given[name] if isinstance(given[name], dict) else {}
            decoding = own.get("decoding") or {}
            known: Any = kind.model_fields["decoding"].annotation
            quick = {key: value for key, value in DECODING.items() if key in known.model_fields}
            made[name] = {"decoding": {**decoding, **quick, "engine": "transformers"}}
    return made
