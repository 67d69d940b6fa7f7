"""Stage `tokenise`: from prepared records to token ids, once for all methods."""

import logging
import random
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sams.data.templates import CompletionEncoder, encode_prompts
from sams.data.tokeniser import build_tokenizer
from sams.errors import UserError
from sams.files import manifest_digest, whole_folder, write_json
from sams.recipes import TokeniseRecipe
from sams.stage import read_recipe, run

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

RESPONSES = {"sft": ("response",), "train": ("chosen", "rejected"), "test": ("chosen", "rejected")}
COUNTED = ("read", "kept", "dropped_empty", "dropped_equal", "prompt_cut", "response_cut")
READ_ROWS = 1000

Row = dict[str, Any]


def main(recipe: str, data: Path, out: Path) -> None:
    """Write tokenizer/, sft/, train/, test/ and report.json.

    Raises:
        UserError: tokenizer or template cannot be had, or nothing is left of a split.
    """
    settings = read_recipe(recipe, TokeniseRecipe)
    tokenizer = build_tokenizer(settings.model, texts(data))
    report: dict[str, Any] = {"vocabulary": len(tokenizer)}
    with whole_folder(out, upstream={"data": manifest_digest(data)}) as part:
        tokenizer.save_pretrained(part / "tokenizer")
        for split in RESPONSES:
            report[split] = tokenise_split(
                data / f"{split}.parquet", split, tokenizer, settings, part / split
            )
            log.info("%s: %s", split, report[split])
        write_json(part / "report.json", report)


def texts(data: Path) -> Iterator[str]:
    """What a tokenizer is trained on: the conversations of the training splits, written plainly."""
    turns = {"user": "\n\nHuman: ", "assistant": "\n\nAssistant: ", "system": ""}
    for split in ("sft", "train"):
        for batch in read_batches(data / f"{split}.parquet"):
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
    import datasets
    import pyarrow as pa

    responses = RESPONSES[split]
    encode = CompletionEncoder(tokenizer)
    counts = Counter(dict.fromkeys(COUNTED, 0))

    def rows() -> Iterator[Row]:
        for batch in read_batches(file):
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
                    columns = zip(("prompt", *responses), fitted, strict=True)
                    kept = {"id": row["id"]} | {f"{name}_ids": tokens for name, tokens in columns}
                    yield kept | ({"flipped": row["flipped"]} if "flipped" in row else {})

        if not counts["kept"]:
            raise UserError(
                f"nothing is left after tokenising ({dict(counts)})",
                where=str(file),
                remedy="raise data.max_length, or see to the data",
            )

    ids = {f"{name}_ids": datasets.List(datasets.Value("int32")) for name in ("prompt", *responses)}
    flag = {"flipped": datasets.Value("bool")} if split != "sft" else {}
    features = datasets.Features({"id": datasets.Value("string")} | ids | flag)
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory(dir=out.parent) as cache:
        try:
            # The fingerprint is given, because hashing the generator would hash the tokenizer too.
            tokenised = datasets.Dataset.from_generator(
                rows, features=features, cache_dir=cache, fingerprint=f"tokenise-{split}"
            )
        except datasets.exceptions.DatasetGenerationError as error:
            raise (error.__cause__ or error) from None
        if settings.mismatched and len(responses) == 2:
            column = pa.array(mismatched(tokenised, settings.max_length), pa.list_(pa.int32()))
            tokenised = tokenised.add_column("mismatched_ids", column)
        tokenised.save_to_disk(out)
        return {**counts, **lengths(tokenised, tokenizer.unk_token_id)}


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


def mismatched(pairs: "Dataset", max_length: int) -> Iterator[list[int]]:
    """For every pair a completion that was not written for its prompt: KTO's KL term is estimated on them.

    The pairs are shifted in a circle, by a step drawn once; completions are chosen and rejected ones in turn, cut
    to the length limit. An epoch may be shuffled as it likes: the completion of a pair stays the same.

    Raises:
        UserError: when there is one pair only.
    """
    if len(pairs) < 2:
        raise UserError("KTO needs two pairs or more, to mismatch them", remedy="give more data")
    shift = random.Random("mismatched").randrange(1, len(pairs))
    for place, prompt in enumerate(pairs["prompt_ids"]):
        other = pairs[(place + shift) % len(pairs)]
        yield other["rejected_ids" if place % 2 else "chosen_ids"][: max_length - len(prompt)]


def lengths(tokenised: "Dataset", unknown: int | None) -> dict[str, Any]:
    """Mean and greatest length of prompts and responses, all tokens, and how many are unknown words."""
    import pyarrow.compute as pc

    table = tokenised.data
    found: dict[str, Any] = {"tokens": 0, "unknown": 0}
    for name in (name for name in table.column_names if name.endswith("_ids")):
        length = pc.list_value_length(table[name])
        found[name] = {"mean": round(pc.mean(length).as_py(), 2), "max": pc.max(length).as_py()}
        found["tokens"] += pc.sum(length).as_py()
        if unknown is not None:
            found["unknown"] += pc.sum(pc.equal(pc.list_flatten(table[name]), unknown)).as_py()
    return found


def read_batches(file: Path) -> Iterator[list[Row]]:
    """Records of a prepared Parquet file, a batch at a time."""
    from pyarrow import parquet

    for batch in parquet.ParquetFile(file).iter_batches(READ_ROWS):
        yield batch.to_pylist()


if __name__ == "__main__":
    run(main)
