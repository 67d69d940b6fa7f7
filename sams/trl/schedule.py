"""The selector of a run: its rounds, what it is shown, its choice, and its state in checkpoints."""

from __future__ import annotations

import logging
import math
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import broadcast
from torch import Tensor

from sams.policy.blocks import blocks
from sams.runtime.errors import UserError
from sams.scheduling.selection import Selection
from sams.scheduling.selectors.base import Choice, Selector, Setup, View, checked
from sams.scheduling.selectors.table import Entry, settings_of
from sams.training.pairs import ROWS
from sams.training.results import TEXTS, WORK
from sams.trl.forward import bare
from sams.trl.records import PairRecord, write_texts
from sams.trl.refusals import candidates, nearest_multiple, ratio, read_scheduler, weights_file
from sams.trl.scoring import Batch, gather_batch, gathered, refuse_non_finite

if TYPE_CHECKING:
    from sams.trl.trainer import ScheduledDPOTrainer

log = logging.getLogger(__name__)

STATE = "selector.pt"
"""File in a checkpoint with the state of the selector."""
REPLAY = "replay"
"""Folder in a checkpoint, and in `WORK`, with the files of the selector."""


ROUNDING = {"no": 1e-6, "bf16": 5e-3, "fp16": 1e-3}
"""Rounding of a summed log-prob relative to its size, by `mixed_precision` (sams/training/tasks/preference.py)."""


