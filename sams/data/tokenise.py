"""Stage `tokenise`: from prepared records to token ids, once for all methods."""

import itertools
import logging
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
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

SPLITS = ("sft", "train", "test")
READ_ROWS = 1000

Row = dict[str, Any]


def main(recipe: str, data: Path, out: Path) -> None:
    """Write tokenizer/, sft/, train/, test/ and report.json."""
    settings = read_recipe(recipe, TokeniseRecipe)
    tokenizer = build_tokenizer(settings.model, texts(data))
    with whole_folder(out, upstream={"data": manifest_digest(data)}) as part:
        tokenizer.save_pretrained(part / "tokenizer")
        report = {split: tokenise_split(data, split, tokenizer, settings, part) for split in SPLITS}
        write_json(part / "report.json", {"vocabulary": len(tokenizer), **report})
    for split, counts in report.items():
        log.info("%s: %s", split, counts)


def texts(data: Path) -> Iterator[str]:
    """Everything a tokenizer can be trained on: conversations of the training splits, as they will be rendered."""
    for split, responses in (("sft", ["response"]), ("train", ["chosen", "rejected"])):
        for row in itertools.chain.from_iterable(read_batches(data / f"{split}.parquet")):
            turns = {"user": "\n\nHuman: ", "assistant": "\n\nAssistant: ", "system": ""}
            prompt = "".join(turns[message["role"]] + message["content"] for message in row["prompt"])
            for response in responses:
                yield f"{prompt}\n\nAssistant: {row[response]}"


def tokenise_split(
    data: Path, split: str, tokenizer: "PreTrainedTokenizerBase", settings: TokeniseRecipe, out: Path
) -> dict[str, Any]:
    """Tokenise one split into an Arrow data set; return what was kept, cut and dropped.

    Raises:
        UserError: when nothing is left.
    """
    import datasets
    import pyarrow.compute as pc

    counts: Counter[str] = Counter()
    encode = CompletionEncoder(tokenizer)
    responses = ["response"] if split == "sft" else ["chosen", "rejected"]

    def rows() -> Iterator[Row]:
        for batch in read_batches(data / f"{split}.parquet"):
            counts["read"] += len(batch)
            prompts = encode_prompts(tokenizer, [row["prompt"] for row in batch])
            answers = [encode([row[name] for row in batch]) for name in responses]
            for row, prompt, *ids in zip(batch, prompts, *answers, strict=True):
                found = fitted(row, prompt, dict(zip(responses, ids, strict=True)), settings, counts)
                if found is not None:
                    yield found

    datasets.disable_progress_bars()
    kind = datasets.Value
    features = {"id": kind("string"), "prompt_ids": [kind("int32")]}
    features |= {f"{name}_ids": [kind("int32")] for name in responses}
    if split != "sft":
        features["flipped"] = kind("bool")
    with tempfile.TemporaryDirectory(dir=out.parent) as cache:
        # The fingerprint is given, because hashing the generator would hash the tokenizer too.
        tokenised = datasets.Dataset.from_generator(
            rows, features=datasets.Features(features), cache_dir=cache, fingerprint=f"tokenise-{split}"
        )
        if not len(tokenised):
            raise UserError(
                f"no example is left after tokenising ({dict(counts)})",
                where=str(data / f"{split}.parquet"),
                remedy="raise data.max_length",
            )
        tokenised.save_to_disk(out / split)
        columns = tokenised.with_format("arrow")[:]
        names = [name for name in columns.column_names if name.endswith("_ids")]
        lengths = sum(pc.list_value_length(columns[name]).to_numpy() for name in names)
    return {**counts, "kept": len(lengths), "tokens": int(lengths.sum()), "longest": int(lengths.max())}


def fitted(
    row: Row, prompt: list[int], answers: dict[str, list[int]], settings: TokeniseRecipe, counts: Counter[str]
) -> Row | None:
    """Token ids of one record within the length limits; None when it has to be dropped.

    A prompt that is too long loses its beginning (the first token, BOS where there is one, stays), a response
    its end.
    """
    if len(prompt) > settings.max_prompt_length:
        counts["prompt cut"] += 1
        prompt = prompt[:1] + prompt[len(prompt) - settings.max_prompt_length + 1 :]
    room = settings.max_length - len(prompt)
    found: Row = {"id": row["id"], "prompt_ids": prompt}
    for name, ids in answers.items():
        counts[f"{name} cut"] += len(ids) > room
        found[f"{name}_ids"] = ids[:room]
    if "rejected" in answers:
        found["flipped"] = row["flipped"]
        if found["chosen_ids"] == found["rejected_ids"]:
            counts["dropped: equal after cutting"] += 1
            return None
    return found


def read_batches(file: Path) -> Iterator[list[Row]]:
    """Records of a prepared Parquet file, a thousand at a time."""
    from pyarrow import parquet

    for batch in parquet.ParquetFile(file).iter_batches(READ_ROWS):
        yield batch.to_pylist()


if __name__ == "__main__":
    run(main)
