"""Export a trained policy as a Hugging Face folder: safetensors, config, tokenizer with its chat template.

A single process holds one file of weights at a time. The start model of a study without SFT, and a finished model,
are exported in the same way from their hub id or folder, so that every later stage reads the same kind of folder. The
fresh model of a study without SFT, for example of a rehearsal, is built here. All weights are in memory at once
only to merge adapters, for a fresh model, and where the files have other tensors than the model.
"""

from pathlib import Path

import torch
from torch.distributed.checkpoint import HuggingFaceStorageReader
from transformers import AutoTokenizer, GenerationConfig, PreTrainedModel

from sams.policy.model import add_lora, build_model, check_vocabulary, load_model
from sams.policy.policy import Policy
from sams.policy.stored import files_of, materialise, names_in_files, stored_names, without_weights, write
from sams.policy.weights import check_weights, refuse_not_finite
from sams.runtime.errors import UserError
from sams.runtime.files import digest_of, read_json, whole_folder
from sams.training.sharded import LORA, ShardReader, load_sharded

FRESH_SEED = 0
KEY = "policy.model."
"""Prefix of the names of weights in `trained/`."""


def main(recipe: str, out: Path, tokens: Path | None = None, trained: Path | None = None) -> None:
    """Write the folder `out`, from sharded weights in `trained` or, without them, from the recipe's model.

    Args:
        recipe: recipe with the settings of the model.
        out: the folder.
        tokens: tokenised data with the tokenizer to export; None for the model's own tokenizer.
        trained: folder of sharded weights.
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
    sources = digests_of_sources(ExportRecipe(model=settings)) if trained is None else {}
    facts = {"upstream": upstream, "sources": sources, "recipe": settings.model_dump(mode="json")}
    with whole_folder(out, **facts) as part:
        if trained is not None:
            export_trained(trained, settings.attention, part, dtype)
        elif settings.path is not None:
            folder = files_of(settings.path, settings.revision)
            check_weights(folder, allow_pickle=settings.allow_pickle)
            model = without_weights(folder, settings.attention)
            check_vocabulary(model, tokenizer, settings.path)
            if (folder / "generation_config.json").is_file():
                model.generation_config = GenerationConfig.from_pretrained(folder)
            names = stored_names(model, folder)
            if names is None:
                save(load_model(settings.path, settings, revision=settings.revision), part, dtype)
            else:
                model.config.use_cache = True
                write(model, HuggingFaceStorageReader(str(folder)), names, part, dtype, folder)
        else:
            save(build_model(settings, tokenizer, FRESH_SEED), part, dtype)
        tokenizer.save_pretrained(part)


def export_trained(trained: Path, attention: str, out: Path, dtype: torch.dtype) -> None:
    """Write the sharded weights of a trained policy."""
    model = without_weights(trained, attention)
    adapted = (trained / LORA).is_file()
    names = names_in_files(model)
    if names is not None and not adapted:
        model.config.use_cache = True
        write(model, ShardReader(trained), {name: KEY + name for name in names}, out, dtype, trained)
        return
    materialise(model, model, torch.device("cpu"))
    merging = None
    if adapted:
        from sams.study.settings import Lora

        merging = add_lora(model, Lora.model_validate(read_json(trained / LORA)))
    policy = Policy(model)
    state = {"policy": policy.state_dict()}
    load_sharded(state, trained)
    policy.load_state_dict(state["policy"])
    save(model if merging is None else merging.merge_and_unload(), out, dtype)


def save(model: PreTrainedModel, out: Path, dtype: torch.dtype) -> None:
    """Write a model that is in memory."""
    refuse_not_finite(model.named_parameters(), "the model to export")
    model.config.use_cache = True
    model.to(dtype).save_pretrained(out)


if __name__ == "__main__":
    from sams.runtime.stage import run

    run(main)
