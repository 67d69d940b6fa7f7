"""Stage `prepare_data`: from the world, files or hub data sets to checked records with stable ids."""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sams.config import Data
from sams.data import sources, world
from sams.data.records import Example, Pair
from sams.errors import UserError
from sams.files import whole_folder, write_json
from sams.recipes import DataRecipe
from sams.stage import read_recipe, run

log = logging.getLogger(__name__)

PART_ROWS = 5000


def main(recipe: str, out: Path) -> None:
    """Write sft.parquet, train.parquet, test.parquet and report.json."""
    settings = read_recipe(recipe, DataRecipe).data
    with whole_folder(out) as part:
        report: dict[str, Any] = {}
        prompts = {}
        for split, records in splits(settings):
            report[split], prompts[split] = write_split(
                records, part / f"{split}.parquet", source_of(settings, split)
            )
        shared = prompts["train"] & prompts["test"]
        report["prompts in train and test"] = len(shared)
        write_json(part / "report.json", report)
    for split, counts in report.items():
        log.info("%s: %s", split, counts)
    if shared:
        log.warning(
            "%d prompts are in train and test: test figures will look better than they are", len(shared)
        )


def splits(data: Data) -> list[tuple[str, Iterable[Example | Pair]]]:
    """The three splits of the study's data; SFT falls back on the chosen responses of `train`."""
    if data.world is not None:
        return [
            ("sft", world.supervised_examples(data.world)),
            ("train", world.train_pairs(data.world)),
            ("test", world.test_pairs(data.world)),
        ]
    assert data.train is not None
    assert data.test is not None
    examples: Iterable[Example | Pair]
    if data.sft is not None:
        examples = sources.read_examples(data.sft)
    else:
        examples = (Example(pair.prompt, pair.chosen) for pair in sources.read_pairs(data.train))
    return [
        ("sft", examples),
        ("train", sources.read_pairs(data.train)),
        ("test", sources.read_pairs(data.test)),
    ]


def source_of(data: Data, split: str) -> str:
    """What a split was read from, for messages."""
    return str(getattr(data, split) or "the synthetic world")


def write_split(
    records: Iterable[Example | Pair], file: Path, source: str
) -> tuple[dict[str, int], set[str]]:
    """Write the records of one split, dropping exact repeats; return counts and the prompts.

    Raises:
        UserError: when there is none.
    """
    import pyarrow as pa
    from pyarrow import parquet

    counts = {"read": 0, "dropped: exact repeat": 0}
    seen: set[str] = set()
    prompts: set[str] = set()
    writer: parquet.ParquetWriter | None = None
    rows: list[dict[str, Any]] = []

    def flush() -> None:
        nonlocal writer
        if rows:
            table = pa.Table.from_pylist(rows, schema=SCHEMAS["response" in rows[0]]())
            writer = writer or parquet.ParquetWriter(file, table.schema)
            writer.write_table(table)
            rows.clear()

    for record in records:
        counts["read"] += 1
        if record.id in seen:
            counts["dropped: exact repeat"] += 1
            continue
        seen.add(record.id)
        prompts.add(repr(record.prompt))
        rows.append({"id": record.id, **vars(record)})
        if len(rows) == PART_ROWS:
            flush()
    flush()
    if writer is None:
        raise UserError("holds no example", where=source, remedy="give a file with at least one")
    writer.close()
    return {**counts, "kept": len(seen)}, prompts


def _schema(**columns: str) -> Any:
    import pyarrow as pa

    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    types = {"text": pa.string(), "flag": pa.bool_()}
    return pa.schema(
        [
            ("id", pa.string()),
            ("prompt", pa.list_(message)),
            *((name, types[kind]) for name, kind in columns.items()),
        ]
    )


# By whether a record is a supervised example.
SCHEMAS = {
    True: lambda: _schema(response="text", imperfect="flag"),
    False: lambda: _schema(chosen="text", rejected="text", flipped="flag"),
}


if __name__ == "__main__":
    run(main)
