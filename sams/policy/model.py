"""Loading and building causal language models, in float32 master weights and without dropout."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import nn

from sams.policy.weights import check_weights, refuse_not_finite
from sams.runtime.errors import UserError, first_line, nearest

if TYPE_CHECKING:
    from peft import PeftModel

    from sams.study.settings import Lora, Model

log = logging.getLogger(__name__)


def load_model(
    path: str | Path, settings: Model, *, revision: str | None = None, outline: bool = False
) -> transformers.PreTrainedModel:
    """Load a causal language model from a folder or a hub id.

    Weights are float32 whatever the file holds: they are the optimiser's master weights. Only safetensors
    are read unless `settings.allow_pickle` says otherwise, and no code that comes with a model is run.

    Args:
        path: folder or hub id.
        settings: attention kernel, and whether pickled weights may be read.
        revision: of a hub id.
        outline: names, shapes and types only, on the meta device: what is missing or does not fit is told without
            reading the weights.

    Raises:
        UserError: when the model is not there, cannot be read, or lacks weights, which would be drawn at random;
            when a weight is NaN or infinite.
    """
    loading: dict[str, Any] = {"device_map": "meta"} if outline else {}
    try:
        model, found = transformers.AutoModelForCausalLM.from_pretrained(
            path,
            revision=revision,
            dtype=torch.float32,
            attn_implementation=settings.attention,
            use_safetensors=None if settings.allow_pickle else True,
            weights_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # told below, with their names
            **loading,
        )
    except Exception as error:  # files from anywhere: transformers and what it calls raise what they like
        raise UserError(
            f"cannot load a causal language model: {first_line(error)}",
            where=str(path),
            remedy="give a folder with config.json and safetensors, or a hub id that this machine can reach",
        ) from error
    _refuse_other_weights(found, str(path))
    if not outline:
        refuse_not_finite(model.named_parameters(), str(path))
    return without_dropout(model)


def _refuse_other_weights(found: dict[str, Any], where: str) -> None:
    """See that the files held every weight, in its shape: what is missing transformers draws at random."""
    if found["mismatched_keys"]:
        name, stored, wanted = sorted(found["mismatched_keys"])[0]
        raise UserError(
            f"tensor {name} has shape {list(stored)}, the config asks for {list(wanted)}",
            where=where,
            remedy="give weights and config of one model",
        )
    if found["missing_keys"]:
        missing = sorted(found["missing_keys"])
        raise UserError(
            f"{len(missing)} weights are not in its files, the first {missing[0]}",
            where=where,
            remedy="give weights and config of one causal language model",
        )


def check_model(settings: Model, tokenizer: transformers.PreTrainedTokenizerBase, max_length: int) -> None:
    """See that a study can start from its model, before any job that trains is started: its files hold every weight,
    finite and of a type that can be trained; a fresh one can be built; every token and position has a place.

    Nothing is held in memory but one tensor. The files of a hub id are fetched.

    Args:
        settings: the model.
        tokenizer: its tokenizer.
        max_length: longest prompt and response together, in tokens.

    Raises:
        UserError: naming the key or the file.
    """
    if settings.path is None:
        with torch.device("meta"):
            model = build_model(settings, tokenizer, seed=0)
    else:
        model = load_model(settings.path, settings, revision=settings.revision, outline=True)
        folder = Path(settings.path)
        if not folder.is_dir():
            from huggingface_hub import hf_hub_download

            folder = Path(hf_hub_download(settings.path, "config.json", revision=settings.revision)).parent
        check_weights(folder, allow_pickle=settings.allow_pickle)
    check_vocabulary(model, tokenizer, str(settings.path or "model.architecture"))
    positions = getattr(model.config, "max_position_embeddings", None) or max_length
    if max_length > positions:
        raise UserError(
            f"{max_length} tokens are more than the {positions} positions of the model",
            where="data.max_length",
            remedy=f"set it to {positions} or less",
        )


def check_vocabulary(
    model: transformers.PreTrainedModel, tokenizer: transformers.PreTrainedTokenizerBase, where: str
) -> None:
    """See that every token of a tokenizer has an embedding.

    Raises:
        UserError: the tokenizer has ids beyond the model's embeddings, which on a GPU ends in a device assertion.
    """
    rows = model.get_input_embeddings().weight.shape[0]  # type: ignore[union-attr]
    token, largest = max(tokenizer.get_vocab().items(), key=lambda item: item[1])
    if largest >= rows:
        raise UserError(
            f"the tokenizer's token {token!r:.40} has id {largest}, but the model has {rows} embeddings",
            where=where,
            remedy="give model and tokenizer that belong together",
        )


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
        known = transformers.AutoConfig.for_model(kind)
        for key in architecture:
            if not hasattr(known, key):  # transformers would keep it and do nothing with it
                raise UserError(
                    f"a model of type {kind} has no such setting{nearest(key, list(vars(known)))}",
                    where=f"key 'model.architecture.{key}'",
                    remedy="drop it or correct it",
                )
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
                config,
                dtype=torch.float32,
                attn_implementation=settings.attention,
                trust_remote_code=False,
            )
    except UserError:
        raise
    except Exception as error:  # a config raises whatever its author chose
        near = (
            nearest(str(kind), list(transformers.CONFIG_MAPPING))
            if kind not in transformers.CONFIG_MAPPING
            else ""
        )
        raise UserError(
            f"cannot build a model of type {kind}{near}: {first_line(error.__cause__ or error)}",
            where="model.architecture",
            remedy="transformers' documentation of that type has its keys",
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
        raise UserError(f"cannot add adapters: {first_line(error)}", where="lora.target_modules") from error


def blocks(model: transformers.PreTrainedModel) -> nn.ModuleList:
    """The transformer blocks of a model, in order.

    Raises:
        UserError: when the architecture keeps them in an unknown place.
    """
    for module in model.base_model.children():
        if isinstance(module, nn.ModuleList):
            return module
    raise UserError(f"no list of transformer blocks found in {type(model).__name__}", where="model")
