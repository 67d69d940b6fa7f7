"""A reward model: how good an answer is, as one number."""

import logging
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from sams.data.records import Message
from sams.generation.engines import quiet_loading
from sams.runtime.errors import UserError, first_line
from sams.runtime.files import sha256_of
from sams.runtime.progress import Progress

log = logging.getLogger("generate")


class RewardModel:
    """A sequence classifier with one output, and its own tokenizer and chat template.

    Only safetensors are read, and no code that comes with a model is run. It stays in the CPU's memory until
    it scores, so that a wrong one is told before the sampling, and takes no room beside the policy.

    Args:
        source: folder, hub id or `id@revision`.
        precision: type that the weights are held and computed in.
        batch_size: conversations that are scored together.

    Raises:
        UserError: no such model, or one that gives no reward.
    """

    def __init__(self, source: str, precision: str, batch_size: int) -> None:
        quiet_loading()
        self.source = source
        name, revision = (source, "") if Path(source).is_dir() else source.partition("@")[::2]
        options: dict[str, Any] = {"revision": revision or None, "trust_remote_code": False}
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(name, **options)
            model, loaded = AutoModelForSequenceClassification.from_pretrained(
                name,
                dtype=getattr(torch, precision),
                use_safetensors=True,
                output_loading_info=True,
                **options,
            )
        except Exception as error:  # files from anywhere: transformers and what it calls raise what they like
            raise UserError(
                f"cannot load a reward model: {first_line(error)}",
                where=source,
                remedy="give a folder or hub id of a sequence classifier, in safetensors and without code of its own",
            ) from error
        if loaded["missing_keys"] or model.config.num_labels != 1:
            raise UserError(
                f"is no reward model: {model.config.num_labels} outputs, "
                f"{len(loaded['missing_keys'])} weights that the file does not hold",
                where=source,
                remedy="give a sequence classifier with one output",
            )
        if self.tokenizer.chat_template is None:
            raise UserError(
                "the reward model's tokenizer has no chat template",
                where=source,
                remedy="put the template that it was trained with into its tokenizer_config.json",
            )
        self.model: Any = model.eval()
        # The score is read at the last token that is no padding: without a padding token, of one sequence alone.
        self._padding = model.config.pad_token_id
        self._batch_size = batch_size if self._padding is not None else 1
        self._most_positions = getattr(model.config, "max_position_embeddings", None) or sys.maxsize

    @property
    def identity(self) -> dict[str, Any]:
        """What tells this model from others: its source, and the hub's commit or its weights' SHA-256."""
        weights = {path.name: sha256_of(path) for path in sorted(Path(self.source).glob("*.safetensors"))}
        commit = getattr(self.model.config, "_commit_hash", None)  # of what came from a hub
        return {"source": self.source, "commit": commit, "weights": weights}

    def scores(self, conversations: Sequence[list[Message]]) -> list[float | None]:
        """Reward of each conversation, which ends with the assistant; None where it is longer than the model reads.

        Raises:
            UserError: the chat template refuses a conversation's roles, or a reward is not finite.
        """
        encoded = [self._encode(conversation) for conversation in conversations]
        fitting = [index for index, ids in enumerate(encoded) if len(ids) <= self._most_positions]
        fitting.sort(key=lambda index: -len(encoded[index]))
        self.model.to("cuda" if torch.cuda.is_available() else "cpu")
        scores: list[float | None] = [None] * len(encoded)
        with Progress("rewards", len(fitting), "answers") as course:
            for start in range(0, len(fitting), self._batch_size):
                batch = fitting[start : start + self._batch_size]
                found = self._score([encoded[index] for index in batch])
                for index, score in zip(batch, found, strict=True):
                    if not math.isfinite(score):
                        raise UserError(
                            f"the reward of an answer is {score}",
                            where=f"{conversations[index][-1]['content']!r:.60}",
                            remedy="set `precision` to the one that the reward model was trained in",
                        )
                    scores[index] = score
                course.add(len(batch))
        return scores

    def _encode(self, conversation: list[Message]) -> list[int]:
        """Token ids as the model's own template writes them, which is what it was trained on."""
        try:
            ids: list[int] = self.tokenizer.apply_chat_template(conversation)["input_ids"]
        except Exception as error:  # a template raises whatever its author chose
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
        found: list[float] = self.model(input_ids=ids, attention_mask=mask).logits[:, 0].float().tolist()
        return found
