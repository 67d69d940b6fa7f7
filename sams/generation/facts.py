"""Digests of what answers depend on, and paths of decoded batches."""

import hashlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sams.runtime.code import code_digest
from sams.runtime.errors import UserError
from sams.runtime.files import MANIFEST, canonical_json, manifest_digest, refuse_damage, sha256_of
from sams.scoring.inputs import versions
from sams.study.settings import Decoding, ModelDecoding


def made_with(decoding: Decoding | ModelDecoding, module: str, *more: str) -> dict[str, Any]:
    """Return the digest of our code and the versions of the decoding libraries, on which answers depend.

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
    return {"code": code_digest(module, *more), "versions": versions(*libraries)}


def parts_path(out: Path) -> Path:
    """Return the path of decoded batches, .<answers>.parts."""
    return out.with_name(f".{out.name}.parts")


def model_digest(folder: Path) -> str:
    """Return a digest of sixteen hex digits of a model folder: of its manifest, or else of its files.

    Raises:
        UserError: its files differ from the manifest.
    """
    if (folder / MANIFEST).exists():
        refuse_damage(folder)
        return manifest_digest(folder)
    files = {path.name: sha256_of(path) for path in sorted(folder.glob("*")) if path.is_file()}
    return hashlib.sha256(canonical_json(files).encode()).hexdigest()[:16]
