"""Batched decoding of chat prompts with an exported model and its own tokenizer."""

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from transformers import AutoTokenizer

from sams.data.records import Message
from sams.data.templates import encode_prompt, stop_ids
from sams.generation.engines import derived_seed, open_engine
from sams.generation.shards import Shards
from sams.runtime.errors import UserError, first_line
from sams.runtime.faults import suggesting
from sams.runtime.files import read_json
from sams.runtime.problems import first_problem
from sams.runtime.progress import Progress
from sams.study.settings import Decoding, ModelDecoding
from sams.study.settings.model import TEMPLATE_DATE

log = logging.getLogger("generate")

Conversation = list[Message]  # the last message is the user's


@dataclass(frozen=True)
class Answer:
    """A decoded answer.

    Args:
        text: text without special tokens and surrounding blanks.
        tokens: number of generated tokens, with the stop token.
        truncated: whether the answer ends without a stop token.
    """

    text: str
    tokens: int
    truncated: bool


class Decoder:
    """A model, its tokenizer and decoding settings.

    Sampling is deterministic: the seed of a batch is derived from the seed of the recipe, the label of the call and
    the number of the batch. Samples depend on `batch_size` and on the other prompts of the batch; greedy answers do
    not, except by rounding.

    Args:
        folder: exported model.
        precision: type of the weights and of the computation.
        decoding: the settings; a `ModelDecoding` is completed by the model's own.
        seed: seed of all sampling.
        shards: store of decoded batches; None stores none.
        date: the day that the chat template gets for today's, YYYY-MM-DD.

    Attributes:
        decoding: the settings, completed.
        n_resumed: number of answers from `shards`.

    Raises:
        UserError: no readable model or tokenizer in the folder.
    """

    def __init__(
        self,
        folder: Path,
        precision: str,
        decoding: Decoding | ModelDecoding,
        seed: int,
        shards: Shards | None = None,
        date: str = TEMPLATE_DATE,
    ) -> None:
        self.decoding = decoding = completed(decoding, folder)
        self.seed = seed
        self.n_resumed = 0
        self._shards = shards
        self._date = date
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            ends = {*stop_ids(self.tokenizer, date), *stop_ids_of(folder)}
            self.stop_ids = sorted(ends | {*decoding.stop_token_ids})
            if not self.stop_ids:
                raise UserError(
                    "the tokenizer has no EOS token",
                    where=str(folder),
                    remedy="set `decoding.stop_token_ids`",
                )
            self.engine = open_engine(folder, precision, decoding, self.stop_ids)
        except (OSError, ValueError) as error:
            raise UserError(
                f"cannot load model and tokenizer: {first_line(error)}", where=str(folder)
            ) from error

    def answer(
        self, conversations: Sequence[Conversation], temperatures: Sequence[float], label: str
    ) -> list[Answer]:
        """Answer each conversation, in the order given.

        Args:
            conversations: the prompts.
            temperatures: temperature of each conversation; 0 decodes greedily.
            label: name of the call in the log, the seed and the shards.

        Raises:
            UserError: a prompt that fills the model's context.
        """
        prompts = [self._encode(conversation) for conversation in conversations]
        batches = make_batches([len(prompt) for prompt in prompts], temperatures, self.decoding.batch_size)
        answers: dict[int, Answer] = {}
        resumed, tokens = 0, 0
        started = time.monotonic()
        with Progress(label, len(prompts), "answers") as progress:
            for number, batch in enumerate(batches):
                shard = f"{label}, batch {number}"
                stored = self._shards.get(shard) if self._shards else None
                if stored is not None:
                    decoded = [Answer(**row) for row in stored]
                    resumed += len(decoded)
                else:
                    seed = derived_seed(self.seed, label, number)
                    batch_prompts = [prompts[index] for index in batch]
                    half = max(1, len(batch) // 2)
                    with suggesting(f"set decoding.batch_size: {half} (now {self.decoding.batch_size})"):
                        generated = self.engine.generate(batch_prompts, temperatures[batch[0]], seed)
                    decoded = [self._read(row) for row in generated]
                    tokens += sum(answer.tokens for answer in decoded)
                    if self._shards:
                        self._shards.put(shard, [asdict(answer) for answer in decoded])
                answers.update(zip(batch, decoded, strict=True))
                progress.add(len(batch), kept=stored is not None)
        self.n_resumed += resumed
        speed = tokens / (time.monotonic() - started)
        log.info(
            "%s: %d answers (%d from an earlier start), %d tokens, %.0f tokens/s",
            *(label, len(answers), resumed, tokens, speed),
        )
        return [answers[index] for index in range(len(prompts))]

    def fits(self, conversation: Conversation) -> bool:
        """Return whether a prompt leaves room for an answer in the model's context."""
        ids = encode_prompt(self.tokenizer, conversation, self._date)
        return len(ids) < self.engine.most_positions

    def _encode(self, conversation: Conversation) -> list[int]:
        ids = encode_prompt(self.tokenizer, conversation, self._date)
        limit = self.engine.most_positions
        if len(ids) >= limit:
            raise UserError(
                f"the prompt has {len(ids)} tokens, the model's context {limit}",
                where=f"{conversation[-1]['content']!r:.60}",
            )
        return ids

    def _read(self, tokens: list[int]) -> Answer:
        stopped = bool(tokens) and tokens[-1] in self.stop_ids
        text = self.tokenizer.decode(tokens[:-1] if stopped else tokens, skip_special_tokens=True)
        return Answer(text.strip(), tokens=len(tokens), truncated=not stopped)


def completed(decoding: Decoding | ModelDecoding, folder: Path) -> Decoding:
    """Return decode settings, with the model's own in place of those that are null.

    As in transformers, a model without `do_sample` decodes greedily, and its top-k is 50 if it gives none.
    """
    if isinstance(decoding, Decoding):
        return decoding
    own = {key: value for key, value in own_settings(folder).items() if value is not None}
    values = {
        "temperature": own.get("temperature", 1.0) if own.get("do_sample") else 0.0,
        "top_p": own.get("top_p", 1.0),
        "top_k": own.get("top_k", 50),
        "repetition_penalty": own.get("repetition_penalty", 1.0),
    }
    try:
        return Decoding.model_validate(values | decoding.model_dump(exclude_none=True), strict=False)
    except ValidationError as error:
        key, problem = first_problem(error, Decoding)
        raise UserError(
            f"{key}: {problem}",
            where=str(folder / "generation_config.json"),
            remedy=f"set `decoding.{key}`",
        ) from None


def own_settings(folder: Path) -> dict[str, Any]:
    """Return a model's generation_config.json; empty if it has none."""
    file = folder / "generation_config.json"
    return read_json(file) if file.is_file() else {}


def stop_ids_of(folder: Path) -> list[int]:
    """Return the stop ids in a model's generation_config.json."""
    ids = own_settings(folder).get("eos_token_id")
    return ids if isinstance(ids, list) else [] if ids is None else [ids]


def make_batches(lengths: Sequence[int], temperatures: Sequence[float], size: int) -> list[list[int]]:
    """Return batches of prompt indices: one temperature each, prompts of similar length, longest first."""
    batches = []
    for temperature in sorted(set(temperatures)):
        chosen = [index for index, value in enumerate(temperatures) if value == temperature]
        chosen.sort(key=lambda index: -lengths[index])
        batches += [chosen[start : start + size] for start in range(0, len(chosen), size)]
    return batches
