"""Batched decoding of chat prompts with an exported model and its own tokenizer."""

import hashlib
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from sams.data.templates import encode_prompt
from sams.errors import UserError
from sams.settings import Decoding

log = logging.getLogger("generate")

Conversation = list[dict[str, str]]  # messages {role, content}, the last from the user

SECONDS_BETWEEN_LINES = 15.0


@dataclass(frozen=True)
class Answer:
    """A decoded answer.

    Args:
        text: without special tokens and surrounding blanks.
        tokens: how many were generated, the stop token included.
        truncated: whether it ended for want of room instead of with a stop token.
    """

    text: str
    tokens: int
    truncated: bool


class Decoder:
    """A model, its tokenizer and the settings to decode with.

    Sampling is deterministic: each batch draws from a seed of its own, made of the recipe's seed, the label
    of the call and the batch's number. Another `batch_size` gives other samples.

    Args:
        folder: exported model.
        precision: type that the weights are held and computed in.
        decoding: the settings.
        seed: seed of all sampling.

    Raises:
        UserError: no readable model or tokenizer in the folder.
    """

    def __init__(self, folder: Path, precision: str, decoding: Decoding, seed: int) -> None:
        if not sys.stderr.isatty():
            transformers.utils.logging.disable_progress_bar()
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.decoding = decoding
        self.seed = seed
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
            model = AutoModelForCausalLM.from_pretrained(
                folder, dtype=getattr(torch, precision), use_safetensors=True
            )
        except (OSError, ValueError) as error:
            raise UserError(
                f"cannot load model and tokenizer: {str(error).splitlines()[0]}", where=str(folder)
            ) from error
        # Whatever decode settings came with the model would fill in for those that are not set here.
        model.generation_config = GenerationConfig()
        model.to(self.device)  # type: ignore[arg-type]  # the decorator hides the method's own types
        self.model: Any = model.eval()
        self.stop_ids = sorted({self.tokenizer.eos_token_id, *decoding.stop_token_ids} - {None})
        if not self.stop_ids:
            raise UserError(
                "the tokenizer has no EOS token", where=str(folder), remedy="set `decoding.stop_token_ids`"
            )
        self.most_positions: int = getattr(model.config, "max_position_embeddings", None) or sys.maxsize

    def answer(
        self, conversations: Sequence[Conversation], temperatures: Sequence[float], label: str
    ) -> list[Answer]:
        """Answer each conversation, in the order given.

        Args:
            conversations: what to answer.
            temperatures: for each, its temperature; 0 decodes greedily.
            label: says in the log, and in the seed, what is decoded.

        Raises:
            UserError: a prompt that fills the model's context.
        """
        prompts = [self._encode(conversation) for conversation in conversations]
        batches = make_batches([len(prompt) for prompt in prompts], temperatures, self.decoding.batch_size)
        answers: dict[int, Answer] = {}
        started = told = time.monotonic()
        with tqdm(total=len(prompts), desc=label, unit="answer", disable=not sys.stderr.isatty()) as bar:
            for number, batch in enumerate(batches):
                torch.manual_seed(derived_seed(self.seed, label, number))
                decoded = self._decode([prompts[index] for index in batch], temperatures[batch[0]])
                answers.update(zip(batch, decoded, strict=True))
                bar.update(len(batch))
                if bar.disable and time.monotonic() - told > SECONDS_BETWEEN_LINES:
                    told = time.monotonic()
                    log.info("%s: %d of %d answers", label, len(answers), len(prompts))
        seconds = time.monotonic() - started
        tokens = sum(answer.tokens for answer in answers.values())
        log.info("%s: %d answers, %d tokens, %.0f tokens/s", label, len(answers), tokens, tokens / seconds)
        return [answers[index] for index in range(len(prompts))]

    def _encode(self, conversation: Conversation) -> list[int]:
        ids = encode_prompt(self.tokenizer, conversation)
        if len(ids) >= self.most_positions:
            raise UserError(
                f"the prompt has {len(ids)} tokens, the model's context {self.most_positions}",
                where=f"{conversation[-1]['content']!r:.60}",
            )
        return ids

    @torch.inference_mode()
    def _decode(self, prompts: list[list[int]], temperature: float) -> list[Answer]:
        """Decode one batch, padded on the left so that all answers begin at the same position."""
        width = max(map(len, prompts))
        padding = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.stop_ids[0]
        ids = torch.full((len(prompts), width), padding, device=self.device)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.tensor(prompt, device=self.device)
            mask[row, width - len(prompt) :] = 1
        room = min(self.decoding.max_new_tokens, self.most_positions - width)
        sampling = (
            # Top-k is 50 in transformers unless said otherwise.
            {"do_sample": True, "temperature": temperature, "top_p": self.decoding.top_p, "top_k": 0}
            if temperature > 0
            else {"do_sample": False}
        )
        config = GenerationConfig(
            max_new_tokens=room, eos_token_id=self.stop_ids, pad_token_id=padding, use_cache=True, **sampling
        )
        output = self.model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
        return [self._read(row) for row in output[:, width:].tolist()]

    def _read(self, tokens: list[int]) -> Answer:
        stops = [position for position, token in enumerate(tokens) if token in self.stop_ids]
        end = stops[0] if stops else len(tokens)
        text = self.tokenizer.decode(tokens[:end], skip_special_tokens=True).strip()
        return Answer(text, tokens=end + bool(stops), truncated=not stops)


def make_batches(lengths: Sequence[int], temperatures: Sequence[float], size: int) -> list[list[int]]:
    """Indices of prompts to decode together: one temperature each, prompts of like length, longest first."""
    batches = []
    for temperature in sorted(set(temperatures)):
        chosen = [index for index, value in enumerate(temperatures) if value == temperature]
        chosen.sort(key=lambda index: -lengths[index])
        batches += [chosen[start : start + size] for start in range(0, len(chosen), size)]
    return batches


def derived_seed(*parts: object) -> int:
    """A seed that depends on all of its parts, the same in every process."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8]) >> 1
