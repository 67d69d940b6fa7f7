"""Small models and pairs as text, and short runs of TRL's trainer and of ours."""

import copy
import functools
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from torch import Tensor
from transformers.trainer_callback import PrinterCallback
from trl import DPOConfig, DPOTrainer

from sams.policy.model import build_model
from sams.trl import ScheduledDPOConfig, ScheduledDPOTrainer
from tests import tiny

OWN = {
    "selector",
    "selection_ratio",
    "selector_kwargs",
    "selection_warmup",
    "selection_full_every",
    "selection_end",
    "scoring_batch_size",
    "scheduler_preset",
    "scheduler_kwargs",
    "scheduler_path",
    "selection_seed",
    "packing",
    "record_pairs",
}
RATE = 1e-2


@functools.cache
def _models() -> tuple[transformers.PreTrainedModel, transformers.PreTrainedModel]:
    policy, reference = (build_model(tiny.settings(), tiny.tokenizer(), seed=0) for _ in range(2))
    generator = torch.Generator().manual_seed(0)
    for model in (policy, reference):
        for parameter in model.parameters():
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return policy, reference


def models() -> tuple[transformers.PreTrainedModel, transformers.PreTrainedModel]:
    """A policy, and another model as reference."""
    return copy.deepcopy(_models())


@functools.cache
def tokenizer() -> transformers.PreTrainedTokenizerFast:
    """The tokenizer of the models."""
    return tiny.tokenizer()


def pairs(count: int, **columns: Any) -> datasets.Dataset:
    """Pairs of words as text, with ids, a score and known flips."""
    data = tiny.pairs(count, 1)
    convert = tokenizer().convert_ids_to_tokens
    return datasets.Dataset.from_dict(
        {
            "prompt": [" ".join(convert(ids[1:])) for ids in data["prompt_ids"]],
            "chosen": [" " + " ".join(convert(ids[:-1])) for ids in data["chosen_ids"]],
            "rejected": [" " + " ".join(convert(ids[:-1])) for ids in data["rejected_ids"]],
            "id": data["id"],
            "flipped": data["flipped"],
            "score": [(7 * number) % 13 / 13 for number in range(count)],
            **columns,
        }
    )


def config(folder: Path, **settings: Any) -> Any:
    """Settings of a short run: TRL's, unless one of ours is among them."""
    kind = ScheduledDPOConfig if OWN & {*settings} else DPOConfig
    return kind(
        **{
            "output_dir": str(folder),
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 2,
            "learning_rate": RATE,
            "beta": 0.3,
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": False,
            "save_strategy": "no",
            "logging_steps": 1,
            "report_to": "none",
            "disable_tqdm": True,
            **settings,
        }
    )


def trainer(
    folder: Path,
    data: datasets.Dataset,
    *,
    kind: Any = None,
    arguments: dict[str, Any] | None = None,
    **settings: Any,
) -> Any:
    """A trainer of TRL, or ours if one of our settings is given; with other arguments of its class."""
    given = config(folder, **settings)
    kind = kind or (ScheduledDPOTrainer if isinstance(given, ScheduledDPOConfig) else DPOTrainer)
    policy, reference = models()
    made = kind(
        **{
            "model": policy,
            "ref_model": reference,
            "args": given,
            "train_dataset": data,
            "processing_class": tokenizer(),
            **(arguments or {}),
        }
    )
    made.remove_callback(PrinterCallback)
    return made


def weights(model: Any) -> Tensor:
    """All weights in one tensor."""
    full = [
        getattr(parameter, "full_tensor", lambda part=parameter: part)() for parameter in model.parameters()
    ]
    return torch.cat([part.detach().flatten() for part in full])
