"""Loading and building causal language models, in float32 master weights and without dropout."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import transformers
from torch import nn

from sams.errors import UserError

if TYPE_CHECKING:
    from peft import PeftModel

    from sams.settings import Lora, Model

log = logging.getLogger(__name__)


def load_model(
    path: str | Path, settings: Model, *, revision: str | None = None
) -> transformers.PreTrainedModel:
    """Load a causal language model from a folder or a hub id.

    Weights are float32 whatever the file holds: they are the optimiser's master weights. Only safetensors
    are read, and no code that comes with a model is run.

    Raises:
        UserError: when the model is not there or cannot be read.
    """
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            path,
            revision=revision,
            dtype=torch.float32,
            attn_implementation=settings.attention,
            use_safetensors=True,
        )
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot load a causal language model: {str(error).splitlines()[0]}",
            where=str(path),
            remedy="give a folder with config.json and safetensors, or a hub id that this machine can reach",
        ) from error
    return without_dropout(model)


def build_model(
    settings: Model, tokenizer: transformers.PreTrainedTokenizerBase, seed: int
) -> transformers.PreTrainedModel:
    """Build a fresh model from `settings.architecture`, sized to the tokenizer, its weights drawn by `seed`.

    Raises:
        UserError: when the architecture is unknown or its sizes do not fit together.
    """
    architecture = dict(settings.architecture or {})
    kind = architecture.pop("model_type")
    try:
        config = transformers.AutoConfig.for_model(
            kind,
            **architecture,
            vocab_size=len(tokenizer),
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = transformers.AutoModelForCausalLM.from_config(
                config, dtype=torch.float32, attn_implementation=settings.attention
            )
    except (ValueError, KeyError) as error:
        raise UserError(
            f"cannot build a model of type {kind}: {str(error).splitlines()[0]}", where="model.architecture"
        ) from error
    return without_dropout(model)


def without_dropout(model: transformers.PreTrainedModel) -> transformers.PreTrainedModel:
    """Switch every dropout off, so that train() and eval() give the same log-probs bit by bit."""
    for key, value in vars(model.config).items():
        if "dropout" in key and isinstance(value, float):
            setattr(model.config, key, 0.0)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0
    return model


def checkpoint_activations(model: transformers.PreTrainedModel) -> None:
    """Recompute the activations of every block in the backward pass."""
    with warnings.catch_warnings():
        # Newer releases call it activation_checkpointing_enable; the oldest supported has only this name.
        warnings.simplefilter("ignore", FutureWarning)
        model.gradient_checkpointing_enable({"use_reentrant": False})


def compile_blocks(model: transformers.PreTrainedModel) -> None:
    """Compile what stands around attention in every block, norms and MLP, for rows of any length.

    Attention stays as it is: its kernels are fused already, and its loop over the items of a packed row would be
    compiled anew for every batch. Call this before the model is replicated or sharded.
    """
    for block in blocks(model):
        for name, part in block.named_children():
            if "norm" in name or "att" not in name:
                part.forward = torch.compile(part.forward, dynamic=True)


def add_lora(model: transformers.PreTrainedModel, settings: Lora) -> PeftModel:
    """Put low-rank adapters into a model, in place, and freeze all else. They start at zero change.

    Source: Hu et al. 2021, LoRA. Without dropout, as everywhere in training here.

    Returns:
        The wrapper around `model` that can merge them.

    Raises:
        UserError: when a target module is not there.
    """
    import peft

    targets = settings.target_modules
    config = peft.LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=0.0,
        target_modules=targets if isinstance(targets, str) else list(targets),
        task_type="CAUSAL_LM",
    )
    try:
        return peft.get_peft_model(model, config)
    except ValueError as error:
        raise UserError(
            f"cannot add adapters: {str(error).splitlines()[0]}", where="lora.target_modules"
        ) from error


def blocks(model: transformers.PreTrainedModel) -> nn.ModuleList:
    """The transformer blocks of a model, in order.

    Raises:
        UserError: when the architecture keeps them in an unknown place.
    """
    for module in model.base_model.children():
        if isinstance(module, nn.ModuleList):
            return module
    raise UserError(f"no list of transformer blocks found in {type(model).__name__}", where="model")
