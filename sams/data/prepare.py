"""Stage `prepare_data`: read the world, files or hub data sets, and write checked records with stable ids."""

import functools
import logging
import tempfile
from collections.abc import Iterator, Set
from pathlib import Path
from typing import Any

import numpy as np

from sams.data import findings, forms
from sams.data.published import published_pairs, rendered, sft_targets
from sams.data.records import Example, Pair, is_held_out, prompt_digest
from sams.data.seen import Digests, Seen
from sams.data.tokens import KEPT
from sams.runtime.errors import UserError
from sams.runtime.files import canonical_json, sha256_of, whole_folder, write_json
from sams.runtime.progress import progress
from sams.runtime.stage import read_recipe, run
from sams.study.recipes import DataRecipe
from sams.study.settings import Data, Form
from sams.study.sources import digests_of_sources
from sams.world import examples as world

log = logging.getLogger(__name__)

PART_ROWS = 5000
SPLITS = ("sft", "train", "test")
VALIDATION = "validation"

Record = Example | Pair


def main(recipe: str, out: Path) -> None:
    """Write sft.parquet, train.parquet, test.parquet, validation.parquet (worlds that have it) and report.json.

    Raises:
        UserError: a row cannot be read; the message names source, row and key. `out` is not created then.
    """
    settings = read_recipe(recipe, DataRecipe)
    data = settings.data
    report: dict[str, Any] = {split: {} for split in SPLITS}
    prompts: dict[str, Digests] = {}
    sources = digests_of_sources(settings)
    with whole_folder(out, sources=sources) as part, tempfile.TemporaryDirectory() as rows:
        held_out: Set[int] = frozenset()
        for split, (records, reading) in splits(data, Path(rows)).items():
            counts, prompts[split] = write_split(records, part / f"{split}.parquet", held_out)
            report[split] = source_of(data, split) | counts
            if data.form != "auto" or data.broken_rows == "drop" or split in data.published_rows:
                report[split] |= reading.counts
            check_rows(data, split, reading.rows, report[split])
            log.info("%s: %s", split, report[split])
            if split == "test" and data.shared_prompts == "drop":
                held_out = set(prompts["test"].counts()[0].tolist())
        report["leak"] = leak(prompts["train"], prompts["test"])
        write_json(part / "report.json", report)
    for sentence in [*findings.of_leak(report["leak"]), *findings.of_records(report)]:
        log.warning("warning: %s", sentence)


def splits(data: Data, rows: Path) -> dict[str, tuple[Iterator[Any], forms.Reading]]:
    """Return the records of each split with the counts of their rows; `test` comes first.

    Without `data.sft`, supervised examples are the responses of `train` that the data set's rules name.

    Args:
        data: settings.
        rows: folder for the world's pairs, written as rows of a named form.
    """
    reading = functools.partial(
        forms.Reading,
        drop=data.broken_rows == "drop",
        columns=data.columns,
        ignored=frozenset(data.ignored_columns),
        turns=data.sft_turns,
    )
    readings = {split: reading() for split in SPLITS}
    readings["train"].kept = tuple(data.keep_columns)
    if data.world is not None and data.form == "auto":
        records: dict[str, Iterator[Any]] = {
            "test": world.test_pairs(data.world),
            "sft": world.supervised_examples(data.world),
            "train": world.train_pairs(data.world),
        }
        if data.world.validation_pairs:
            records[VALIDATION] = world.validation_pairs(data.world)
            readings[VALIDATION] = forms.Reading()
        return {split: (own, readings[split]) for split, own in records.items()}
    train, test = data.train, data.test
    if data.world is not None:
        train = write_rows(world.train_pairs(data.world), data.form, rows / "train.jsonl")
        test = write_rows(world.test_pairs(data.world), data.form, rows / "test.jsonl")
    if train is None or test is None:
        raise UserError("give `train` and `test`, or a synthetic `world`", where="data")
    share = test if isinstance(test, float) else None

    def side(records: Iterator[Any], *, held_out: bool) -> Iterator[Any]:
        """Yield the records whose prompts a share in `data.test` holds out, or the others."""
        if share is None:
            return records
        return (each for each in records if is_held_out(each.prompt, share, data.split_seed) == held_out)

    of_test = (str(test), "test") if share is None else (train, "train")
    if data.sft is not None:
        sft = forms.read_examples(data.sft, "train", readings["sft"])
    else:
        sft = side(sft_targets(data.form, train, "train", readings["sft"]), held_out=False)
    pairs = published_pairs(data.form, train, "train", readings["train"])
    return {
        "test": (
            side(published_pairs(data.form, *of_test, readings["test"]), held_out=True),
            readings["test"],
        ),
        "sft": (sft, readings["sft"]),
        "train": (side(pairs, held_out=False), readings["train"]),
    }


