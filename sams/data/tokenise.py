"""Stage `tokenise`: convert prepared records to token ids, once for all methods."""

import contextlib
import itertools
import json
import logging
import multiprocessing
import random
import tempfile
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sams.data import findings, tokens
from sams.data.templates import CompletionEncoder, encode_prompts
from sams.data.tokeniser import build_tokenizer
from sams.data.tokens import KEPT, token_writer
from sams.policy.model import check_model
from sams.runtime.errors import UserError
from sams.runtime.files import manifest_digest, refuse_damage, whole_folder, write_json
from sams.runtime.progress import Progress
from sams.runtime.stage import read_recipe, run
from sams.study.recipes import TokeniseRecipe
from sams.study.rounds import check_rows
from sams.study.settings import Model
from sams.study.sources import digests_of_sources

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
"""Rows of a batch."""
WORTH_PROCESSES = 20_000
"""Least number of rows that is encoded by several processes."""

Row = dict[str, Any]
Columns = dict[str, list[Any]]


def main(recipe: str, data: Path, out: Path, processes: int = 1, required: str = "{}") -> None:
    """Write tokenizer/, sft/, train/, test/, validation/ (if the data has it) and report.json.

    Args:
        recipe: the stage's recipe.
        data: prepared records.
        out: folder of the results.
        processes: number of processes that encode batches; the result does not depend on it.
        required: rows that each split needs, with the key that requires them, as JSON (`rounds.required_rows`).

    Raises:
        UserError: tokenizer, template or model cannot be loaded or do not fit together, or too few rows are left.
    """
    settings = read_recipe(recipe, TokeniseRecipe)
    refuse_damage(data)
    model = Model.model_validate(settings.model.model_dump())
    tokenizer = build_tokenizer(model, texts(data))
    check_model(model, tokenizer, settings.max_length)
    report: dict[str, Any] = {"vocabulary": len(tokenizer)}
    with whole_folder(
        out, upstream={"data": manifest_digest(data)}, sources=digests_of_sources(settings)
    ) as part:
        tokenizer.save_pretrained(part / "tokenizer")
        with encoding_processes(tokenizer, settings, processes) as pool:
            for split in RESPONSES:
                file = data / f"{split}.parquet"
                if split == "validation" and not file.is_file():
                    continue
                report[split] = tokenise_split(file, split, tokenizer, settings, part / split, pool)
                log.info("%s: %s", split, report[split])
        check_rows(
            json.loads(required), {split: report[split]["kept"] for split in RESPONSES if split in report}
        )
        write_json(part / "report.json", report)
    for sentence in findings.of_tokens(report):
        log.warning("warning: %s", sentence)


def texts(data: Path) -> Iterator[str]:
    """Yield the conversations of the training splits as plain text, to train a tokenizer."""
    turns = {"user": "\n\nHuman: ", "assistant": "\n\nAssistant: ", "system": ""}
    for split in ("sft", "train"):
        for batch in read_batches(data / f"{split}.parquet", f"tokenizer from {split}"):
            for row in batch:
                prompt = "".join(turns[message["role"]] + message["content"] for message in row["prompt"])
                for name in RESPONSES[split]:
                    yield f"{prompt}\n\nAssistant: {row[name]}"


def tokenise_split(
    file: Path,
    split: str,
    tokenizer: "PreTrainedTokenizerBase",
    settings: TokeniseRecipe,
    out: Path,
    pool: "Pool | None" = None,
) -> dict[str, Any]:
    """Tokenise one split into an Arrow data set; return the numbers of kept, cut and dropped rows, and lengths.

    Memory does not grow with the data: rows are read, encoded and written in batches. Batches are encoded
    independently and written in order, so the result does not depend on the pool.

    Raises:
        UserError: no row is left.
    """
    responses = RESPONSES[split]
    names = ["id", "prompt_ids", *(f"{name}_ids" for name in responses)]
    names += ["flipped"] if split != "sft" else []
    names += [name for name in columns_of(file) if name.startswith(KEPT)]
    unknown = tokenizer.unk_token_id
    counts = Counter(dict.fromkeys(COUNTED, 0))
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        mismatching = settings.mismatched and len(responses) == 2
        first = Path(folder) / split if mismatching else out
        with token_writer(first, names, unknown=unknown) as writer:
            batches = read_batches(file, split)
            if pool is not None and rows_of(file) >= WORTH_PROCESSES:
                encoded: Iterable[tuple[Columns, Counter[str]]] = pool.encode(batches, names)
            else:
                encoder = Encoder(tokenizer, settings)
                encoded = (encoder(batch, names) for batch in batches)
            for columns, counted in encoded:
                counts.update(counted)
                writer.write(columns)
        if not counts["kept"]:
            raise UserError(
                f"no row remains after tokenising ({dict(counts)})",
                where=str(file),
                remedy="raise data.max_length, or check the data",
            )
        if mismatching:
            with token_writer(out, [*names, "mismatched_ids"], unknown=unknown) as writer:
                for table in mismatched(first, counts["kept"], settings.max_length):
                    writer.write(table)
    return {**counts, **writer.report()}