class Schedule:
    """The selection of a run.

    Args:
        trainer: the trainer, at the begin of its training.
        entry: the entry of the selector.
    """

    def __init__(self, trainer: ScheduledDPOTrainer, entry: Entry) -> None:
        self.trainer = trainer
        self.entry = entry
        args, self.world = trainer.args, trainer.accelerator.num_processes
        self.candidates, self.ratio = candidates(args), ratio(args, entry)
        self.selection = self._selection()
        self.work = Path(args.output_dir) / WORK
        settings = settings_of(args.selector, args.selector_settings)
        self.selector: Selector = entry.load().build(self._setup(), **settings)
        self._refuse_columns()
        counted = len(trainer.train_dataset) if self.selector.needs_counts else 0
        self.seen, self.trained = (torch.zeros(counted, dtype=torch.int64) for _ in range(2))
        self.seen_pairs = self.trained_pairs = 0
        self.record: PairRecord | None = None
        if args.record_pairs and trainer.is_world_process_zero():
            self.record = PairRecord(self.work, trainer.train_dataset, self._steps_of_epoch())
        self._noted: list[dict[str, Tensor]] = []

    @property
    def is_plain(self) -> bool:
        """Whether every step of the run is one of plain TRL."""
        return self.entry.full_batch and not (self.selector.needs_scores or self.selector.needs_reference)

    @property
    def _has_state(self) -> bool:
        """Whether there is something to keep in a checkpoint."""
        return not self.is_plain or self.trainer.args.record_pairs

    def size(self, candidates: int, round: int) -> int:
        """Return K of a round: a multiple of the number of processes, whose metrics TRL gathers row by row."""
        if self.selection.size(round) == self.candidates:
            return candidates
        return min(candidates, max(self.world, nearest_multiple(self.ratio * candidates, self.world)))

    def _steps_of_epoch(self) -> int:
        args = self.trainer.args
        passes = len(self.trainer.train_dataset) / (args.per_device_train_batch_size * self.world)
        batches = math.floor(passes) if args.dataloader_drop_last else math.ceil(passes)
        return max(1, math.ceil(batches / args.gradient_accumulation_steps))

    def _selection(self) -> Selection:
        args, n = self.trainer.args, self.candidates
        k = nearest_multiple(self.ratio * n, self.world)
        if self.trainer.is_world_process_zero() and abs(k - self.ratio * n) > 1e-6:
            log.warning(
                "each step trains on %d of %d pairs, the multiple of %d process(es) that is nearest to %g of them",
                k,
                n,
                self.world,
                self.ratio,
            )
        rounds = max(1, self.trainer.state.max_steps)
        return Selection(
            n, rounds, (k / n,), args.selection_warmup, args.selection_full_every, args.selection_end
        )

    def _setup(self) -> Setup:
        trainer, args = self.trainer, self.trainer.args
        model = bare(trainer.model_wrapped)
        scheduler = None
        if self.entry.reads_scheduler:
            scheduler = read_scheduler(args)
        folder = self.work / REPLAY
        if trainer.accelerator.is_local_main_process:
            shutil.rmtree(folder, ignore_errors=True)
        trainer.accelerator.wait_for_everyone()
        return Setup(
            seed=args.seed if args.selection_seed is None else args.selection_seed,
            pairs=len(trainer.train_dataset),
            beta=args.beta,
            selection=self.selection,
            scheduler=scheduler,
            weights=weights_file(args),
            layers=len(blocks(model))
            if self.entry.trains_scheduler or self.entry.load().needs_contexts
            else 0,
            width=model.config.get_text_config().hidden_size,
            device=trainer.accelerator.device,
            folder=folder,
            rank=trainer.accelerator.process_index,
            world=self.world,
            sum=self._sum,
        )

    def _sum(self, tensor: Tensor) -> Tensor:
        accelerator = self.trainer.accelerator
        if self.world == 1:
            return tensor
        total: Tensor = accelerator.reduce(tensor.to(accelerator.device), "sum")
        return total.cpu()

    def _refuse_columns(self) -> None:
        known = self.trainer.train_dataset.column_names
        if missing := [name for name in self.selector.columns if name not in known]:
            raise UserError(
                f"the data has no column `{missing[0]}`, which selector {self.trainer.args.selector} needs "
                f"(it has {', '.join(known)})",
                where="train_dataset",
                remedy="add the column, or name another one in selector_kwargs",
            )

    def choose(self, batches: list[dict[str, Tensor]]) -> tuple[Batch, Choice]:
        """Return the candidates of a step and the choice of process 0. A collective call."""
        trainer, selector = self.trainer, self.selector
        round = trainer.state.global_step + 1
        batch = gather_batch(
            trainer,
            batches,
            scores=selector.needs_scores,
            reference=selector.needs_scores or selector.needs_reference,
            contexts=selector.needs_contexts,
        )
        view = self._view(batch, round)
        if selector.needs_scores:
            refuse_non_finite(batch, view.ids, round)
        self._log(selector.observe(view))
        k = self.size(view.n, round)
        try:
            own = checked(selector.choose(view, k), view.n, k)
        except ValueError as error:
            raise UserError(str(error), where=f"selector {trainer.args.selector}, step {round}") from error
        choice = self._broadcast(own, view.n)
        selector.accept(choice)
        self._count(batch, choice)
        self._log(self._shares(batch, view, choice))
        if self.record is not None and selector.needs_scores:
            selected = torch.zeros(view.n, dtype=torch.int8).index_fill_(0, choice.indices, 1)
            self.record.add(round, batch.numbers, batch.values, selected.numpy())
        return batch, choice

    def note(self, values: dict[str, Tensor]) -> None:
        """Note pairs of a micro-batch that is trained on without scores: their numbers and the values of a record."""
        if self.trainer.args.record_pairs:
            self._noted.append(
                {**values, "step": torch.full_like(values["number"], self.trainer.state.global_step + 1)}
            )

    def flush(self) -> None:
        """Write what was noted. A collective call."""
        if not self._noted:
            return
        found = {
            name: gathered(self.trainer, torch.cat([part[name] for part in self._noted])).cpu()
            for name in self._noted[0]
        }
        self._noted = []
        if self.record is not None:
            self.record.add(int(found["step"][0]), found["number"], found, 1)

    def _broadcast(self, choice: Choice, n: int) -> Choice:
        """Return the choice of process 0: kernels may differ in the last bit from process to process."""
        if self.world == 1:
            return choice
        return Choice.from_rows(broadcast(choice.rows(n).to(self.trainer.accelerator.device)))

    def _view(self, batch: Batch, round: int) -> View:
        values, data, rows = batch.values, self.trainer.train_dataset, batch.numbers.tolist()
        named = dict.fromkeys([*self.selector.columns, *({"id", "flipped"} & {*data.column_names})])
        columns = data.select_columns([*named])[rows] if named else {}
        flipped = columns.get("flipped", [None])
        view = View(
            ids=[*map(str, columns.get("id", rows))],
            numbers=batch.numbers,
            round=round,
            epoch=int(self.trainer.state.epoch or 0) + 1,
            flipped=None if None in flipped else torch.tensor(flipped, dtype=torch.bool),
            contexts=batch.contexts,
            columns={name: _column(columns[name]) for name in self.selector.columns},
            reference_chosen=values.get("reference_chosen"),
            reference_rejected=values.get("reference_rejected"),
        )
        if self.selector.needs_counts:
            view.seen, view.trained = self.seen[batch.numbers], self.trained[batch.numbers]
        if self.trainer.ld_alpha is None:
            view.chosen_tokens, view.rejected_tokens = values["chosen_tokens"], values["rejected_tokens"]
        if "loss" in values:
            view.losses, view.margins = values["loss"], values["margins"]
            view.chosen_logps, view.rejected_logps = values["chosen_logps"], values["rejected_logps"]
            view.margin_rounding = self._margin_rounding(values)

        return view

    def _margin_rounding(self, values: dict[str, Tensor]) -> float:
        precision = str(self.trainer.accelerator.mixed_precision)
        if self.trainer.model.dtype == torch.bfloat16:
            precision = "bf16"
        size = values["chosen_logps"].abs() + values["rejected_logps"].abs()
        return float(self.trainer.args.beta * ROUNDING.get(precision, 5e-3) * size.max())

    def _count(self, batch: Batch, choice: Choice) -> None:
        self.seen_pairs += len(batch.numbers)
        self.trained_pairs += len(choice.indices)
        if self.selector.needs_counts:
            for counts, numbers in (
                (self.seen, batch.numbers),
                (self.trained, batch.numbers[choice.indices]),
            ):
                counts.index_add_(0, numbers, torch.ones_like(numbers))

    def _shares(self, batch: Batch, view: View, choice: Choice) -> dict[str, float]:
        """Return metrics of the candidates and of the choice, named as in train.jsonl."""
        found = {"selected/share": len(choice.indices) / view.n}
        if "loss" in batch.values:
            found |= {
                f"all/{name}": values.mean().item() for name, values in metrics_of(batch.values).items()
            }
            found["all/rewards/margins_rounding"] = float(view.rounding_share())
        if view.flipped is not None:
            flipped = view.flipped.double()
            found["all/flipped_share"] = flipped.mean().item()
            found["selected/flipped_share"] = flipped[choice.indices].mean().item()
        return found

    def _log(self, metrics: Any) -> None:
        for name, value in metrics.items():
            self.trainer._metrics["train"][name].append(float(value))

    # Checkpoints.

    def save(self, checkpoint: Path) -> None:
        """Write the state of the selector to a checkpoint. A collective call.

        Files of the selector are linked, not copied: they are only appended to, and the state has their lengths.
        """
        self.flush()
        if not self._has_state:
            return
        accelerator = self.trainer.accelerator
        state = {
            "record": None if self.record is None else self.record.state(),
            "selector": self.trainer.args.selector,
            "settings": self.trainer.args.selector_settings,
            "state": self.selector.state_dict(),
            "seen": self.seen,
            "trained": self.trained,
            "seen_pairs": self.seen_pairs,
            "trained_pairs": self.trained_pairs,
        }
        if accelerator.is_local_main_process:
            for file in self._files(self.work):
                copy_file(file, checkpoint / file.relative_to(self.work), link=True)
        if self.trainer.args.should_save:
            checkpoint.mkdir(parents=True, exist_ok=True)
            torch.save(state, checkpoint / STATE)
        accelerator.wait_for_everyone()

    def load(self, checkpoint: Path) -> None:
        """Restore the state of the selector from a checkpoint. A collective call.

        Raises:
            UserError: the checkpoint is of another selector.
        """
        file = checkpoint / STATE
        if not self._has_state:
            return
        if not file.is_file():
            log.warning(
                "%s has no state of a selector: selector %s starts anew",
                checkpoint,
                self.trainer.args.selector,
            )
            return
        state = torch.load(file, map_location="cpu", weights_only=True)
        given = (self.trainer.args.selector, self.trainer.args.selector_settings)
        if (state["selector"], state["settings"]) != given:
            raise UserError(
                f"selector {state['selector']} with settings {state['settings']} wrote this checkpoint, and "
                f"{given[0]} with {given[1]} resumes from it",
                where=str(file),
                remedy="give the same selector, or delete this file to start the selector anew",
            )
        accelerator = self.trainer.accelerator
        if accelerator.is_local_main_process:
            for file in self._files(checkpoint):
                copy_file(file, self.work / file.relative_to(checkpoint), link=False)
        accelerator.wait_for_everyone()
        if self.record is not None and state["record"] is not None:
            self.record.restore(state["record"])
        self.selector.load_state_dict(state["state"])
        self.seen, self.trained = state["seen"], state["trained"]
        self.seen_pairs, self.trained_pairs = state["seen_pairs"], state["trained_pairs"]

    def _files(self, folder: Path) -> list[Path]:
        """Return the files that grow during a run, in its folder or in a checkpoint."""
        return [file for file in (folder / ROWS, *sorted((folder / REPLAY).glob("*"))) if file.is_file()]

    def close(self) -> None:
        """Delete the files of a finished run, which its checkpoints have too. A collective call."""
        self.flush()
        if self.record is not None:
            self.record.write(self.work.parent)
            write_texts(self.trainer.train_dataset, self.work / TEXTS)
        self.trainer.accelerator.wait_for_everyone()
        if self.trainer.accelerator.is_local_main_process:
            (self.work / ROWS).unlink(missing_ok=True)
            shutil.rmtree(self.work / REPLAY, ignore_errors=True)
            with suppress(OSError):  # there is none, or it has texts, or TRL's log-probs of the reference
                self.work.rmdir()


