"""A small Llama and rows for it, made of torch and transformers alone."""

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

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
    made = LlamaForCausalLM(config).float()
    for weight in made.parameters():
        # Attention of fresh weights is nearly uniform and would hide a wrong mask.
        weight.data += 0.03 * torch.randn(weight.shape)
    return made
