"""Log-probs of small models of transformers' classes, next to those of the class's own forward in float64.

    python -m benchmarks.models [TYPE ...]

Prints the table of docs/models.md: the layout of the rows, and the largest error over the sequences in nats.
"""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor

from sams.policy.dropout import keep_rates, without_dropout
from sams.policy.policy import Policy
from sams.policy.rows import pack_rows, pad_rows, zip_completions
from sams.runtime.errors import UserError, first_line
from sams.study.settings import Model
from sams.training.distribution import Workers
from sams.training.layout import choose_layout
from sams.training.tasks.pairs import PairTask

PERTURBATION = 0.2
"""Standard deviation of what is added to fresh weights, in which norms, biases and sinks have no effect."""
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
    "vocab_size": 99,
}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
WINDOW = {"sliding_window": 8}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
MAMBA = {"mamba_d_state": 8, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_d_conv": 4}
LATENT = {
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}

MODELS: dict[str, dict[str, Any]] = {
    "jais2": {"head_dim": 8},
    "internlm3": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2},
    "granitemoeshared": {"logits_scaling": 4.0, "num_local_experts": 4, "num_experts_per_tok": 2},
    "gpt_neox_japanese": {},
    "glm4_moe_lite": {
        "num_key_value_heads": 4,
        "n_routed_experts": 4,
        "n_group": 1,
        "topk_group": 1,
        **LATENT,
        **EXPERTS,
    },
    "gemma4_text": {"head_dim": 8, "layer_types": ["sliding_attention", "full_attention"], **WINDOW},
    "flex_olmo": {"num_experts": 4, "num_experts_per_tok": 2},
    "exaone_moe": {
        "num_experts": 4,
        "n_group": 1,
        "topk_group": 1,
        "layer_types": ["sliding_attention", "full_attention"],
        **EXPERTS,
        **WINDOW,
    },
    "diffllama": {"head_dim": 8},
    "cwm": {"head_dim": 8, "layer_types": ["full_attention", "sliding_attention"], **WINDOW},
    "apertus": {},
    "arcee": {},
    "bamba": {"attn_layer_indices": [1], **MAMBA},
    "bart": {"decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 64},
    "bert": {"is_decoder": True},
    "biogpt": {},
    "bitnet": {},
    "bloom": {"n_head": 4, "n_layer": 2},
    "codegen": {"n_head": 4, "rotary_dim": 4},
    "cohere": {"logit_scale": 0.25},
    "cohere2": {"logit_scale": 0.25, **WINDOW},
    "deepseek_v2": {
        "num_key_value_heads": 4,
        "n_routed_experts": 4,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        **LATENT,
        **EXPERTS,
    },
    "deepseek_v3": {
        "num_key_value_heads": 4,
        "n_routed_experts": 4,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        **LATENT,
        **EXPERTS,
    },
    "doge": WINDOW,
    "electra": {"is_decoder": True, "embedding_size": 16},
    "ernie4_5": {"head_dim": 8},
    "exaone4": WINDOW,
    "falcon": {"new_decoder_architecture": False, "alibi": False},
    "falcon_h1": {"lm_head_multiplier": 0.5, "mamba_d_ssm": 64, **MAMBA},
    "falcon_mamba": {"state_size": 8},
    "gemma": {"head_dim": 8},
    "gemma2": {"head_dim": 8, "final_logit_softcapping": 3.0, "attn_logit_softcapping": 5.0, **WINDOW},
    "gemma3_text": {"head_dim": 8, "final_logit_softcapping": 3.0, **WINDOW},
    "glm": {"head_dim": 8},
    "glm4": {"head_dim": 8},
    "glm4_moe": {"head_dim": 8, "n_routed_experts": 4, "first_k_dense_replace": 1, **EXPERTS},
    "gpt2": {},
    "gpt_bigcode": {},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 8},
    "gpt_neox": {},
    "gpt_oss": {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2, **WINDOW},
    "gptj": {"rotary_dim": 4},
    "granite": {"logits_scaling": 4.0, "embedding_multiplier": 2.0, "residual_multiplier": 0.5},
    "granitemoe": {"logits_scaling": 4.0, "num_local_experts": 4, "num_experts_per_tok": 2},
    "helium": {"head_dim": 8},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hyperclovax": {"logits_scaling": 0.25},
    "inkling_text": {"unpadded_vocab_size": 90, "logits_mup_width_multiplier": 4.0},
    "jamba": {
        "num_experts": 4,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "use_mamba_kernels": False,
        "mamba_d_state": 8,
        "mamba_dt_rank": 4,
    },
    "jetmoe": {"num_local_experts": 4, "num_experts_per_tok": 2, "kv_channels": 8},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "llama": {},
    "llama4_text": {
        "attention_chunk_size": 8,
        "num_local_experts": 2,
        "intermediate_size_mlp": 64,
        "head_dim": 8,
    },
    "mamba": {"state_size": 8},
    "mamba2": {"num_heads": 4, "head_dim": 16, "state_size": 8, "n_groups": 1, "chunk_size": 8},
    "minicpm3": {"num_key_value_heads": 4, "dim_model_base": 8, **LATENT},
    "ministral": {"head_dim": 8, **WINDOW},
    "mistral": WINDOW,
    "mixtral": {"num_local_experts": 4, **WINDOW},
    "modernbert-decoder": {"local_attention": 16, "layer_types": ["sliding_attention", "full_attention"]},
    "mpt": {},
    "nanochat": {"final_logit_softcapping": 3.0},
    "nemotron": {},
    "olmo": {},
    "olmo2": {},
    "olmo3": WINDOW,
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 16},
    "persimmon": {},
    "phi": {},
    "phi3": WINDOW,
    "phimoe": {"num_local_experts": 4, **WINDOW},
    "qwen2": {"use_sliding_window": True, "max_window_layers": 1, **WINDOW},
    "qwen2_moe": {
        "num_experts": 4,
        "shared_expert_intermediate_size": 32,
        "use_sliding_window": True,
        "max_window_layers": 1,
        **EXPERTS,
        **WINDOW,
    },
    "qwen3": {"head_dim": 8},
    "qwen3_moe": {"head_dim": 8, "num_experts": 4, **EXPERTS},
    "qwen3_next": {
        "head_dim": 8,
        "num_experts": 4,
        "shared_expert_intermediate_size": 32,
        **EXPERTS,
        **LINEAR,
    },
    "recurrent_gemma": {
        "attention_window_size": 8,
        "logits_soft_cap": 3.0,
        "num_hidden_layers": 3,
        "lru_width": 32,
    },
    "rwkv": {"attention_hidden_size": 32},
    "seed_oss": {"head_dim": 8},
    "smollm3": {},
    "stablelm": {},
    "starcoder2": WINDOW,
}
"""Settings by type, beyond the sizes: what a class does besides a Llama is on, and far from its default."""
VISION = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 28,
    "patch_size": 14,
}
MODELS["gemma3"] = {
    "text_config": SIZES | MODELS["gemma3_text"],
    "vision_config": VISION,
    "mm_tokens_per_image": 4,
    "boi_token_index": 97,
    "eoi_token_index": 96,
    "image_token_index": 98,
}
MODELS["gemma4"] = {"text_config": SIZES | MODELS["gemma4_text"]}


