"""Trainers that note what they train on, and steps by hand on the same rows."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
from torch import Tensor

from sams.trl import ScheduledDPOTrainer
from tests.trl import small

LORA = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False}


class Noted(ScheduledDPOTrainer):
    """Notes the candidates and the chosen rows of each step, and counts forward passes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.candidates: list[list[int]] = []
        self.rows: list[list[int]] = []
        super().__init__(*args, **kwargs)

    def deal(self, batches: Any, batch: Any, choice: Any) -> Any:
        self.candidates.append(batch.numbers.tolist())
        self.rows.append(batch.numbers[choice.indices].tolist())
        return super().deal(batches, batch, choice)


def run(folder: Path, data: datasets.Dataset, **settings: Any) -> Noted:
    """Train, and return the trainer."""
    trainer: Noted = small.trainer(folder, data, kind=Noted, **settings)
    trainer.train()
    return trainer


def by_hand(folder: Path, data: datasets.Dataset, rows: Sequence[Sequence[int]], **settings: Any) -> Tensor:
    """Return the weights after steps of AdamW on the mean of TRL's loss over these rows, without a trainer's loop."""
    plain = small.trainer(folder, data, **settings)
    plain.create_optimizer_and_scheduler(len(rows))
    plain.model.train()
    for step in rows:
        inputs = plain.data_collator([plain.train_dataset[row] for row in step])
        plain.compute_loss(plain.model, inputs).backward()
        torch.nn.utils.clip_grad_norm_(plain.model.parameters(), plain.args.max_grad_norm)
        plain.optimizer.step()
        plain.lr_scheduler.step()
        plain.model.zero_grad()
    return small.weights(plain.model)
