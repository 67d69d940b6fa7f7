"""Difficulty table of AlpacaEval's length control (`df_gamed.csv`): format, checks, reading and writing.

alpaca-eval 0.6.2 does not check the table and looks difficulty up by row position, so that a wrong table silently
gives wrong figures. Here the table is compared with the reference outputs.

Format: two rows for each instruction, for a concise and a verbose variant of the baseline outputs; `index` (position
of the instruction), `model` (the variant), `preference` (of the variant over the baseline, 0 to 1), `std_delta_len`
((length of baseline - length of variant) / its standard deviation per variant), `instruction_difficulty`,
`not_gamed_baseline` (False). Tables of stage `make_difficulty` also have `instruction_sha256`, the first 16 hex
digits of the SHA-256 of the instruction.
"""

import csv
import hashlib
import io
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sams.runtime.errors import UserError
from sams.runtime.files import canonical_json, whole_file
from sams.scoring.inputs import read_text

COLUMNS = ("preference", "index", "std_delta_len", "instruction_difficulty", "not_gamed_baseline", "model")
HASH_COLUMN = "instruction_sha256"
VARIANTS = 2

# SHA-256 of the 805 instructions of AlpacaEval in their order, as canonical JSON (tatsu-lab/alpaca_eval 2edc6fa).
OFFICIAL_INSTRUCTIONS = "d02007bfbcc8fcf624c641e8b70d53e82f7d0c061d12cf1b5695357e0d0090ce"
OFFICIAL_BASELINE = "gpt4_1106_preview"


@dataclass(frozen=True)
class TableRow:
    """One row of a difficulty table."""

    index: int
    model: str
    preference: float
    std_delta_len: float
    instruction_difficulty: float
    instruction_sha256: str | None = None


def instruction_hash(instruction: str) -> str:
    """Return the first sixteen hex digits of the SHA-256 of an instruction."""
    return hashlib.sha256(instruction.encode()).hexdigest()[:16]


def are_official(instructions: Sequence[str]) -> bool:
    """Return whether instructions are AlpacaEval's 805 in their order."""
    digest = hashlib.sha256(canonical_json(list(instructions)).encode()).hexdigest()
    return digest == OFFICIAL_INSTRUCTIONS


def check_reference(instructions: Sequence[str], generator: str, where: str) -> None:
    """Check that outputs with the name of the official baseline are complete and in order.

    Raises:
        UserError: they are not.
    """
    if generator == OFFICIAL_BASELINE and not are_official(instructions):
        raise UserError(
            f"is named {OFFICIAL_BASELINE}, but its {len(instructions)} instructions are not AlpacaEval's "
            "805 in their order",
            where=where,
            remedy="use the file as published: difficulty is looked up by row position",
        )


def write_table(path: Path, rows: Sequence[TableRow]) -> None:
    """Write a table, completely or not at all."""
    with whole_file(path) as part, part.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow((*COLUMNS, HASH_COLUMN))
        for row in rows:
            writer.writerow(
                (
                    repr(row.preference),
                    row.index,
                    repr(row.std_delta_len),
                    repr(row.instruction_difficulty),
                    False,
                    row.model,
                    row.instruction_sha256,
                )
            )


def read_table(path: Path) -> list[TableRow]:
    """Read a table, gzip or not.

    Raises:
        UserError: naming the line and the column.
    """
    reader = csv.DictReader(io.StringIO(read_text(path)))
    absent = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
    if absent:
        raise UserError(
            f"has no column {', '.join(absent)}",
            where=str(path),
            remedy="give AlpacaEval's df_gamed.csv, or the table of `python -m sams.scoring.difficulty`",
        )
    return [_parsed(line, f"{path}, line {number}") for number, line in enumerate(reader, start=2)]


def _parsed(line: dict[str, str], where: str) -> TableRow:
    try:
        row = TableRow(
            index=int(line["index"]),
            model=line["model"],
            preference=float(line["preference"]),
            std_delta_len=float(line["std_delta_len"]),
            instruction_difficulty=float(line["instruction_difficulty"]),
            instruction_sha256=line.get(HASH_COLUMN) or None,
        )
    except (TypeError, ValueError) as error:
        raise UserError(f"expected numbers: {error}", where=where) from None
    if not all(map(math.isfinite, (row.preference, row.std_delta_len, row.instruction_difficulty))):
        raise UserError("expected finite numbers", where=where)
    if not 0.0 <= row.preference <= 1.0:
        raise UserError(
            f"preference {row.preference:g} is not between 0 and 1",
            where=where,
            remedy="AlpacaEval's annotations count from 1 to 2: subtract 1",
        )
    if line["not_gamed_baseline"] != "False":
        raise UserError(
            "expected False, found " + repr(line["not_gamed_baseline"]), where=f"{where}, not_gamed_baseline"
        )
    return row


def check_table(rows: Sequence[TableRow], instructions: Sequence[str], where: str) -> None:
    """Check that a table belongs to instructions and allows length control.

    Raises:
        UserError: naming the table and the problem.
    """
    count = len(instructions)
    if [row.index for row in rows] != list(range(count)) * VARIANTS:
        raise UserError(
            f"expected {VARIANTS} variants with index 0 to {count - 1} in order, for the {count} reference "
            f"outputs, found {len(rows)} rows",
            where=where,
        )
    variants = [rows[start : start + count] for start in range(0, len(rows), count)]
    _check_instructions(rows, instructions, where)
    for variant in variants:
        _check_variant(variant, where)
    difficulties = [[row.instruction_difficulty for row in variant] for variant in variants]
    if difficulties[0] != difficulties[1]:
        raise UserError("an instruction has two different difficulties", where=where)
    if max(difficulties[0]) - min(difficulties[0]) < 1e-6:
        raise UserError("all instructions have the same difficulty", where=where)


def _check_instructions(rows: Sequence[TableRow], instructions: Sequence[str], where: str) -> None:
    if all(row.instruction_sha256 is None for row in rows):
        if not are_official(instructions):
            raise UserError(
                "belongs to AlpacaEval's 805 instructions in their order, not to these reference outputs",
                where=where,
                remedy="give the reference outputs as published, or a table made for these instructions",
            )
        return
    for row in rows:
        if row.instruction_sha256 != instruction_hash(instructions[row.index]):
            raise UserError(
                f"index {row.index} is not of instruction {row.index + 1} of the reference outputs",
                where=where,
                remedy="give the reference outputs that the table was made for, in their order",
            )


def _check_variant(variant: Sequence[TableRow], where: str) -> None:
    names = {row.model for row in variant}
    if len(names) != 1:
        raise UserError(f"mixes variants in one block: {sorted(names)}", where=where)
    name = names.pop()
    deltas = [row.std_delta_len for row in variant]
    if abs(statistics.stdev(deltas) - 1.0) > 0.01:
        raise UserError(
            f"std_delta_len of {name} has standard deviation {statistics.stdev(deltas):.3g} instead of 1",
            where=where,
            remedy="length differences must vary: constant ones cannot be separated from quality",
        )
    direction = {"verbose": -1.0, "concise": 1.0}
    for word, sign in direction.items():
        if word in name and sign * statistics.fmean(deltas) <= 0.0:
            raise UserError(
                f"std_delta_len of {name} has the wrong sign",
                where=where,
                remedy="it is the baseline's length minus the variant's",
            )