def model_of(kind: str, dtype: torch.dtype = torch.float32) -> transformers.PreTrainedModel:
    """Return a small model: attention is far from uniform, norms, biases and sinks are not at their start."""
    known = transformers.AutoConfig.for_model(kind)
    settings = {key: value for key, value in SIZES.items() if hasattr(known, key)} | SPECIAL | MODELS[kind]
    config = without_dropout(transformers.AutoConfig.for_model(kind, **settings))
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for weight in model.parameters():
        weight.data += PERTURBATION * torch.randn_like(weight)
    if dtype != torch.float32:
        other = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
        other.load_state_dict(model.state_dict())
        model = other
    return keep_rates(model, config)


def items() -> dict[str, list[Any]]:
    """Return the columns of six pairs, from 8 to 60 tokens long: windows and chunks are 8."""
    draw = random.Random(0)
    lengths = [(9, 40, 11), (30, 25, 30), (5, 1, 3), (12, 20, 7), (3, 30, 31), (20, 2, 40)]
    columns: dict[str, list[Any]] = {"id": list("abcdef"), "flipped": [None] * 6}
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    for name, column in zip(names, zip(*lengths, strict=True), strict=True):
        columns[name] = [[draw.randrange(3, 90) for _ in range(length)] for length in column]
    return columns


def own_logps(model: transformers.PreTrainedModel, task: PairTask) -> Tensor:
    """Return the log-probs of the class's own forward pass, each sequence alone."""
    logps = []
    for column in zip_completions(task.sequences(list(range(len(task.ids))))):
        for prompt, answer in column:
            ids = torch.tensor([[*prompt, *answer]])
            with torch.no_grad():
                logits = model.eval()(input_ids=ids).logits[0, len(prompt) - 1 : -1].double()
            logps.append(logits.log_softmax(1).gather(1, ids[0, len(prompt) :, None]).sum())
    return torch.stack(logps)


@dataclass
class Tried:
    """What came of a model type in one precision.

    Attributes:
        layout: kernel of packed rows, `padded`, or `refused`.
        why: why rows are not packed, or the model is refused.
        error: largest error of a sequence's log-prob, in nats.
        own_error: the same of the class's own forward pass in this precision.
    """

    layout: str
    why: str = ""
    error: float = float("nan")
    own_error: float = float("nan")


def tried(kind: str, precision: str) -> Tried:
    """Try a model type as a job does, and compare with float64."""
    task = PairTask(items())
    dtype = getattr(torch, precision)
    workers = Workers(device="cpu", strategy="ddp", precision=precision, threads=1, timeout_minutes=1)
    model = model_of(kind, dtype)
    exact = model_of(kind)
    exact.load_state_dict(model.state_dict())
    exact.set_experts_implementation("eager")  # the others have no float64
    expected = own_logps(exact.double(), task)
    own_error = float((own_logps(model, task) - expected).abs().max())
    try:
        policy = Policy(model)
        kernel, fallbacks = choose_layout(policy, task, workers, Model(path="any", precision=precision))
    except UserError as error:
        return Tried("refused", str(error), own_error=own_error)
    rows = (pad_rows if kernel is None else pack_rows)(task.sequences(list(range(len(task.ids)))))
    with torch.no_grad():
        error = float((policy(rows).logps.double() - expected).abs().max())
    why = fallbacks[0].partition("(")[2][:-1] if fallbacks else ""
    return Tried("packed" if kernel else "padded", why, error, own_error)


def main(kinds: list[str]) -> None:
    """Print the table."""
    print("| type | rows | error, float32 | error, bfloat16 | the class itself, bfloat16 | why not packed |")
    print("|---|---|---|---|---|---|")
    for kind in kinds or sorted(MODELS):
        try:
            full, half = (tried(kind, precision) for precision in ("float32", "bfloat16"))
        except Exception as error:
            print(f"| {kind} | cannot be built | | | | {first_line(error)} |", flush=True)
            continue
        layout = full.layout if full.layout == half.layout else f"{full.layout}; {half.layout} in bfloat16"
        figures = (f"{full.error:.1e}", f"{half.error:.2f}", f"{half.own_error:.2f}")
        print(f"| {kind} | {layout} | {' | '.join(figures)} | {full.why or half.why} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
