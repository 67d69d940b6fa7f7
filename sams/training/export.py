"""Export a trained policy as a Hugging Face folder: safetensors, config, tokenizer with its chat template.

One process. The start of a study without SFT, and a finished model, are exported the same way, from their hub id
or folder, so that every later stage reads the same kind of folder. A study that starts from a fresh model, as a
rehearsal does, has it built here.
"""

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from sams.errors import UserError
from sams.files import read_json, whole_folder
from sams.policy.model import add_lora, build_model, check_vocabulary, load_model
from sams.policy.policy import Policy
from sams.training.checkpoints import LORA
from sams.training.job import digest_of
from sams.training.sharded import load_sharded

FRESH_SEED = 0


def main(recipe: str, out: Path, tokens: Path | None = None, trained: Path | None = None) -> None:
    """Write the folder `out`, from sharded weights in `trained` or, without them, from the recipe's model.

    Args:
        recipe: the model.
        out: the folder.
        tokens: tokenised data, whose tokenizer goes with the model; without it, the model's own does.
        trained: sharded weights.
    """
    from sams.recipes import ExportRecipe
    from sams.stage import read_recipe

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
        config = AutoConfig.from_pretrained(trained, trust_remote_code=False)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
        model.to_empty(device="cpu")
        model.tie_weights()
        adapted = None
        if (trained / LORA).is_file():
            from sams.settings import Lora

            adapted = add_lora(model, Lora.model_validate(read_json(trained / LORA)))
        policy = Policy(model)
        state = {"policy": policy.state_dict()}
        load_sharded(state, trained)
        policy.load_state_dict(state["policy"])
        if adapted is not None:
            model = adapted.merge_and_unload()
    elif settings.path is not None:
        model = load_model(settings.path, settings, revision=settings.revision)
        check_vocabulary(model, tokenizer, settings.path)
    else:
        model = build_model(settings, tokenizer, FRESH_SEED)
    model.config.use_cache = True
    with whole_folder(out, upstream=upstream, recipe=settings.model_dump(mode="json")) as part:
        model.to(dtype).save_pretrained(part)
        tokenizer.save_pretrained(part)


if __name__ == "__main__":
    from sams.stage import run

    run(main)
