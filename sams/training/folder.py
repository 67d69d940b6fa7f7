"""Complete an exported folder: config, generation settings, tokenizer and licence, next to the weights.

They are the start model's own. Of its config only the type of the weights and `use_cache` differ, of its generation
settings the stop ids and `use_cache`; tokenizer, chat templates and licence are copied byte for byte. Other files of
the start model, its code among them, are left behind.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from sams.policy.weights import FETCH_AGAIN, stored_types
from sams.runtime.errors import UserError, first_line
from sams.runtime.files import read_json
from sams.study.model_files import LICENCES, TOKENIZER, matching

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from sams.study.settings import Model

CONFIG, GENERATION, TEMPLATE = "config.json", "generation_config.json", "chat_template.jinja"
TYPE_KEYS = ("dtype", "torch_dtype")
"""Keys of the type of the weights in a config, now and before transformers 5."""
FROM_CONFIG = ("_from_model_config", "output_attentions", "output_hidden_states", "use_cache")
"""Keys of generation settings that transformers derives from a config. With the first it derives them again."""


def export_type(requested: str, settings: Model, start: Path | None) -> torch.dtype:
    """Return the type of exported weights.

    Args:
        requested: name of a type; `auto` for that of the start model, as `from_pretrained(dtype="auto")` finds it, or
            for the compute type of a model without a start.
        settings: settings of the model.
        start: folder of the start model; None for a fresh model.
    """
    if requested != "auto":
        name = requested
    elif start is None:
        name = settings.precision
    else:
        config = _read(start / CONFIG)
        parts = (config, config.get("text_config") or {})
        named = [part[key] for part in parts for key in TYPE_KEYS if isinstance(part.get(key), str)]
        name = (named or stored_types(start) or [settings.precision])[0]
    dtype: torch.dtype = getattr(torch, name.removeprefix("torch."))
    return dtype


def complete(
    out: Path, source: Path, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype, date: str
) -> None:
    """Write the files next to the weights, where the configs of transformers are already.

    Args:
        out: the folder.
        source: folder of the start model; for a fresh model, that of its tokenizer.
        tokenizer: tokenizer that the model was trained with.
        dtype: type of the weights.
        date: the day that the chat template gets for today's.
    """
    _write_config(out, source, dtype)
    _write_tokenizer(out, source, tokenizer)
    _write_generation_config(out, source, tokenizer, date)
    _copy(source, out, LICENCES)


def _write_config(out: Path, source: Path, dtype: torch.dtype) -> None:
    written = read_json(out / CONFIG)
    config = _read(source / CONFIG) if (source / CONFIG).is_file() else dict(written)
    if config.get("model_type") != written["model_type"]:  # the language model alone of a multimodal one
        config = dict(written)
    if written.get("tie_word_embeddings") is False and "tie_word_embeddings" in config:
        config["tie_word_embeddings"] = False  # its files have two different weights
    config["architectures"] = written["architectures"]
    config.pop("auto_map", None)  # names files with code, which is not run
    name = str(dtype).removeprefix("torch.")
    parts = [config, *(value for value in config.values() if isinstance(value, dict))]
    for part in parts:
        part |= {key: name for key in TYPE_KEYS if isinstance(part.get(key), str)}
        if part.get("use_cache") is False:
            part["use_cache"] = True
    if not any(isinstance(config.get(key), str) for key in TYPE_KEYS):
        config["dtype"] = name
    _write(out / CONFIG, config)


def _write_generation_config(out: Path, source: Path, tokenizer: PreTrainedTokenizerBase, date: str) -> None:
    from sams.data.templates import stop_ids

    config = AutoConfig.from_pretrained(out, trust_remote_code=False).get_text_config()
    if (source / GENERATION).is_file():
        settings = _read(source / GENERATION)
        settings.pop("_from_model_config", None)
    else:
        settings = GenerationConfig.from_model_config(config).to_diff_dict()
        settings = {key: value for key, value in settings.items() if key not in FROM_CONFIG}
    given = settings.get("eos_token_id")
    given = getattr(config, "eos_token_id", None) if given is None else given
    given = given if isinstance(given, list) else [given]
    stops = list(dict.fromkeys(token for token in [*given, *stop_ids(tokenizer, date)] if token is not None))
    settings["eos_token_id"] = stops if len(stops) > 1 else stops[0]
    padding = settings.get("pad_token_id", getattr(config, "pad_token_id", None))
    if padding is None or not 0 <= padding < config.vocab_size:
        padding = tokenizer.pad_token_id
    settings["pad_token_id"] = stops[0] if padding is None else padding
    settings["use_cache"] = True
    _write(out / GENERATION, settings)


def _write_tokenizer(out: Path, source: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    template = tokenizer.chat_template
    try:
        own = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        same = own.get_vocab() == tokenizer.get_vocab()
        replaced = own.chat_template != template
    except (OSError, ValueError):  # a folder of weights only
        same = replaced = False
    if not same or (replaced and not isinstance(template, str)):
        tokenizer.save_pretrained(out)
        return
    _copy(source, out, (*TOKENIZER, *own.vocab_files_names.values()))
    if replaced:
        shutil.rmtree(out / "additional_chat_templates", ignore_errors=True)
        (out / "chat_template.json").unlink(missing_ok=True)
        (out / TEMPLATE).write_text(template, encoding="utf-8")
        config = read_json(out / "tokenizer_config.json")
        if config.pop("chat_template", None) is not None:
            _write(out / "tokenizer_config.json", config)


def _copy(source: Path, out: Path, patterns: tuple[str, ...]) -> None:
    for file in matching(source, patterns):
        target = out / file.relative_to(source)
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, target)


def _read(file: Path) -> dict[str, Any]:
    try:
        read = read_json(file)
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot be read ({first_line(error)})", where=str(file), remedy=FETCH_AGAIN
        ) from None
    if not isinstance(read, dict):
        raise UserError("expected an object with keys", where=str(file), remedy=FETCH_AGAIN)
    return read


def _write(path: Path, value: Any) -> None:
    """Write JSON in the form of transformers; configs may hold infinity."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
