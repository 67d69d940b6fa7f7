"""Reward model: one number for the quality of an answer."""

import logging
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from sams.data.records import Message
from sams.runtime.errors import UserError, first_line
from sams.runtime.files import sha256_of
from sams.runtime.progress import Progress, quiet_loading

log = logging.getLogger("reward")

NO_TEMPLATE = "the reward model's tokenizer has no chat template"
ADD_TEMPLATE = "put the template that it was trained with into its tokenizer_config.json"


def check_reward_model(source: str, where: str) -> None:
    """Check by its config and tokenizer that a model is a reward model, without reading its weights.

    Args:
        source: folder, hub id or `id@revision`.
        where: the setting that names it.

    Raises:
        UserError: it cannot be read, is no sequence classifier with one output, or has no chat template.
    """
    name, options = _location(source)
    try:
        config = AutoConfig.from_pretrained(name, **options)
        template = AutoTokenizer.from_pretrained(name, **options).chat_template
    except Exception as error:  # transformers raises many kinds of errors on files of unknown origin
        raise UserError(f"{source} cannot be read: {first_line(error)}", where=where) from None
    kinds = config.architectures or []
    if config.num_labels != 1 or not all(kind.endswith("ForSequenceClassification") for kind in kinds):
        names = ", ".join(kinds) or "no architecture"
        raise UserError(
            f"{source} is not a reward model: {names} with {config.num_labels} outputs",
            where=where,
            remedy="give a sequence classifier with one output",
        )
    if template is None:
        raise UserError(f"{source}: {NO_TEMPLATE}", where=where, remedy=ADD_TEMPLATE)


def _location(source: str) -> tuple[str, dict[str, Any]]:
    """Return the folder or hub id of a model, and options of `from_pretrained`."""
    name, revision = (source, "") if Path(source).is_dir() else source.partition("@")[::2]
    options: dict[str, Any] = {"revision": revision or None, "trust_remote_code": False}
    return name, options


class RewardModel:
    """A sequence classifier with one output, and its own tokenizer and chat template.

    Only safetensors are read, and no code of the model is run. The model is loaded before sampling, so that a wrong
    one is reported early, and stays on the CPU until it scores.

    Args:
        source: folder, hub id or `id@revision`.
        precision: type of the weights and of the computation.
        batch_size: conversations of a batch.

    Raises:
        UserError: no such model, or one without a reward.
    """

    def __init__(self, source: str, precision: str, batch_size: int) -> None:
        quiet_loading()
        self.source = source
        name, options = _location(source)
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(name, **options)
            model, loaded = AutoModelForSequenceClassification.from_pretrained(
                name,
                dtype=getattr(torch, precision),
                use_safetensors=True,
                output_loading_info=True,
                **options,
            )
        except Exception as error:  # transformers raises many kinds of errors on files of unknown origin
            raise UserError(
                f"cannot load a reward model: {first_line(error)}",
                where=source,
                remedy="give a folder or hub id of a sequence classifier, in safetensors and without code of its own",
            ) from error
        if loaded["missing_keys"] or model.config.num_labels != 1:
            raise UserError(
                f"is not a reward model: {model.config.num_labels} outputs, "
                f"{len(loaded['missing_keys'])} weights that the file does not hold",
                where=source,
                remedy="give a sequence classifier with one output",
            )
        if self.tokenizer.chat_template is None:
            raise UserError(
                NO_TEMPLATE,
                where=source,
                remedy=ADD_TEMPLATE,
            )
        self.model: Any = model.eval()
        # The score is that of the last token before the padding; without a padding token, a batch is one sequence.
        self._padding = model.config.pad_token_id
        self._batch_size = batch_size if self._padding is not None else 1
        self._most_positions = getattr(model.config, "max_position_embeddings", None) or sys.maxsize

    @property
    def identity(self) -> dict[str, Any]:
        """Source of this model, and its commit on the hub or the SHA-256 of its weights."""
        weights = {path.name: sha256_of(path) for path in sorted(Path(self.source).glob("*.safetensors"))}
        commit = getattr(self.model.config, "_commit_hash", None)  # of a model from a hub
        return {"source": self.source, "commit": commit, "weights": weights}

    def scores(self, conversations: Sequence[list[Message]]) -> list[float | None]:
        """Return the reward of each conversation, which ends with the assistant; None if it is too long.

        Raises:
            UserError: the chat template refuses a conversation's roles, or a reward is not finite.
        """
        encoded = [self._encode(conversation) for conversation in conversations]
        fitting = [index for index, ids in enumerate(encoded) if len(ids) <= self._most_positions]
        fitting.sort(key=lambda index: -len(encoded[index]))
        self.model.to("cuda" if torch.cuda.is_available() else "cpu")
        scores: list[float | None] = [None] * len(encoded)
        with Progress("rewards", len(fitting), "answers") as progress:
            for start in range(0, len(fitting), self._batch_size):
                batch = fitting[start : start + self._batch_size]
                rewards = self._score([encoded[index] for index in batch])
                for index, score in zip(batch, rewards, strict=True):
                    if not math.isfinite(score):
                        raise UserError(
                            f"the reward of an answer is {score}",
                            where=f"{conversations[index][-1]['content']!r:.60}",
                            remedy="set `precision` to that of the training of the reward model",
                        )
                    scores[index] = score
                progress.add(len(batch))
        return scores

    def _encode(self, conversation: list[Message]) -> list[int]:
        """Return token ids by the chat template of the model, with which it was trained."""
        try:
            ids: list[int] = self.tokenizer.apply_chat_template(conversation)["input_ids"]
        except Exception as error:  # a template may raise any error
            raise UserError(
                f"the reward model's chat template refuses the roles "
                f"{[message['role'] for message in conversation]}: {error}",
                where=self.source,
            ) from error
        return ids

    @torch.inference_mode()
    def _score(self, sequences: list[list[int]]) -> list[float]:
        width = max(map(len, sequences))
        shape = (len(sequences), width)
        ids = torch.full(shape, self._padding or 0, device=self.model.device)
        mask = torch.zeros_like(ids)
        for row, sequence in enumerate(sequences):
            ids[row, : len(sequence)] = torch.tensor(sequence, device=self.model.device)
            mask[row, : len(sequence)] = 1
        scores: list[float] = self.model(input_ids=ids, attention_mask=mask).logits[:, 0].float().tolist()
        return scores
