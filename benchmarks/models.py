"""Log-probs of small models of transformers' classes, next to those of the class's own forward in float64.

    python -m benchmarks.models [TYPE ...]

Prints the table of docs/models.md: the layout of the rows, and the largest error over the sequences in nats.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers

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
    "xglm": {"ffn_dim": 64, "attention_heads": 4, "num_layers": 2},
    "xlstm": {"output_logit_soft_cap": 3.0},
}
"""Settings by type, beyond the sizes: what a class does besides a Llama is on, and far from its default."""


def model_of(kind: str) -> transformers.PreTrainedModel:
    """Return a small model: attention is far from uniform, norms, biases and sinks are not at their start."""
    known = transformers.AutoConfig.for_model(kind)
    settings = {key: value for key, value in SIZES.items() if hasattr(known, key)} | SPECIAL | MODELS[kind]
    config = transformers.AutoConfig.for_model(kind, **settings)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for weight in model.parameters():
        weight.data += 0.2 * torch.randn_like(weight)
    return model
