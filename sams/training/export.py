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
from sams.runtime.files import MANIFEST, digest_of, read_json, read_manifest, whole_folder
from sams.study.model_files import is_weights
from sams.training.card import ADAPTER, write_cards
from sams.training.folder import complete, export_type
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

    exported = read_recipe(recipe, ExportRecipe)
    settings = exported.model
    start = None if settings.path is None else files_of(settings.path, settings.revision)
    dtype = export_type(exported.export.dtype, settings, start)
    if tokens is not None:
        tokenizer = AutoTokenizer.from_pretrained(tokens / "tokenizer", trust_remote_code=False)
    elif trained is None and start is not None:
        from sams.data.tokeniser import build_tokenizer

        tokenizer = build_tokenizer(settings, iter(()))
    else:
        raise UserError("a tokenizer is needed", where="--tokens", remedy="give the tokenised data")
    given = {"tokens": tokens, "trained": trained, "model": model}
    upstream = {name: digest_of(folder) for name, folder in given.items() if folder is not None}
    base = model
    if trained is not None and (trained / LORA).is_file() and base is None:
        base = start
    reads_start = trained is None or (base is not None and model is None)
    sources = digests_of_sources(exported)
    if not reads_start:
        sources = {path: digest for path, digest in sources.items() if not is_weights(path)}
    facts = {"upstream": upstream, "sources": sources, "recipe": settings.model_dump(mode="json")}
    with whole_folder(out, **facts) as part:
        if trained is not None:
            export_trained(trained, settings, part, dtype, base)
        elif start is not None:
            check_weights(start, allow_pickle=settings.allow_pickle)
            finished = without_weights(start, settings.attention)
            check_vocabulary(finished, tokenizer, str(settings.path))
            names = stored_names(finished, start)
            if names is None:
                save(load_model(str(settings.path), settings, revision=settings.revision), part, dtype)
            else:
                write(finished, HuggingFaceStorageReader(str(start)), names, part, dtype, start)
        else:
            save(build_model(settings, tokenizer, FRESH_SEED), part, dtype)
        source = start
        if source is None:
            assert tokens is not None
            source = tokens / "tokenizer"
        complete(part, source, tokenizer, dtype, settings.template_date)
        write_cards(part, exported, start, trained)


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
        frozen_type = getattr(torch, settings.precision)
        model = load_model(base, settings, dtype=frozen_type)
        if lora["load_in_4bit"]:
            round_to_4_bits(model)
        model.float()
    merging = add_lora(model, Lora.model_validate(lora))
    fill(Policy(model), trained, frozen=digest is None)
    config: Any = merging.peft_config["default"]
    if digest is not None:
        assert base is not None
        config.base_model_name_or_path, config.revision = name_of_base(base, settings)
    config.target_modules = sorted(config.target_modules)  # a set would be written in any order
    merging.save_pretrained(out / ADAPTER, save_embedding_layers=False)
    save(merging.merge_and_unload(), out, dtype)


def name_of_base(base: Path, settings: Model) -> tuple[str, str | None]:
    """Return the name by which others load the base of adapters, and its revision.

    A base that was not trained is a copy of the start model, and has that name.
    """
    upstream = read_manifest(base).get("upstream", {}) if (base / MANIFEST).is_file() else {}
    if settings.path is None or "trained" in upstream:
        return str(base), None
    return settings.path, settings.revision


def fill(policy: nn.Module, trained: Path, *, frozen: bool = True) -> None:
    """Read the weights of a policy that is in memory; without `frozen`, only those that are trained."""
    named = policy.named_parameters(remove_duplicate=False)
    kept = set() if frozen else {name for name, weight in named if not weight.requires_grad}
    state = {name: tensor for name, tensor in policy.state_dict().items() if name not in kept}
    load_sharded({"policy": state}, trained)  # in place


def save(model: PreTrainedModel, out: Path, dtype: torch.dtype) -> None:
    """Write a model that is in memory."""
    refuse_not_finite(model.named_parameters(), "the model to export")
    model.generation_config = (
        GenerationConfig()
    )  # its own is checked when it is written; `complete` writes it
    model.to(dtype).save_pretrained(out)
    save_config(model, out)


if __name__ == "__main__":
    from sams.runtime.stage import run

    run(main)
