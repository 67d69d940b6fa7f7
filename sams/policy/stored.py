"""Read and write weights in safetensors files without a complete model in memory.

`from_pretrained` and `save_pretrained` of transformers hold all weights. Here a model is built without data, and
torch's distributed checkpoint reads the part of every tensor that a process needs: its own shard, or the tensors of
the file that is being written. Names in files are those of transformers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
import transformers
from huggingface_hub import snapshot_download, split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import nn
from torch.distributed.checkpoint import HuggingFaceStorageReader, StorageReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from transformers.core_model_loading import revert_weight_conversion

from sams.policy.dropout import save_config
from sams.policy.model import from_config
from sams.policy.weights import INDEX, WHOLE, refuse_not_finite
from sams.runtime.errors import UserError
from sams.runtime.files import write_json
from sams.study.model_files import BESIDE_WEIGHTS

FILES = [*BESIDE_WEIGHTS, WHOLE, "model-*.safetensors", INDEX]
"""Files fetched of a hub model: some repositories have the weights a second time, under other names."""
FILE_SIZE = 2_000_000_000
"""Most bytes of a written file, unless one tensor is larger: a file is in memory before it is on disk."""


def files_of(path: str | Path, revision: str | None = None) -> Path:
    """Return the folder of a model: `path` itself, or the cache folder of its hub files.

    Raises:
        UserError: when the hub files cannot be found.
    """
    if Path(path).is_dir():
        return Path(path)
    try:
        return Path(snapshot_download(str(path), revision=revision, allow_patterns=FILES))
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot find the model's files: {str(error).splitlines()[0]}",
            where=str(path),
            remedy="give a folder with config.json and safetensors, or a hub id that this machine can reach",
        ) from error


def without_weights(
    folder: Path, attention: str, dtype: torch.dtype = torch.float32
) -> transformers.PreTrainedModel:
    """Build the model of a folder's config.json without dropout, with its weights on the meta device.

    Buffers have their values: they are computed from the config, and no file has them.

    Raises:
        UserError: when the model cannot be built.
    """
    from accelerate import init_empty_weights  # of the stages; the package's core does without

    try:
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
        with init_empty_weights(include_buffers=False):
            model = from_config(config, attention, dtype, str(folder))
        model.tie_weights()  # the meta device has separated tied weights
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"cannot build the model: {str(error).splitlines()[0]}",
            where=str(folder),
            remedy="give a folder with the config.json of a causal language model",
        ) from error
    return model


def names_in_files(model: transformers.PreTrainedModel) -> dict[str, str] | None:
    """Map each weight of a model to its name in files that transformers writes; tied weights have one name.

    None where the files have other tensors than the weights (stacked experts, or buffers, for example).
    """
    weights = dict(model.named_parameters())
    if set(model.state_dict()) - {name for name, _ in model.named_parameters(remove_duplicate=False)}:
        return None
    named: dict[str, Any] = {name: weight.to("meta", copy=True) for name, weight in weights.items()}
    written = {id(tensor): name for name, tensor in revert_weight_conversion(model, dict(named)).items()}
    if len(written) != len(weights) or not all(id(tensor) in written for tensor in named.values()):
        return None
    return {name: written[id(tensor)] for name, tensor in named.items()}


def stored_names(model: transformers.PreTrainedModel, folder: Path) -> dict[str, str] | None:
    """Map each weight of a model to its name in the safetensors of a folder.

    None unless the files have every weight once and in its size; `from_pretrained` can read other files too.
    """
    names = names_in_files(model)
    if names is None:
        return None
    tensors: dict[str, Any] = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    aliases = model.all_tied_weights_keys
    stored = {}
    for name, weight in model.named_parameters():
        # Files from before a renaming have the model's own name, and either name of tied weights may be stored.
        others = [alias for alias, source in aliases.items() if source == name]
        keys = [key for key in dict.fromkeys([names[name], name, *others]) if key in tensors]
        if len(keys) != 1 or tensors[keys[0]].size != weight.shape or len(tensors[keys[0]].chunks) != 1:
            return None
        stored[name] = keys[0]
    return stored


def materialise(module: nn.Module, model: transformers.PreTrainedModel, device: torch.device) -> None:
    """Allocate the weights of `module`, which contains the model, on a device; tied weights stay tied."""
    buffers = {name: buffer.to(device) for name, buffer in module.named_buffers()}
    module.to_empty(device=device)
    model.tie_weights()
    for name, buffer in module.named_buffers():
        buffer.copy_(buffers[name])


def fill(model: transformers.PreTrainedModel, folder: Path, names: dict[str, str]) -> None:
    """Read the weights of a model, or this process's shards, from a folder. A collective call.

    Args:
        model: model with allocated weights.
        folder: folder of safetensors.
        names: name of each weight in the files.
    """
    state: dict[str, Any] = {
        names[name]: weight.detach() for name, weight in model.named_parameters() if name in names
    }
    dcp.load(state, storage_reader=HuggingFaceStorageReader(str(folder)))


def write(
    model: transformers.PreTrainedModel,
    reader: StorageReader,
    keys: dict[str, str],
    out: Path,
    dtype: torch.dtype,
    source: Path,
    file_size: int = FILE_SIZE,
) -> None:
    """Write a model's config and weights as `save_pretrained` does, one file in memory at a time.

    Args:
        model: model without its weights.
        reader: reader of the weights.
        keys: key of each weight in the reader.
        out: the folder.
        dtype: type of the weights in the files.
        source: source of the weights, for error messages.
        file_size: most bytes of a file.

    Raises:
        UserError: a weight is not a tensor, or has NaN or infinity.
    """
    names = names_in_files(model)
    assert names is not None
    model.to(dtype).save_pretrained(out, state_dict={})  # the configs
    save_config(model, out)
    weights = {names[name]: (keys[name], weight) for name, weight in model.named_parameters()}
    split = split_torch_state_dict_into_shards(
        {name: weight.detach() for name, (_, weight) in weights.items()},
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=file_size,
    )
    stored = reader.read_metadata().state_dict_metadata
    for key in keys.values():
        # torch would unpickle an entry that is not a tensor.
        if not isinstance(stored.get(key), TensorStorageMetadata):
            raise UserError(
                f"weight {key} is not a tensor", where=str(source), remedy="make the folder again"
            )
    for file, inside in split.filename_to_tensors.items():
        state: dict[str, Any] = {}
        for name in inside:
            key, weight = weights[name]
            state[key] = torch.empty(weight.shape, dtype=dtype)
        dcp.load(state, storage_reader=reader, no_dist=True)
        written = {name: state[weights[name][0]] for name in inside}
        refuse_not_finite(written.items(), str(source))
        save_file(written, out / file, {"format": "pt"})
    if split.is_sharded:
        metadata = {"total_parameters": model.num_parameters(), **split.metadata}
        index = {"metadata": metadata, "weight_map": split.tensor_to_filename}
        write_json(out / "model.safetensors.index.json", index)
