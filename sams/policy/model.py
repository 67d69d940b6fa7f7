"""Load and build causal language models, with float32 master weights and without dropout."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from sams.policy.dropout import keep_rates, without_dropout
from sams.policy.weights import check_weights, refuse_adapters, refuse_not_finite
from sams.runtime.errors import UserError, first_line, nearest

if TYPE_CHECKING:
    from peft import PeftModel

    from sams.study.settings import Lora, Model

log = logging.getLogger(__name__)


def load_model(
    path: str | Path,
    settings: Model,
    *,
    revision: str | None = None,
    dtype: torch.dtype = torch.float32,
    outline: bool = False,
) -> transformers.PreTrainedModel:
    """Load a causal language model from a folder or a hub id.

    Only safetensors are read unless `settings.allow_pickle` is set, and no code that comes with a model is run.

    Args:
        path: folder or hub id.
        settings: attention kernel, and whether pickled weights may be read.
        revision: revision of a hub id.
        dtype: type of the weights, whatever the type in the file; the optimiser needs float32 master weights.
        outline: load names, shapes and types only, on the meta device, to find missing and mismatched weights without
            reading them.

    Raises:
        UserError: when the model is missing, cannot be read, or lacks weights, which would be drawn at random;
            when a weight is NaN or infinite.
    """
    device: dict[str, Any] = {"device_map": "meta"} if outline else {}
    if Path(path).is_dir():
        refuse_adapters(Path(path))
    try:
        config = transformers.AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=False)
        _refuse_other_kinds(config, str(path))
        model, problems = transformers.AutoModelForCausalLM.from_pretrained(
            path,
            config=without_dropout(config),
            revision=revision,
            dtype=dtype,
            attn_implementation=settings.attention,
            use_safetensors=None if settings.allow_pickle else True,
            weights_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, with their names
            **device,
        )
    except UserError:
        raise
    except Exception as error:  # transformers and its libraries raise any type
        if "attn_implementation" in str(error):
            raise UserError(
                f"a model of type {config.model_type} has no attention kernel {settings.attention}",
                where=f"model.attention, {path}",
                remedy="set it to eager",
            ) from error
        raise UserError(
            f"cannot load a causal language model: {first_line(error)}",
            where=str(path),
            remedy="give a folder with config.json and safetensors, or a hub id that this machine can reach",
        ) from error
    if getattr(model, "_hf_peft_config_loaded", False):
        raise UserError(
            "it has adapters next to its weights", where=str(path), remedy="merge them, and give that model"
        )
    _refuse_other_weights(problems, str(path))
    if not outline:
        refuse_not_finite(model.named_parameters(), str(path))
        _name_untied(model)
    return keep_rates(model, config)


def _refuse_other_kinds(config: transformers.PreTrainedConfig, where: str) -> None:
    """Check that a model can be trained, and predicts each token from those before it alone.

    Raises:
        UserError: it is quantised, has an encoder, or is a masked language model, whose tokens see those after them.
    """
    text: Any = config.get_text_config()
    kind, problem = config.model_type, None
    is_causal = getattr(text, "is_decoder", False) or getattr(text, "causal", False)
    if getattr(config, "quantization_config", None):
        problem = "whose weights are quantised cannot be trained"
    elif config.is_encoder_decoder:
        problem = "has an encoder and a decoder"
    elif kind in {*MODEL_FOR_MASKED_LM_MAPPING_NAMES, "bert-generation"} and not is_causal:
        problem = "is a masked language model"
    if problem is not None:
        raise UserError(
            f"a model of type {kind} {problem}",
            where=where,
            remedy="give a causal language model in bfloat16, float16 or float32",
        )


def _name_untied(model: transformers.PreTrainedModel) -> None:
    """Correct a config that ties the output layer to the embedding where the files have two different weights.

    transformers loads both of them, so the config of a result must not tie them.
    """
    head, text = model.get_output_embeddings(), model.config.get_text_config()
    tied = head is not None and head.weight is model.get_input_embeddings().weight
    if text.tie_word_embeddings and not tied:
        text.tie_word_embeddings = model.config.tie_word_embeddings = False


def _refuse_other_weights(problems: dict[str, Any], where: str) -> None:
    """Check that the files have every weight in its shape: transformers draws missing weights at random."""
    if problems["mismatched_keys"]:
        name, stored, expected = sorted(problems["mismatched_keys"])[0]
        raise UserError(
            f"tensor {name} has shape {list(stored)}, the config has {list(expected)}",
            where=where,
            remedy="give weights and config of one model",
        )
    if problems["missing_keys"]:
        missing = sorted(problems["missing_keys"])
        raise UserError(
            f"{len(missing)} weights are not in its files, the first {missing[0]}",
            where=where,
            remedy="give weights and config of one causal language model",
        )


def check_model(settings: Model, tokenizer: transformers.PreTrainedTokenizerBase, max_length: int) -> None:
    """Check before the first training job that a study can start from its model.

    The files must have every weight, finite and of a type that can be trained; a fresh model must be possible to
    build; every token and position must have an embedding. One tensor at a time is in memory. Files of a hub id are
    fetched.

    Args:
        settings: settings of the model.
        tokenizer: tokenizer of the model.
        max_length: longest prompt and response together, in tokens.

    Raises:
        UserError: naming the key or the file.
    """
    if settings.path is None:
        with torch.device("meta"):
            model = build_model(settings, tokenizer, seed=0)
    else:
        folder = Path(settings.path)
        if folder.is_dir():
            check_weights(folder, allow_pickle=settings.allow_pickle)
        model = load_model(settings.path, settings, revision=settings.revision, outline=True)
        if not folder.is_dir():
            from huggingface_hub import hf_hub_download

            folder = Path(hf_hub_download(settings.path, "config.json", revision=settings.revision)).parent
            check_weights(folder, allow_pickle=settings.allow_pickle)
    check_vocabulary(model, tokenizer, str(settings.path or "model.architecture"))
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None) or max_length
    if max_length > positions:
        raise UserError(
            f"{max_length} tokens are more than the {positions} positions of the model",
            where="data.max_length",
            remedy=f"set it to {positions} or less",
        )


def check_vocabulary(
    model: transformers.PreTrainedModel, tokenizer: transformers.PreTrainedTokenizerBase, where: str
) -> None:
    """Check that every token of a tokenizer has an embedding.

    Raises:
        UserError: the tokenizer has ids beyond the model's embeddings, which end in a device assertion on a GPU.
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
    """Build a fresh model from `settings.architecture` with the tokenizer's vocabulary and weights drawn from `seed`.

    Raises:
        UserError: when the architecture is unknown or its sizes are inconsistent.
    """
    architecture = dict(settings.architecture or {})
    kind = architecture.pop("model_type")
    try:
        known = transformers.AutoConfig.for_model(kind)
        for key in architecture:
            if not hasattr(known, key):  # transformers would accept it without effect
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
            return from_config(config, settings.attention, where="model.architecture")
    except UserError:
        raise
    except Exception as error:  # configs raise any type
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


