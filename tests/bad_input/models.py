"""A small model with its tokenizer, and ways to damage it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sams.policy.model import build_model
from tests import tiny

NORM, HEAD = "model.norm.weight", "lm_head.weight"
Change = Callable[[Path], Any]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with its tokenizer, as one file and as shards."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer = tiny.tokenizer()
    model = build_model(tiny.settings(), tokenizer, 0)
    model.save_pretrained(folder / "one")
    model.save_pretrained(folder / "shards", max_shard_size="20KB")
    for kind in ("one", "shards"):
        tokenizer.save_pretrained(folder / kind)
    return folder


def copied(whole: Path, tmp_path: Path, kind: str = "one") -> Path:
    return Path(shutil.copytree(whole / kind, tmp_path / "model"))


def tensors(change: Callable[[dict[str, Any]], Any]) -> Change:
    """Change the tensors of the one file."""

    def changed(folder: Path) -> None:
        file = folder / "model.safetensors"
        found = load_file(file)
        change(found)
        save_file(found, file, metadata={"format": "pt"})

    return changed


def in_json(name: str, **changes: Any) -> Change:
    def changed(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(content | changes))

    return changed


def text(name: str, content: str) -> Change:
    return lambda folder: (folder / name).write_text(content)


def gone(name: str) -> Change:
    return lambda folder: (folder / name).unlink()


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.path, "w")
