"""Print a study's data as it will be trained on, for `sams data`: counts, lengths, findings, rows with their mask."""

import logging
import tempfile
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sams.data import findings, prepare, tokenise
from sams.data.templates import stop_ids
from sams.data.tokens import lengths_of, read_columns
from sams.runtime.files import read_json
from sams.runtime.terminal import Readable, print_list, print_table, printable
from sams.study.recipes import recipe_json, recipe_of
from sams.study.study import Study

if TYPE_CHECKING:
    from rich.console import Console
    from transformers import PreTrainedTokenizerBase

QUANTILES = (0.1, 0.5, 0.9, 1.0)
COUNTS = {
    "read": "read",
    "dropped_repeats": "repeats",
    "dropped_shared_prompts": "in test",
    "broken_rows": "broken",
    "contradictions": "opposite label",
    "empty": "empty, equal",
    "prompt_cut": "prompts cut",
    "response_cut": "answers cut",
    "kept": "kept",
}
RARE = ("dropped_shared_prompts", "broken_rows", "empty")
"""Counts that are left out where all splits have none."""
MOST_LINES = 12
"""Lines of a text that are printed; the middle of a longer one is left out."""
STYLES = {"prompt": "dim", "response": "green", "chosen": "green", "rejected": "red"}


def show(study: Study, rows: int) -> None:
    """Prepare and tokenise a study's data in a temporary folder, and print what the training reads.

    Args:
        study: the study; of data of each seed, that of its first seed.
        rows: number of rows of each training split that are printed.

    Raises:
        UserError: a row, the tokenizer or the template cannot be used.
    """
    from rich.console import Console

    with tempfile.TemporaryDirectory() as folder:
        data, tokens = Path(folder) / "data", Path(folder) / "tokens"
        logging.disable(logging.WARNING)  # the findings are printed
        try:
            prepare.main(recipe_json(recipe_of(study, "prepare_data", seed=study.seeds[0])), data)
            tokenise.main(recipe_json(recipe_of(study, "tokenise")), data, tokens)
        finally:
            logging.disable(logging.NOTSET)
        print_data(Console(highlight=False, soft_wrap=False), study, data, tokens, rows)


def print_data(console: "Console", study: Study, data: Path, tokens: Path, rows: int) -> None:
    """Print the report of prepared and tokenised data, and the first rows of each training split."""
    from transformers import AutoTokenizer

    records, encoded = read_json(data / "report.json"), read_json(tokens / "report.json")
    splits = [split for split in findings.ANSWERS if split in encoded]
    columns = {split: read_columns(tokens / split) for split in splits}
    tokenizer = AutoTokenizer.from_pretrained(tokens / "tokenizer", trust_remote_code=False)
    console.print(f"Data of study {study.study}, {study.setting}", style="bold", markup=False)
    for split in splits:
        console.print(
            f"  {split}: {records.get(split, {}).get('source', 'the synthetic world')}", markup=False
        )
    own = study.model.chat_template or (study.model.path and f"that of {study.model.path}") or "the plain one"
    stops = tokenizer.convert_ids_to_tokens(stop_ids(tokenizer, study.model.template_date))
    console.print(f"  chat template: {own}; an answer ends with {' or '.join(stops)}", markup=False)
    console.print()
    print_table("", _counts(splits, records, encoded))
    console.print()
    print_table("", _lengths(study, columns))
    console.print()
    leak = findings.of_leak(records["leak"]) or ["No prompt of the training pairs is among the test pairs."]
    print_list([*leak, *findings.of_records(records), *findings.of_tokens(encoded)])
    for split in ("sft", "train"):
        for index, record in enumerate(_first(data / f"{split}.parquet", columns[split]["id"][:rows])):
            _print_row(console, split, index, record, columns[split], tokenizer)


def _counts(splits: Sequence[str], records: Mapping[str, Any], encoded: Mapping[str, Any]) -> Readable:
    """Return the table of the numbers of rows that are read, left out for each reason, cut and kept."""
    counts = {
        split: {"empty": encoded[split]["dropped_empty"] + encoded[split]["dropped_equal"]}
        | encoded[split]
        | records.get(split, {})
        for split in splits
    }
    shown = [key for key in COUNTS if key not in RARE or any(own.get(key) for own in counts.values())]
    rows: list[list[tuple[str, ...]]] = [
        [(split,), *((f"{own[key]:,}".replace(",", " ") if own.get(key) else "–",) for key in shown)]
        for split, own in counts.items()
    ]
    return Readable(["rows", *(COUNTS[key] for key in shown)], rows)


def _lengths(study: Study, columns: Mapping[str, Mapping[str, Any]]) -> Readable:
    """Return the table of quantiles of the lengths in tokens, after cutting."""
    rows: list[list[tuple[str, ...]]] = []
    limits = {"prompt": study.data.max_prompt_length}
    for split in ("sft", "train"):
        for column, values in columns[split].items():
            name = column.removesuffix("_ids")
            if column.endswith("_ids") and name in STYLES:
                lengths = np.quantile(lengths_of(values), QUANTILES, method="higher")
                limit = str(limits[name]) if name in limits else f"{study.data.max_length} with prompt"
                texts = [f"{split}, {name}", *(f"{length:.0f}" for length in lengths), limit]
                rows.append([(text,) for text in texts])
    heads = [f"{share:.0%}" if share < 1 else "longest" for share in QUANTILES]
    return Readable(["tokens", *heads, "limit"], rows)


def _first(file: Path, ids: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the records with these ids, which are in the order of the file."""
    waiting = list(ids)
    for batch in tokenise.read_batches(file, "rows"):
        for record in batch:
            if waiting and record["id"] == waiting[0]:
                waiting.pop(0)
                yield record
        if not waiting:
            return


def _print_row(
    console: "Console",
    split: str,
    index: int,
    record: Mapping[str, Any],
    columns: Mapping[str, Any],
    tokenizer: "PreTrainedTokenizerBase",
) -> None:
    """Print the text of a row's token ids: the prompt, which is not learned, and after `>` what is."""
    roles = ", ".join(message["role"] for message in record["prompt"])
    console.print()
    console.print(
        f"{split}, row {index + 1}, id {record['id']}: {roles} -> assistant", style="bold", markup=False
    )
    for name, style in STYLES.items():
        if f"{name}_ids" in columns:
            ids = columns[f"{name}_ids"][index]
            mask = "not learned" if name == "prompt" else "learned"
            if name != "prompt" and ids[-1] != tokenizer.eos_token_id:
                mask += ", its end is cut"
            console.print(f"{name}, {len(ids)} tokens, {mask}", style="italic", markup=False)
            gutter = "  " if name == "prompt" else "> "
            for line in _lines(tokenizer.decode(ids), console.width - len(gutter)):
                console.print(
                    gutter + line, style=style, markup=False, no_wrap=True, overflow="ignore", crop=False
                )


def _lines(text: str, width: int) -> list[str]:
    """Return a text as lines of a width, without control characters; the middle of a long text is left out."""
    lines = [part for line in printable(text).split("\n") for part in textwrap.wrap(line, width) or [""]]
    if len(lines) <= MOST_LINES:
        return lines
    half = MOST_LINES // 2
    return [*lines[:half], f"[{len(lines) - 2 * half} lines]", *lines[-half:]]
