"""Load the policy of a job: with adapters, compiled, replicated or sharded."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import PreTrainedModel

from sams.policy.model import add_lora, load_model
from sams.policy.policy import Policy
from sams.policy.quantised import quantise
from sams.policy.stored import files_of, fill, materialise, stored_names, without_weights
from sams.policy.weights import check_weights
from sams.runtime.errors import UserError
from sams.runtime.files import MANIFEST
from sams.training.distribution import Workers

if TYPE_CHECKING:
    from sams.study.settings import Model, Training

log = logging.getLogger(__name__)


def load_policy(
    path: str | Path,
    settings: Model,
    workers: Workers,
    *,
    revision: str | None = None,
    training: Training | None = None,
    seed: int = 0,
    load_in_4bit: bool = False,
) -> nn.Module:
    """Load the model of a folder or a hub id as a policy. A collective call.

    A sharded policy is built without data, and each process reads its own shards only. With adapters, or where the
    files have other tensors than the model, each process loads the complete model before it is sharded.

    Args:
        path: folder or hub id.
        settings: settings of the policy.
        workers: the processes.
        revision: revision of the hub id.
        training: settings of the stage that trains the policy; None for a policy that is only scored.
        seed: seed of the adapters.
        load_in_4bit: hold the linear layers of a policy that is only scored in 4 bits.

    Raises:
        UserError: when the model is missing or cannot be read; 4-bit weights that would be sharded.
    """
    log.info("loading the model ...")
    lora = None if training is None else training.lora
    # Weights that are not trained need no float32 masters.
    dtype = torch.float32 if training is not None and lora is None else getattr(torch, workers.precision)
    load_in_4bit = load_in_4bit if lora is None else lora.load_in_4bit
    if not workers.shards or lora is not None or load_in_4bit:
        model = load_model(path, settings, revision=revision, dtype=dtype)
        if load_in_4bit:
            if workers.shards:
                raise UserError(
                    "4-bit weights cannot be sharded",
                    where="lora.load_in_4bit",
                    remedy="set launch.strategy: ddp",
                )
            quantise(model, workers.device)
        return wrap(model, settings, workers, training, seed)
    folder = files_of(path, revision)
    if workers.is_main and not (folder / MANIFEST).is_file():  # an export is checked already
        check_weights(folder, allow_pickle=settings.allow_pickle)
    model = without_weights(folder, settings.attention, dtype)
    stored = stored_names(model, folder)
    if stored is None:
        log.warning(
            "the files of %s have other tensors than the model: every process loads all of them", path
        )
        return wrap(load_model(path, settings, revision=revision, dtype=dtype), settings, workers, training)
    policy = wrap(model, settings, workers, training)
    materialise(policy, model, workers.device)
    fill(model, folder, stored)
    return policy


def wrap(
    model: PreTrainedModel, settings: Model, workers: Workers, training: Training | None = None, seed: int = 0
) -> nn.Module:
    """Wrap a model as a policy: with adapters if set, replicated or sharded.

    Frozen weights next to adapters get the compute type.
    """
    if training is not None and training.lora is not None:
        add_lora(model, training.lora, seed)
        for weight in model.parameters():
            if not weight.requires_grad and weight.is_floating_point():  # not those in 4 bits
                weight.data = weight.data.to(getattr(torch, workers.precision))
    return workers.wrap(Policy(model), trained=training is not None)
