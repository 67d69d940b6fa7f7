"""Validate model files without loading the model.

The check reads the weights once and holds one tensor in memory, so that it works for models of any size.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sams.runtime.digests import digest_of_source
from sams.runtime.errors import UserError, first_line
from sams.runtime.files import MANIFEST, canonical_json, manifest_digest, sha256_of_text

log = logging.getLogger(__name__)

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTERS = "adapter_config.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
# Names of safetensors for the types of weights that can be trained; all other types are quantised.
FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
FETCH_AGAIN = "fetch the model again"


def check_weights(folder: Path, *, allow_pickle: bool = False) -> None:
    """Check that a model's weights are complete, of a type that can be trained, and finite.

    Args:
        folder: a Hugging Face folder.
        allow_pickle: accept pickled weights where there are no safetensors; pickled weights are not checked.

    Raises:
        UserError: naming the file and the tensor.
    """
    refuse_adapters(folder)
    _check_config(folder / "config.json")
    files = _files(folder)
    if not files:
        pickles = _pickles(folder)
        if not pickles:
            converted = next(folder.glob("*.gguf"), None)
            raise UserError(
                f"no weights: neither {WHOLE} nor {INDEX}"
                + (f", only {converted.name}" if converted else ""),
                where=str(folder),
                remedy="give the model that it was converted from, or save it with `from_pretrained(folder, "
                f"gguf_file='{converted.name}').save_pretrained(...)`"
                if converted
                else FETCH_AGAIN,
            )
        if not allow_pickle:
            raise UserError(
                f"the weights are pickled only ({pickles[0]})",
                where=str(folder),
                remedy="save them as safetensors, or set model.allow_pickle: true",
            )
        log.warning("%s: pickled weights are read, as model.allow_pickle says", folder)
        return
    for file, expected in files.items():
        _check_file(file, expected)


def refuse_adapters(folder: Path) -> None:
    """Check that a folder has a model without adapters, which transformers would load without being asked to.

    Raises:
        UserError: it has adapters alone, or a file of adapters next to a model.
    """
    file = folder / ADAPTERS
    if not file.is_file():
        return
    base = _read(file).get("base_model_name_or_path")
    if not (folder / "config.json").is_file() or not (_files(folder) or _pickles(folder)):
        raise UserError(
            "the folder has adapters (peft) without their base model",
            where=str(folder),
            remedy=f"set the path to their base model{f', {base},' if base else ''} or merge them into it first "
            "(`merge_and_unload` of peft)",
        )
    weights = [found.name for found in sorted(folder.glob("adapter_model*"))]
    raise UserError(
        f"adapters next to a model: transformers would add {weights[0]} to it"
        if weights
        else "a file of adapters, left over in the folder of a model: transformers would add fresh adapters",
        where=str(file),
        remedy=f"move {' and '.join([ADAPTERS, *weights])} to another folder",
    )


def _pickles(folder: Path) -> list[str]:
    """Return the names of a model's pickled files; trainers leave pickles that are no weights."""
    names = {file.name for pattern in PICKLES for file in folder.glob(pattern)}
    others = ("adapter_", "training_args", "optimizer", "scheduler", "rng_state")
    return sorted(name for name in names if not name.startswith(others))


def stored_types(folder: Path) -> list[str]:
    """Return the types of a model's floating-point tensors in safetensors, in their order."""
    types = []
    for file in sorted(_files(folder)):
        with safe_open(file, framework="pt") as stored:
            types += [stored.get_slice(name).get_dtype() for name in stored.keys()]  # noqa: SIM118
    return [FLOATS[kind] for kind in dict.fromkeys(types) if kind in FLOATS]


def digest_of_model(folder: Path) -> str:
    """Return a digest of a model's config and weights, sixteen hex digits: its manifest's, if there is one."""
    if (folder / MANIFEST).is_file():
        return manifest_digest(folder)
    files = sorted(
        file for pattern in ("config.json", "*.safetensors", "*.bin") for file in folder.glob(pattern)
    )
    digests = {file.name: digest_of_source(file) for file in files}
    return sha256_of_text(canonical_json(digests))[:16]


def refuse_not_finite(tensors: Iterable[tuple[str, Tensor]], where: str) -> None:
    """Check that named tensors have no NaN and no infinity.

    Raises:
        UserError: naming the first tensor that has one.
    """
    for name, tensor in tensors:
        if not is_finite(tensor):
            raise UserError(f"tensor {name} holds NaN or infinity", where=where, remedy=FETCH_AGAIN)


def is_finite(tensor: Tensor) -> bool:
    """Return whether all values are finite; does not copy the tensor."""
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    return bool(torch.isfinite(torch.stack(torch.aminmax(tensor.detach()))).all())


def _check_config(file: Path) -> None:
    config = _read(file)
    if config.get("quantization_config"):
        raise UserError(
            "the weights are quantised, which cannot be trained",
            where=f"{file}, key 'quantization_config'",
            remedy="give the model in bfloat16, float16 or float32",
        )


def _read(file: Path) -> dict[str, object]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"not JSON: {first_line(error)}"
        raise UserError(f"cannot be read ({reason})", where=str(file), remedy=FETCH_AGAIN) from None
    if not isinstance(content, dict):
        raise UserError("expected an object with keys", where=str(file), remedy=FETCH_AGAIN)
    return content


def _files(folder: Path) -> dict[Path, set[str]]:
    """Return the files of a model, each with the tensors that the index names for it."""
    if (folder / WHOLE).is_file():
        return {folder / WHOLE: set()}
    index = folder / INDEX
    if not index.is_file():
        return {}
    weight_map = _read(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(
            "expected tensors and their files", where=f"{index}, key 'weight_map'", remedy=FETCH_AGAIN
        )
    files: dict[Path, set[str]] = {}
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or Path(name).name != name:
            raise UserError(
                f"expected the name of a file in the same folder, found {name!r:.80}",
                where=f"{index}, tensor {tensor}",
                remedy=FETCH_AGAIN,
            )
        files.setdefault(folder / name, set()).add(tensor)
    return files


def _check_file(file: Path, expected: set[str]) -> None:
    if not file.is_file():
        raise UserError(
            f"a shard is missing, with {len(expected)} tensors", where=str(file), remedy=FETCH_AGAIN
        )
    try:
        refuse_not_finite(_tensors(file, expected), str(file))
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"cut off or damaged ({first_line(error)})", where=str(file), remedy=FETCH_AGAIN
        ) from None


def _tensors(file: Path, expected: set[str]) -> Iterator[tuple[str, Tensor]]:
    with safe_open(file, framework="pt") as stored:
        names = stored.keys()
        if absent := sorted(expected - set(names)):
            raise UserError(
                f"tensor {absent[0]} is not in it, as the index says", where=str(file), remedy=FETCH_AGAIN
            )
        for name in names:
            kind = stored.get_slice(name).get_dtype()
            # Older models store masks and positions, as integers.
            if kind not in FLOATS and (name.endswith(".weight") or kind.startswith("F")):
                raise UserError(
                    f"tensor {name} is of type {kind}, expected one of {', '.join(sorted(FLOATS))}",
                    where=str(file),
                    remedy="give the model in bfloat16, float16 or float32",
                )
            yield name, stored.get_tensor(name)
