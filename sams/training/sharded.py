"""Read sharded weights without running code from the files, as torch's own reader would by unpickling."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader
from torch.distributed.checkpoint._nested_dict import set_element  # what the overridden method calls
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import ReadItem

LORA = "lora.json"
"""File next to sharded weights with the settings of their adapters."""

# Classes that torch writes into `.metadata`, besides numbers and texts.
KNOWN = {
    "pathlib": {"Path", "PosixPath", "PurePosixPath"},
    "torch": {"Size", "device"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.serialization": {"_get_layout"},
}


def load_sharded(state: dict[str, Any], folder: Path) -> None:
    """Fill a state dict, in place, from a folder written by `torch.distributed.checkpoint.save`.

    Raises:
        CheckpointException: the folder has anything but tensors and plain values, or is damaged.
    """
    dcp.load(state, storage_reader=ShardReader(folder), planner=_Planner())


class ShardReader(FileSystemReader):
    """Reads folders of `torch.distributed.checkpoint.save`; only the classes in `KNOWN` may be in `.metadata`."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        file = Path(self._get_metadata_path(kwargs.get("rank")))
        metadata: Metadata = _Unpickler(io.BytesIO(file.read_bytes())).load()
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name in KNOWN.get(module, ()) or (
            module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        ):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"a checkpoint must not contain {module}.{name}")


class _Planner(DefaultLoadPlanner):
    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        loaded = torch.load(value, weights_only=True)
        set_element(self.original_state_dict, self.mappings[read_item.dest_index.fqn], loaded)
