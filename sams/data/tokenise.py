"""Stage `tokenise`: from prepared records to token ids, once for all methods."""

import itertools
import logging
import random
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sams.data import tokens
from sams.data.rounds import check_rounds, current_study
from sams.data.templates import CompletionEncoder, encode_prompts
from sams.data.tokeniser import build_tokenizer
from sams.data.tokens import token_writer
from sams.errors import UserError
from sams.files import manifest_digest, refuse_damage, whole_folder, write_json
from sams.policy.model import check_model
from sams.progress import Progress
from sams.recipes import TokeniseRecipe
from sams.stage import read_recipe, run

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

RESPONSES = {
    "sft": ("response",),
    "train": ("chosen", "rejected"),
    "test": ("chosen", "rejected"),
    "validation": ("chosen", "rejected"),
}
COUNTED = ("read", "kept", "dropped_empty", "dropped_equal", "prompt_cut", "response_cut")
READ_ROWS = 1000

Row = dict[str, Any]


def main(recipe: str, data: Path, out: Path) -> None:
    """Write tokenizer/, sft/, train/, test/, validation/ where the data has it, and report.json.

    Raises:
        UserError: tokenizer, template or model cannot be had or do not fit together; too little is left of a split.
    """
    settings = read_recipe(recipe, TokeniseRecipe)
    refuse_damage(data)
    tokenizer = build_tokenizer(settings.model, texts(data))
    check_model(settings.model, tokenizer, settings.max_length)
    report: dict[str, Any] = {"vocabulary": len(tokenizer)}
    with whole_folder(out, upstream={"data": manifest_digest(data)}) as part:
        tokenizer.save_pretrained(part / "tokenizer")
        for split in RESPONSES:
            if split == "validation" and not (data / f"{split}.parquet").is_file():
                continue
            report[split] = tokenise_split(
                data / f"{split}.parquet", split, tokenizer, settings, part / split
            )
            log.info("%s: %s", split, report[split])
        if (study := current_study()) is not None:
            check_rounds(study, {split: report[split]["kept"] for split in RESPONSES})
        write_json(part / "report.json", report)


def texts(data: Path) -> Iterator[str]:
    """What a tokenizer is trained on: the conversations of the training splits, written plainly."""
    turns = {"user": "\n\nHuman: ", "assistant": "\n\nAssistant: ", "system": ""}
    for split in ("sft", "train"):
        for batch in read_batches(data / f"{split}.parquet", f"tokenizer from {split}"):
            for row in batch:
                prompt = "".join(turns[message["role"]] + message["content"] for message in row["prompt"])
                for name in RESPONSES[split]:
                    yield f"{prompt}\n\nAssistant: {row[name]}"


def tokenise_split(
    file: Path, split: str, tokenizer: "PreTrainedTokenizerBase", settings: TokeniseRecipe, out: Path
) -> dict[str, Any]:
    """Tokenise one split into an Arrow data set; return what was kept, cut and dropped, and the lengths.

    Memory does not grow with the data: rows are read, encoded and written a batch at a time.

    Raises:
        UserError: when nothing is left.
    """
    responses = RESPONSES[split]
    names = ["id", "prompt_ids", *(f"{name}_ids" for name in responses)]
    names += ["flipped"] if split != "sft" else []
    unknown = tokenizer.unk_token_id
    encode = CompletionEncoder(tokenizer)
    counts = Counter(dict.fromkeys(COUNTED, 0))
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        mismatching = settings.mismatched and len(responses) == 2
        first = Path(folder) / split if mismatching else out
        with token_writer(first, names, unknown=unknown) as writer:
            for batch in read_batches(file, split):
                columns: dict[str, list[Any]] = {name: [] for name in names}
                prompts = encode_prompts(tokenizer, [row["prompt"] for row in batch])
                answers = [encode([row[name] for row in batch]) for name in responses]
                for row, prompt, *ids in zip(batch, prompts, *answers, strict=True):
                    counts["read"] += 1
                    fitted = fit(prompt, ids, settings, tokenizer.bos_token_id, counts)
                    if any(len(response) <= len(encode.end) for response in ids):
                        counts["dropped_empty"] += 1
                    elif len(ids) == 2 and fitted[1] == fitted[2]:
                        counts["dropped_equal"] += 1
                    else:
                        counts["kept"] += 1
                        for name, value in zip(names, (row["id"], *fitted, row.get("flipped")), strict=False):
                            columns[name].append(value)
                writer.write(columns)
        if not counts["kept"]:
            raise UserError(
                f"nothing is left after tokenising ({dict(counts)})",
                where=str(file),
                remedy="raise data.max_length, or see to the data",
            )
        if mismatching:
            with token_writer(out, [*names, "mismatched_ids"], unknown=unknown) as writer:
                for table in mismatched(first, counts["kept"], settings.max_length):
                    writer.write(table)
    return {**counts, **writer.report()}


def fit(
    prompt: list[int],
    responses: list[list[int]],
    settings: TokeniseRecipe,
    bos: int | None,
    counts: Counter[str],
) -> list[list[int]]:
    """Cut prompt and responses to the length limits; count what was cut.

    A prompt that is too long loses its beginning (but for BOS), a response its end, EOS included.
    """
    limit = settings.max_prompt_length
    if len(prompt) > limit:
        counts["prompt_cut"] += 1
        start = prompt[:1] if prompt[0] == bos else []
        prompt = start + prompt[len(prompt) - limit + len(start) :]
    room = settings.max_length - len(prompt)
    counts["response_cut"] += sum(len(response) > room for response in responses)
    return [prompt, *(response[:room] for response in responses)]


def mismatched(pairs: Path, count: int, max_length: int) -> Iterator[dict[str, Any]]:
    """For every pair a completion that was not written for its prompt: KTO's KL term is estimated on them.

    The pairs are shifted in a circle, by a step drawn once; completions are chosen and rejected ones in turn, cut
    to the length limit. An epoch may be shuffled as it likes: the completion of a pair stays the same.

    Args:
        pairs: tokenised split.
        count: its pairs.
        max_length: limit of prompt and completion.

    Returns:
        The columns of the split and mismatched_ids, batch by batch.

    Raises:
        UserError: when there is one pair only.
    """
    if count < 2:
        raise UserError("KTO needs two pairs or more, to mismatch them", remedy="give more data")
    shift = random.Random("mismatched").randrange(1, count)
    others = itertools.islice(itertools.chain(_completions(pairs), _completions(pairs)), shift, None)
    place = 0
    for batch in tokens.read_batches(pairs):
        found = []
        for prompt in batch["prompt_ids"].to_pylist():
            found.append(next(others)[place % 2][: max_length - len(prompt)])
            place += 1
        columns = dict(zip(batch.schema.names, batch.columns, strict=True))
        yield columns | {"mismatched_ids": found}


def _completions(pairs: Path) -> Iterator[tuple[list[int], list[int]]]:
    for batch in tokens.read_batches(pairs):
        yield from zip(batch["chosen_ids"].to_pylist(), batch["rejected_ids"].to_pylist(), strict=True)


def read_batches(file: Path, what: str) -> Iterator[list[Row]]:
    """Records of a prepared Parquet file, a batch at a time; tells how far `what` is."""
    from pyarrow import parquet

    # Read ahead, a file would be held to its end.
    records = parquet.ParquetFile(file, pre_buffer=False)
    with Progress(what, records.metadata.num_rows, "records") as course:
        for batch in records.iter_batches(READ_ROWS):
            yield batch.to_pylist()
            course.add(len(batch))


if __name__ == "__main__":
    run(main)
