"""Stage `prepare_data`: from the world, files or hub data sets to checked records with stable ids."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sams.data import forms, world
from sams.data.records import Example, Pair, prompt_digest
from sams.data.seen import Digests, Seen
from sams.errors import UserError
from sams.files import sha256_of, whole_folder, write_json
from sams.recipes import DataRecipe
from sams.settings import Data
from sams.stage import read_recipe, run

log = logging.getLogger(__name__)

PART_ROWS = 5000

Record = Example | Pair


def main(recipe: str, out: Path) -> None:
    """Write sft.parquet, train.parquet, test.parquet and report.json.

    Raises:
        UserError: naming source, row and key; nothing is left at `out` then.
    """
    data = read_recipe(recipe, DataRecipe).data
    report: dict[str, Any] = {}
    prompts: dict[str, Digests] = {}
    with whole_folder(out) as part:
        for split, records in splits(data).items():
            counts, prompts[split] = write_split(records, part / f"{split}.parquet")
            report[split] = source_of(data, split) | counts
            log.info("%s: %s", split, report[split])
        report["leak"] = leak(prompts["train"], prompts["test"])
        write_json(part / "report.json", report)
    if report["leak"]["prompts"]:
        log.warning(
            "%d prompts of train are also in test (%d test pairs): test figures will look better than they are",
            report["leak"]["prompts"],
            report["leak"]["test_pairs"],
        )


def splits(data: Data) -> dict[str, Iterator[Any]]:
    """The records of each split; supervised examples fall back on the chosen responses of `train`."""
    if data.world is not None:
        return {
            "sft": world.supervised_examples(data.world),
            "train": world.train_pairs(data.world),
            "test": world.test_pairs(data.world),
        }
    if data.train is None or data.test is None:
        raise UserError("give `train` and `test`, or a synthetic `world`", where="data")
    if data.sft is not None:
        sft = forms.read_examples(data.sft, "train")
    else:
        sft = (Example(pair.prompt, pair.chosen) for pair in forms.read_pairs(data.train, "train"))
    return {
        "sft": sft,
        "train": forms.read_pairs(data.train, "train"),
        "test": forms.read_pairs(data.test, "test"),
    }


def source_of(data: Data, split: str) -> dict[str, str]:
    """Where a split came from, for the report."""
    if data.world is not None:
        return {"source": "the synthetic world"}
    source = str(getattr(data, split) or f"chosen responses of {data.train}")
    file = Path(source)
    return {"source": source} | ({"sha256": sha256_of(file)} if file.is_file() else {})


def leak(train: Digests, test: Digests) -> dict[str, int]:
    """How many different prompts are in both splits, and how many test pairs they make up."""
    trained, _ = train.counts()
    tested, pairs = test.counts()
    shared = np.isin(tested, trained)
    return {"prompts": int(shared.sum()), "test_pairs": int(pairs[shared].sum())}


def write_split(records: Iterator[Record], file: Path) -> tuple[dict[str, int], Digests]:
    """Write the records of one split, a part at a time, without exact repeats.

    Memory grows by the digests alone, some thirty bytes a record.

    Returns:
        Counts of what was read, dropped and written, and the digest of the prompt of each record written.
    """
    from pyarrow import parquet

    counts = {"read": 0, "dropped_repeats": 0, "written": 0}
    seen = Seen()
    prompts = Digests()
    writer: parquet.ParquetWriter | None = None
    rows: list[dict[str, Any]] = []

    def flush() -> None:
        nonlocal writer
        if rows:
            table = _table(rows)
            writer = writer or parquet.ParquetWriter(file, table.schema)
            writer.write_table(table)
            rows.clear()

    try:
        for record in records:
            counts["read"] += 1
            identity = record.id
            if not seen.add(bytes.fromhex(identity)):
                counts["dropped_repeats"] += 1
                continue
            prompts.add(prompt_digest(record.prompt))
            counts["written"] += 1
            for flag in ("imperfect", "flipped"):
                if getattr(record, flag, None):
                    counts[flag] = counts.get(flag, 0) + 1
            rows.append({"id": identity, **vars(record)})
            if len(rows) == PART_ROWS:
                flush()
        flush()
    finally:
        if writer is not None:
            writer.close()
    return counts, prompts


def _table(rows: list[dict[str, Any]]) -> Any:
    """Rows as an Arrow table, whose types do not depend on what the rows hold."""
    import pyarrow as pa

    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    types = {"prompt": pa.list_(message), "imperfect": pa.bool_(), "flipped": pa.bool_()}
    schema = pa.schema([(name, types.get(name, pa.string())) for name in rows[0]])
    return pa.Table.from_pylist(rows, schema=schema)


if __name__ == "__main__":
    run(main)
