"""`ScheduledDPOTrainer`: TRL's `DPOTrainer` with a selector that chooses the pairs of each optimiser step."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from trl import DPOTrainer

from sams.scheduling.selectors.base import Choice
from sams.scheduling.selectors.table import Entry
from sams.training.results import WORK
from sams.trl.card import add_selection
from sams.trl.config import ScheduledDPOConfig
from sams.trl.forward import Forward, padded
from sams.trl.losses import plain_loss, weighted_loss
from sams.trl.packing import choose_forward
from sams.trl.refusals import refuse, refuse_version
from sams.trl.rows import NUMBER, Numbered, NumberedCollator
from sams.trl.schedule import Schedule, split
from sams.trl.scoring import Batch, reference_of

WEIGHTS, LABELS, BETA_SCALES = "pair_weights", "pair_labels", "pair_beta_scales"
"""Keys of a micro-batch whose pairs are not trained on plainly."""


class ScheduledDPOTrainer(DPOTrainer):  # type: ignore[misc]
    """TRL's `DPOTrainer` with a selector.

    The micro-batches of an optimiser step are the candidates. The selector is shown their scores and answers which
    pairs to train on; the step then has as many micro-batches as before, of which some are empty. The loss is the
    mean over the chosen pairs. With selector `all` it is `DPOTrainer`, bit by bit.

    Args:
        model: as for `DPOTrainer`.
        ref_model: as for `DPOTrainer`.
        args: settings of the training and the selection; default: selector `all`.
        train_dataset: as for `DPOTrainer`. Selectors can read all its columns; a column `id`
            names the pairs.
        kwargs: further arguments of `DPOTrainer`.

    Raises:
        UserError: the version of TRL, a setting or the data is not supported.
    """

    args: ScheduledDPOConfig
    data_collator: Any

    def __init__(
        self,
        model: Any,
        ref_model: Any = None,
        args: ScheduledDPOConfig | None = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        *others: Any,
        **kwargs: Any,
    ) -> None:
        refuse_version()
        if args is None:
            name = model if isinstance(model, str) else model.config._name_or_path
            args = ScheduledDPOConfig(f"{name.split('/')[-1]}-DPO")
        self._entry: Entry = refuse(args, train_dataset)
        self.schedule: Schedule | None = None
        self.forward: Forward = padded
        self._has_forward = False
        self._chosen = 0
        super().__init__(model, ref_model, args, data_collator, train_dataset, *others, **kwargs)

    # Rows.

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        """Return the data with its log-probs under the reference.

        TRL's file of them lies next to the data; that of data in memory lies in a folder of each process, where the
        others do not find it. Here it lies in `output_dir`.
        """
        if self.accelerator.num_processes > 1 and not dataset.cache_files:
            folder = Path(self.args.output_dir) / WORK
            folder.mkdir(parents=True, exist_ok=True)
            dataset = copy.copy(dataset)
            dataset._get_cache_file_path = partial(_cache_file, folder)
        return super()._precompute_ref_logps(dataset, name, batch_size)

    def _get_dataloader(
        self,
        dataset: Any,
        description: str,
        batch_size: int,
        sampler_fn: Any = None,
        is_training: bool = False,
        dataloader_key: str | None = None,
    ) -> Any:
        """Return a loader; that of the training data passes on the numbers of the rows."""
        if not is_training:
            return super()._get_dataloader(
                dataset, description, batch_size, sampler_fn, is_training, dataloader_key
            )
        self._rows = numbered = Numbered(self._remove_unused_columns(dataset, description))
        collator: Any = self.data_collator
        self.data_collator = NumberedCollator(collator)
        self._set_signature_columns_if_needed()
        signature, self._signature_columns = self._signature_columns, [*self._signature_columns, NUMBER]
        try:
            return super()._get_dataloader(
                numbered,
                description,
                batch_size,
                None if sampler_fn is None else lambda _: sampler_fn(numbered.data),
                is_training,
                dataloader_key,
            )
        finally:
            self.data_collator, self._signature_columns = collator, signature

    def read_rows(self, numbers: Sequence[int]) -> dict[str, Tensor]:
        """Return rows of the training data as a micro-batch on the device."""
        inputs = self.data_collator(self._rows.data.__getitems__([*numbers]))
        found: dict[str, Tensor] = self._prepare_inputs({**inputs, NUMBER: torch.tensor(numbers)})
        return found

    # The choice.

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        self.schedule, self._has_forward = None, False
        output = super()._inner_training_loop(*args, **kwargs)
        if self.schedule is not None:
            self.schedule.close()
        return output

    def begun(self) -> Schedule:
        """Return the schedule of the run, which is made at the begin of the training."""
        if self.schedule is None:
            self.schedule = Schedule(self, self._entry)
        return self.schedule

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Tensor]], Any]:
        """Return the micro-batches of the next step, with the chosen pairs of its candidates."""
        schedule = self.begun()
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        schedule.flush()
        if not batches:
            return batches, items
        if not self._has_forward:
            self.forward = choose_forward(self, {key: batches[0][key] for key in batches[0] if key != NUMBER})
            self._has_forward = True
        self._chosen = 0
        if schedule.is_plain or not schedule.selection.scheduled(self.state.global_step + 1):
            return batches, items
        batch, choice = schedule.choose(batches)
        return self.deal(batches, batch, choice), items

    def deal(self, batches: list[dict[str, Tensor]], batch: Batch, choice: Choice) -> list[dict[str, Tensor]]:
        """Return as many micro-batches as before, with this process's part of the chosen pairs.

        Process r has every world-th pair from the r-th on; all have the same number of pairs.
        """
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        self._chosen = chosen = len(choice.indices)

        weights = torch.ones(chosen) if choice.weights is None else choice.weights.float()
        spare = -chosen % world
        parts: dict[str, Tensor] = {
            "indices": torch.cat([choice.indices, choice.indices[:1].repeat(spare)]),
            WEIGHTS: torch.cat([weights, torch.zeros(spare)]),
        }
        for key, values in ((LABELS, choice.labels), (BETA_SCALES, choice.beta_scales)):
            if values is not None:
                parts[key] = torch.cat([values.float(), torch.ones(spare)])
        if choice.is_plain and not spare:
            del parts[WEIGHTS]
        own = {key: values[rank::world] for key, values in parts.items()}
        sizes = split(len(own["indices"]), self._train_batch_size, len(batches))
        dealt = {key: values.split(sizes) for key, values in own.items()}
        return [
            self._micro_batch(batch, {key: dealt[key][index] for key in dealt})
            for index in range(len(batches))
        ]

    def _micro_batch(self, batch: Batch, parts: dict[str, Tensor]) -> dict[str, Tensor]:
        indices = parts.pop("indices")
        if not len(indices):
            nothing = torch.empty(0, 0, dtype=torch.int64, device=self.accelerator.device)
            return {"input_ids": nothing, "attention_mask": nothing}
        inputs = self.read_rows(batch.numbers[indices].tolist())
        inputs |= {key: values.to(self.accelerator.device) for key, values in parts.items()}
        if "reference_chosen" in batch.values:
            inputs["ref_chosen_logps"] = batch.values["reference_chosen"][indices].to(self.accelerator.device)
            inputs["ref_rejected_logps"] = batch.values["reference_rejected"][indices].to(
                self.accelerator.device
            )
        return inputs

    # The step.

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Compute a micro-batch, or nothing for an empty one."""
        if not len(inputs["input_ids"]):
            return torch.zeros((), device=self.args.device)
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        return loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return TRL's loss; in training that of the chosen pairs, scaled to their mean over a step."""
        if NUMBER not in inputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        inputs = dict(inputs)
        numbers = inputs.pop(NUMBER)
        pairs = len(numbers)
        scored = self._chosen and self.begun().selector.needs_scores
        ways = {key: inputs.pop(key) for key in (WEIGHTS, LABELS, BETA_SCALES) if key in inputs}
        if "ref_chosen_logps" not in inputs and (ways or self.forward is not padded):
            inputs |= reference_of(self, inputs)

        def call(**arguments: Any) -> Any:
            return self.forward(model, arguments)[0]

        if ways:
            loss, values = weighted_loss(
                self,
                inputs,
                call,
                weights=ways[WEIGHTS],
                labels=ways.get(LABELS),
                beta_scales=ways.get(BETA_SCALES),
            )
        else:
            loss, values = plain_loss(self, inputs, call)
        if not scored:
            self._note(numbers, inputs, values, ways.get(WEIGHTS))
        whole = pairs * self.accelerator.num_processes * self.current_gradient_accumulation_steps
        if self._chosen and whole != self._chosen:
            loss = loss * (whole / self._chosen)
        return loss

    def _note(
        self, numbers: Tensor, inputs: dict[str, Any], values: list[Tensor], weights: Tensor | None
    ) -> None:
        """Note the pairs of a micro-batch for the record; a weight of 0 marks a repeated pair."""
        chosen_reward, rejected_reward, margins, chosen, rejected = values
        reference = inputs.get("ref_chosen_logps"), inputs.get("ref_rejected_logps")
        if reference[0] is None:  # TRL computed it, and its rewards are beta times the difference
            reference = chosen - chosen_reward / self.beta, rejected - rejected_reward / self.beta
        tokens = inputs["completion_mask"][:, 1:].sum(dim=1).chunk(2)
        found = {
            "number": numbers,
            "margins": margins,
            "chosen_logps": chosen,
            "rejected_logps": rejected,
            **dict(zip(("reference_chosen", "reference_rejected"), reference, strict=True)),
            **dict(zip(("chosen_tokens", "rejected_tokens"), tokens, strict=True)),
        }
        kept = slice(None) if weights is None else weights > 0
        self.begun().note({name: value[kept] for name, value in found.items()})

    # Checkpoints and the card.

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write TRL's model card, with a section on the selection."""
        super().create_model_card(*args, **kwargs)
        if self.schedule is not None and self.is_world_process_zero():
            add_selection(Path(self.args.output_dir) / "README.md", self.schedule)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.schedule is not None:
            self.schedule.save(Path(output_dir))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self.begun().load(Path(checkpoint))


def _cache_file(folder: Path, fingerprint: str) -> str:
    return str(folder / f"reference-{fingerprint}.arrow")