class Encoder:
    """Converts batches of records to columns of token ids."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", settings: TokeniseRecipe) -> None:
        self._tokenizer, self._settings = tokenizer, settings
        self._date = settings.model.template_date
        self._encode = CompletionEncoder(tokenizer, self._date)

    def __call__(self, batch: list[Row], names: list[str]) -> tuple[Columns, Counter[str]]:
        """Return the columns `names` of the kept rows, and the counts."""
        counts: Counter[str] = Counter()
        columns: Columns = {name: [] for name in names}
        kept = [name for name in names if name.startswith(KEPT)]
        responses = [
            name.removesuffix("_ids") for name in names[2:] if name.endswith("_ids") and name not in kept
        ]
        left_out = [self._encode.left_out([row[name] for name in responses]) for row in batch]
        prompts = encode_prompts(self._tokenizer, [row["prompt"] for row in batch], self._date, left_out)
        answers = [self._encode([row[name] for row in batch], left_out) for name in responses]
        for row, prompt, *ids in zip(batch, prompts, *answers, strict=True):
            counts["read"] += 1
            fitted = fit(prompt, ids, self._settings, self._tokenizer.bos_token_id, counts)
            if any(len(response) <= len(self._encode.end) for response in ids):
                counts["dropped_empty"] += 1
            elif len(ids) == 2 and fitted[1] == fitted[2]:
                counts["dropped_equal"] += 1
            else:
                counts["kept"] += 1
                for name, value in zip(names, (row["id"], *fitted, row.get("flipped")), strict=False):
                    columns[name].append(value)
                for name in kept:
                    columns[name].append(row[name])
        return columns, counts


class Pool:
    """Pool of processes that encode batches."""

    def __init__(self, executor: ProcessPoolExecutor, processes: int) -> None:
        self._executor, self._most = executor, 2 * processes

    def encode(
        self, batches: Iterable[list[Row]], names: list[str]
    ) -> Iterator[tuple[Columns, Counter[str]]]:
        """Yield encoded batches in order, with a bounded number of pending ones."""
        waiting: deque[Future[tuple[Columns, Counter[str]]]] = deque()
        for batch in batches:
            waiting.append(self._executor.submit(_encode_in_worker, batch, names))
            if len(waiting) == self._most:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


@contextlib.contextmanager
def encoding_processes(
    tokenizer: "PreTrainedTokenizerBase", settings: TokeniseRecipe, processes: int
) -> Iterator[Pool | None]:
    """Yield a pool of processes, which start with the first batch, or None for one process."""
    if processes < 2:
        yield None
        return
    # A fork would copy the state of Arrow's threads.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, spawn, _start_worker, (tokenizer, settings)) as executor:
        yield Pool(executor, processes)


_encoder: Encoder | None = None


def _start_worker(tokenizer: "PreTrainedTokenizerBase", settings: TokeniseRecipe) -> None:
    global _encoder
    _encoder = Encoder(tokenizer, settings)


def _encode_in_worker(batch: list[Row], names: list[str]) -> tuple[Columns, Counter[str]]:
    assert _encoder is not None
    return _encoder(batch, names)


def rows_of(file: Path) -> int:
    """Return the number of records of a prepared Parquet file."""
    from pyarrow import parquet

    return int(parquet.read_metadata(file).num_rows)


def columns_of(file: Path) -> list[str]:
    """Return the names of the columns of a prepared Parquet file."""
    from pyarrow import parquet

    return list(parquet.read_schema(file).names)


def fit(
    prompt: list[int],
    responses: list[list[int]],
    settings: TokeniseRecipe,
    bos: int | None,
    counts: Counter[str],
) -> list[list[int]]:
    """Truncate prompt and responses to the length limits, and count truncations.

    A long prompt loses its beginning (except BOS), a long response its end, including EOS.
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
    """Yield the columns of a split and `mismatched_ids`: completions of other prompts, for KTO's KL term.

    The completion of a pair is that of the pair a fixed number of rows further on (cyclic; drawn once), in turn the
    chosen and the rejected one, truncated to the length limit. It is the same in every epoch and order.

    Args:
        pairs: folder of the tokenised split.
        count: number of its pairs.
        max_length: limit of prompt and completion.

    Raises:
        UserError: there is only one pair.
    """
    if count < 2:
        raise UserError("KTO needs two pairs or more, to mismatch them", remedy="give more data")
    shift = random.Random("mismatched").randrange(1, count)
    others = itertools.islice(itertools.chain(_completions(pairs), _completions(pairs)), shift, None)
    row = 0
    for batch in tokens.read_batches(pairs):
        completions = []
        for prompt in batch["prompt_ids"].to_pylist():
            completions.append(next(others)[row % 2][: max_length - len(prompt)])
            row += 1
        columns = dict(zip(batch.schema.names, batch.columns, strict=True))
        yield columns | {"mismatched_ids": completions}


def _completions(pairs: Path) -> Iterator[tuple[list[int], list[int]]]:
    for batch in tokens.read_batches(pairs):
        yield from zip(batch["chosen_ids"].to_pylist(), batch["rejected_ids"].to_pylist(), strict=True)


def read_batches(file: Path, what: str) -> Iterator[list[Row]]:
    """Yield the records of a prepared Parquet file in batches, and report progress as `what`."""
    from pyarrow import parquet

    # pre_buffer would keep the complete file in memory.
    records = parquet.ParquetFile(file, pre_buffer=False)
    with Progress(what, records.metadata.num_rows, "records") as progress:
        for batch in records.iter_batches(READ_ROWS):
            yield batch.to_pylist()
            progress.add(len(batch))


if __name__ == "__main__":
    run(main)
