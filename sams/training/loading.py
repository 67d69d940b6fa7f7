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
from sams.policy.stored import files_of, fill, materialise, stored_names, without_weights
from sams.policy.weights import check_weights
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

    Raises:
        UserError: when the model is missing or cannot be read.
    """
    lora = training is not None and training.lora is not None
    # Weights that are not trained need no float32 masters.
    dtype = torch.float32 if training is not None and not lora else getattr(torch, workers.precision)
    if not workers.shards or lora:
        return wrap(
            load_model(path, settings, revision=revision, dtype=dtype), settings, workers, training, seed
        )
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
            if not weight.requires_grad:
                weight.data = weight.data.to(getattr(torch, workers.precision))
    return workers.wrap(Policy(model), trained=training is not None)
