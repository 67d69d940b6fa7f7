"""Export a trained policy as a Hugging Face folder: safetensors, config, tokenizer with its chat template.

A single process holds one file of weights at a time. The start model of a study without SFT, and a finished model,
are exported in the same way from their hub id or folder, so that every later stage reads the same kind of folder. The
fresh model of a study without SFT, for example of a rehearsal, is built here. All weights are in memory at once
only to merge adapters, for a fresh model, and where the files have other tensors than the model. Adapters are also
written by themselves, in peft's format, to the folder's subfolder `adapter`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.distributed.checkpoint import HuggingFaceStorageReader
from transformers import AutoTokenizer, GenerationConfig, PreTrainedModel

from sams.policy.dropout import save_config
from sams.policy.model import add_lora, build_model, check_vocabulary, load_model
from sams.policy.policy import Policy
from sams.policy.quantised import round_to_4_bits
from sams.policy.stored import files_of, materialise, names_in_files, stored_names, without_weights, write
from sams.policy.weights import check_weights, digest_of_model, refuse_not_finite
from sams.runtime.errors import UserError
from sams.runtime.files import digest_of, read_json, whole_folder
from sams.training.sharded import LORA, ShardReader, load_sharded

if TYPE_CHECKING:
    from sams.study.settings import Model

FRESH_SEED = 0
KEY = "policy.model."
"""Prefix of the names of weights in `trained/`."""


def main(
    recipe: str,
    out: Path,
    tokens: Path | None = None,
    trained: Path | None = None,
    model: Path | None = None,
) -> None:
    """Write the folder `out`, from sharded weights in `trained` or, without them, from the recipe's model.

    Args:
        recipe: recipe with the settings of the model.
        out: the folder.
        tokens: tokenised data with the tokenizer to export; None for the model's own tokenizer.
        trained: folder of sharded weights.
        model: base model of adapters in `trained`; None for the recipe's model.
    """
    from sams.runtime.stage import read_recipe
    from sams.study.recipes import ExportRecipe
    from sams.study.sources import digests_of_sources

    settings = read_recipe(recipe, ExportRecipe).model
    dtype = getattr(torch, settings.precision)
    if tokens is not None:
        tokenizer = AutoTokenizer.from_pretrained(tokens / "tokenizer", trust_remote_code=False)
    elif trained is None and settings.path is not None:
        from sams.data.tokeniser import build_tokenizer

        tokenizer = build_tokenizer(settings, iter(()))
    else:
        raise UserError("a tokenizer is needed", where="--tokens", remedy="give the tokenised data")
    upstream = {"tokens": digest_of(tokens)} if tokens else {}
    if trained is not None:
        upstream |= {"trained": digest_of(trained)}
    if model is not None:
        upstream |= {"model": digest_of(model)}
    base = model
    if trained is not None and (trained / LORA).is_file() and base is None and settings.path is not None:
        base = files_of(settings.path, settings.revision)
    from_path = trained is None or (base is not None and model is None)
    sources = digests_of_sources(ExportRecipe(model=settings)) if from_path else {}
    facts = {"upstream": upstream, "sources": sources, "recipe": settings.model_dump(mode="json")}
    with whole_folder(out, **facts) as part:
        if trained is not None:
            export_trained(trained, settings, part, dtype, base)
        elif settings.path is not None:
            folder = files_of(settings.path, settings.revision)
            check_weights(folder, allow_pickle=settings.allow_pickle)
            finished = without_weights(folder, settings.attention)
            check_vocabulary(finished, tokenizer, settings.path)
            if (folder / "generation_config.json").is_file():
                finished.generation_config = GenerationConfig.from_pretrained(folder)
            names = stored_names(finished, folder)
            if names is None:
                save(load_model(settings.path, settings, revision=settings.revision), part, dtype)
            else:
                finished.config.use_cache = True
                write(finished, HuggingFaceStorageReader(str(folder)), names, part, dtype, folder)
        else:
            save(build_model(settings, tokenizer, FRESH_SEED), part, dtype)
        tokenizer.save_pretrained(part)


def export_trained(
    trained: Path, settings: Model, out: Path, dtype: torch.dtype, base: Path | None = None
) -> None:
    """Write the sharded weights of a trained policy; adapters are merged into the model in `base`."""
    model = without_weights(trained, settings.attention)
    if (trained / LORA).is_file():
        _export_adapted(trained, model, settings, out, dtype, base)
        return
    names = names_in_files(model)
    if names is not None:
        model.config.use_cache = True
        write(model, ShardReader(trained), {name: KEY + name for name in names}, out, dtype, trained)
        return
    materialise(model, model, torch.device("cpu"))
    fill(Policy(model), trained)
    save(model, out, dtype)


def _export_adapted(
    trained: Path,
    model: PreTrainedModel,
    settings: Model,
    out: Path,
    dtype: torch.dtype,
    base: Path | None,
) -> None:
    """Write the adapters of a trained policy, and its base with the adapters merged in float32.

    Raises:
        UserError: `base` is missing, or is not the model that the adapters were trained on.
    """
    from sams.study.settings import Lora

    lora = read_json(trained / LORA)
    digest = lora.pop("base")
    if digest is None:  # the base was a fresh model, and is next to its adapters
        materialise(model, model, torch.device("cpu"))
    elif base is None or digest_of_model(base) != digest:
        raise UserError(
            "the adapters were trained on another base model"
            if base
            else "adapters without their base model",
            where=str(base or trained),
            remedy=f"give --model the model with digest {digest}, or train again",
        )
    else:
        model = load_model(base, settings, dtype=dtype)  # the type in which it was frozen
        if lora["load_in_4bit"]:
            round_to_4_bits(model)
        model.float()
    merging = add_lora(model, Lora.model_validate(lora))
    fill(Policy(model), trained, frozen=digest is None)
    config: Any = merging.peft_config["default"]
    config.base_model_name_or_path = None if digest is None else str(base)
    config.target_modules = sorted(config.target_modules)  # a set would be written in any order
    merging.save_pretrained(out / "adapter", save_embedding_layers=False)
    save(merging.merge_and_unload(), out, dtype)


def fill(policy: nn.Module, trained: Path, *, frozen: bool = True) -> None:
    """Read the weights of a policy that is in memory; without `frozen`, only those that are trained."""
    named = policy.named_parameters()
    kept = set() if frozen else {name for name, weight in named if not weight.requires_grad}
    state = {name: tensor for name, tensor in policy.state_dict().items() if name not in kept}
    load_sharded({"policy": state}, trained)  # in place


def save(model: PreTrainedModel, out: Path, dtype: torch.dtype) -> None:
    """Write a model that is in memory."""
    refuse_not_finite(model.named_parameters(), "the model to export")
    model.config.use_cache = True
    model.to(dtype).save_pretrained(out)
    save_config(model, out)


if __name__ == "__main__":
    from sams.runtime.stage import run

    run(main)