def write_rows(pairs: Iterator[Pair], form: Form, file: Path) -> str:
    """Write pairs as rows of a named form and return the path."""
    row_of = rendered(form)
    with file.open("w", encoding="utf-8") as stream:
        stream.writelines(canonical_json(row_of(pair)) + "\n" for pair in pairs)
    return str(file)


def check_rows(data: Data, split: str, rows: int, report: dict[str, Any]) -> None:
    """Compare a split's number of rows with the published one, and add the latter to the report.

    Raises:
        UserError: they differ, and `data.other_row_counts` is `refuse`.
    """
    published = data.published_rows.get(split)  # type: ignore[call-overload]
    if published is None or data.world is not None:
        return
    report["published_rows"] = published
    if rows == published:
        return
    problem = f"{rows} rows, but {published} are published"
    if data.other_row_counts == "refuse":
        raise UserError(problem, where=f"data.{split}", remedy="check the revision, or report other counts")
    log.warning("%s: %s", split, problem)


def source_of(data: Data, split: str) -> dict[str, str]:
    """Return the source of a split, for the report."""
    if data.world is not None:
        form = "" if data.form == "auto" else f", in the form {data.form}"
        return {"source": f"the synthetic world{form}"}
    source = str(getattr(data, split) or f"chosen responses of {data.train}")
    if isinstance(data.test, float) and split == "test":
        source = f"{data.test:g} of the prompts of {data.train}"
    file = Path(source)
    return {"source": source} | ({"sha256": sha256_of(file)} if file.is_file() else {})


def leak(train: Digests, test: Digests) -> dict[str, int]:
    """Count the distinct prompts that are in both splits, and the test pairs that have them."""
    trained, _ = train.counts()
    tested, pairs = test.counts()
    shared = np.isin(tested, trained)
    return {"prompts": int(shared.sum()), "test_pairs": int(pairs[shared].sum())}


def write_split(
    records: Iterator[Record], file: Path, held_out: Set[int] = frozenset()
) -> tuple[dict[str, int], Digests]:
    """Write the records of one split in parts, without exact repeats.

    Memory grows by the digests alone, about thirty bytes a record.

    Args:
        records: records of the split.
        file: the Parquet file to write.
        held_out: digests of prompts, as integers, whose records are left out.

    Returns:
        Numbers of records read, dropped and written, and the prompt digest of each record written.

    Raises:
        UserError: no record is left.
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
        for record in progress(records, file.stem, None, "records"):
            counts["read"] += 1
            identity = record.id
            if not seen.add(bytes.fromhex(identity)):
                counts["dropped_repeats"] += 1
                continue
            prompt = prompt_digest(record.prompt)
            if int.from_bytes(prompt) in held_out:
                counts["dropped_shared_prompts"] = counts.get("dropped_shared_prompts", 0) + 1
                continue
            prompts.add(prompt)
            counts["written"] += 1
            if isinstance(record, Pair):
                opposite = bytes.fromhex(record.opposite_id) in seen
                counts["contradictions"] = counts.get("contradictions", 0) + opposite
            for flag in ("imperfect", "flipped"):
                if getattr(record, flag, None):
                    counts[flag] = counts.get(flag, 0) + 1
            row = {"id": identity, **vars(record)}
            row |= {KEPT + name: value for name, value in row.pop("kept", {}).items()}
            rows.append(row)
            if len(rows) == PART_ROWS:
                flush()
        flush()
    finally:
        if writer is not None:
            writer.close()
    if not counts["written"]:
        found = ", ".join(f"{name.replace('_', ' ')}: {count}" for name, count in counts.items())
        raise UserError(
            f"no row of the split remains ({found})",
            where=file.stem,
            remedy="give more rows; of a few, hold out a larger share (data.test) or a file",
        )
    return counts, prompts


def _table(rows: list[dict[str, Any]]) -> Any:
    """Convert rows to an Arrow table with fixed types, which empty columns need."""
    import pyarrow as pa

    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    types = {"prompt": pa.list_(message), "imperfect": pa.bool_(), "flipped": pa.bool_()}
    types |= {name: pa.float64() for name in rows[0] if name.startswith(KEPT)}
    schema = pa.schema([(name, types.get(name, pa.string())) for name in rows[0]])
    return pa.Table.from_pylist(rows, schema=schema)


if __name__ == "__main__":
    run(main)
