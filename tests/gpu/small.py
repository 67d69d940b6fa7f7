"""A small Llama and rows for it, made of torch and transformers alone."""

import torch
import transformers
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

from sams.policy.rows import Item

ITEMS: list[Item] = [
    ([1, *range(10, 40)], [[*range(50, 90), 2], [*range(100, 117), 2]]),
    ([1, 7, 8], [[11, 2], [*range(30, 62), 2]]),
    ([1, *range(200, 300)], [[44, 45, 2], [46, 2]]),
]
"""Pairs: prompt, chosen, rejected."""


def model(seed: int = 0, *, tied: bool = False) -> transformers.PreTrainedModel:
    """3.7 M weights, float32, on the CPU; heads of 64 as FlashAttention takes them."""
    config = LlamaConfig(
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=688,
        vocab_size=512,
        tie_word_embeddings=tied,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(seed)
    return far_from_uniform(LlamaForCausalLM(config).float())


def capped_model() -> transformers.PreTrainedModel:
    """A model with capped scores and a sliding window in every second layer."""
    config = Gemma2Config(
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        intermediate_size=688,
        vocab_size=512,
        sliding_window=48,
        bos_token_id=1,
        eos_token_id=2,
        attn_implementation="eager",
    )
    torch.manual_seed(0)
    return far_from_uniform(Gemma2ForCausalLM(config).float())


def far_from_uniform(made: transformers.PreTrainedModel) -> transformers.PreTrainedModel:
    """Change the weights: attention of fresh ones is nearly uniform and would hide a wrong mask."""
    for weight in made.parameters():
        weight.data += 0.03 * torch.randn(weight.shape)
    return made
