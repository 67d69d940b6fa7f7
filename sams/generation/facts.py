"""What answers depend on, and where that and the finished batches lie."""

import hashlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sams.runtime.code import code_digest
from sams.runtime.errors import UserError
from sams.runtime.files import MANIFEST, canonical_json, manifest_digest, refuse_damage, sha256_of
from sams.scoring.inputs import versions
from sams.study.settings import Decoding


def made_with(decoding: Decoding, module: str) -> dict[str, Any]:
    """What answers depend on besides settings, model and prompts: our code and the libraries that decode.

    Raises:
        UserError: the engine is not installed.
    """
    libraries = ["torch", "transformers", "tokenizers"]
    if decoding.engine == "vllm":
        if find_spec("vllm") is None:
            raise UserError(
                "vllm is not installed",
                where="decoding.engine",
                remedy="`pip install vllm` in this environment, or set it to transformers",
            )
        libraries.append("vllm")
    return {"code": code_digest(module), "versions": versions(*libraries)}


def parts_path(out: Path) -> Path:
    """Where finished batches lie until all answers are there: .<answers>.parts."""
    return out.with_name(f".{out.name}.parts")


def model_digest(folder: Path) -> str:
    """Sixteen hex digits that stand for a model folder: by its manifest, or else by its files' content.

    Raises:
        UserError: its files are not what the manifest says.
    """
    if (folder / MANIFEST).exists():
        refuse_damage(folder)
        return manifest_digest(folder)
    files = {path.name: sha256_of(path) for path in sorted(folder.glob("*")) if path.is_file()}
    return hashlib.sha256(canonical_json(files).encode()).hexdigest()[:16]


def sample_label(label: str, sample: int) -> str:
    """Label of one of several samples, counted from 0. The first has the label that it has alone."""
    return f"{label}, sample {sample + 1}" if sample else label