def copy_file(source: Path, target: Path, *, link: bool) -> None:
    """Copy a file, as a hard link where possible and allowed; another process may do the same."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    part.unlink(missing_ok=True)
    try:
        if not link:
            raise OSError
        os.link(source, part)
    except OSError:
        shutil.copyfile(source, part)
    part.replace(target)


def metrics_of(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return values of pairs by the names of train.jsonl."""
    return {
        "loss": values["loss"],
        "rewards/chosen": values["chosen_rewards"],
        "rewards/rejected": values["rejected_rewards"],
        "rewards/margins": values["margins"],
        "rewards/accuracies": ((values["margins"] > 0).float() + (values["margins"] >= 0).float()) / 2,
        "logps/chosen": values["chosen_logps"],
        "logps/rejected": values["rejected_logps"],
    }


def _column(values: Sequence[Any]) -> Any:
    """Return numbers as [n] float64, and anything else as it is."""
    are_numbers = all(isinstance(value, (int, float)) for value in values)
    return torch.tensor(values, dtype=torch.float64) if are_numbers else values


def split(rows: int, most: int, parts: int) -> list[int]:
    """Return the sizes of micro-batches: empty ones first, then one that may be smaller, full ones last.

    The last micro-batch of a step synchronises the gradients, so it must have rows.

    Args:
        rows: number of rows in all.
        most: rows of a full micro-batch.
        parts: number of micro-batches.
    """
    full, rest = divmod(rows, most)
    sizes = [rest] * bool(rest) + [most] * full
    return [0] * (parts - len(sizes)) + sizes