def from_config(
    config: transformers.PreTrainedConfig,
    attention: str,
    dtype: torch.dtype = torch.float32,
    where: str = "model",
) -> transformers.PreTrainedModel:
    """Build the causal language model of a config, without dropout.

    Raises:
        UserError: naming `where` and the problem, if the config is not of a causal language model.
    """
    _refuse_other_kinds(config, where)
    model = transformers.AutoModelForCausalLM.from_config(
        without_dropout(config), dtype=dtype, attn_implementation=attention, trust_remote_code=False
    )
    return keep_rates(model, config)


def add_lora(model: transformers.PreTrainedModel, settings: Lora, seed: int = 0) -> PeftModel:
    """Add low-rank adapters to a model, in place, and freeze all other weights. Adapters start without effect.

    Adapters are float32, drawn from `seed`. Source: Hu et al. 2021, LoRA. Without dropout, as in all training here.

    Returns:
        The wrapper around `model` that can merge the adapters.

    Raises:
        UserError: when the model does not have a target module, or a target's weight is tied to another: the merged
            adapters would change both.
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
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            adapted = peft.get_peft_model(model, config)
    except ValueError as error:
        raise UserError(
            f"cannot add adapters: {first_line(error)}",
            where="lora.target_modules",
            remedy="name linear layers of the model, or set all-linear",
        ) from error
    tied = {name.removesuffix(".weight") for pair in model.all_tied_weights_keys.items() for name in pair}
    if both := sorted(tied & set(adapted.targeted_module_names)):
        raise UserError(
            f"the weight of {both[0]} is tied: output layer and input embedding of this model are one weight, and "
            "merged adapters would change both",
            where="lora.target_modules",
            remedy=f"drop {' and '.join(name.rpartition('.')[2] for name in both)}",
        )
    return adapted
