import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest

from sams.runtime.errors import UserError
from sams.scoring.difficulty_table import (
    OFFICIAL_BASELINE,
    TableRow,
    check_reference,
    check_table,
    instruction_hash,
    read_table,
    write_table,
)

INSTRUCTIONS = ["one", "two", "three", "four"]


def table() -> list[TableRow]:
    lengths = {"base-verbose": (-2.5, -0.3, -1.1, -0.9), "base-concise": (0.0, 2.0, 1.0, 2.2)}
    spread = {name: _stdev(values) for name, values in lengths.items()}
    return [
        TableRow(
            index=index,
            model=name,
            preference=0.6,
            std_delta_len=values[index] / spread[name],
            instruction_difficulty=0.5 * index,
            instruction_sha256=instruction_hash(instruction),
        )
        for name, values in lengths.items()
        for index, instruction in enumerate(INSTRUCTIONS)
    ]


def _stdev(values: tuple[float, ...]) -> float:
    mean = sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))


def test_a_written_table_reads_back_and_passes(tmp_path: Path) -> None:
    write_table(tmp_path / "difficulty.csv", table())
    assert read_table(tmp_path / "difficulty.csv") == table()
    check_table(table(), INSTRUCTIONS, "table")


def changed(**values: Any) -> list[TableRow]:
    """The table with values of the second row changed."""
    rows = table()
    rows[1] = dataclasses.replace(rows[1], **values)
    return rows


def flipped() -> list[TableRow]:
    return [dataclasses.replace(row, std_delta_len=-row.std_delta_len) for row in table()]


def constant() -> list[TableRow]:
    return [dataclasses.replace(row, std_delta_len=0.0) for row in table()]


def equally_difficult() -> list[TableRow]:
    return [dataclasses.replace(row, instruction_difficulty=0.0) for row in table()]


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        (table()[1:], "index 0 to 3 in order"),
        (table()[:4], "found 4 rows"),
        ([*table()[1::-1], *table()[2:]], "index 0 to 3 in order"),
        (table()[4:] + flipped()[:4], "base-verbose has the wrong sign"),
        (flipped(), "has the wrong sign"),
        (constant(), "standard deviation 0 instead of 1"),
        (changed(std_delta_len=40.0), "instead of 1"),
        (changed(model="base-concise"), "mixes variants"),
        (changed(instruction_difficulty=9.0), "two different difficulties"),
        (equally_difficult(), "the same difficulty"),
        (changed(instruction_sha256="0" * 16), "index 1 is not of instruction 2"),
    ],
)
def test_a_table_that_would_give_a_wrong_figure_is_refused(rows: list[TableRow], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        check_table(rows, INSTRUCTIONS, "table")


def test_a_table_of_a_reordered_reference_is_refused() -> None:
    with pytest.raises(UserError, match="index 0 is not of instruction 1"):
        check_table(table(), INSTRUCTIONS[::-1], "table")


def test_the_official_table_is_for_the_official_instructions_only() -> None:
    rows = [dataclasses.replace(row, instruction_sha256=None) for row in table()]
    with pytest.raises(UserError, match="AlpacaEval's 805 instructions"):
        check_table(rows, INSTRUCTIONS, "table")
    with pytest.raises(UserError, match="not AlpacaEval's 805"):
        check_reference(INSTRUCTIONS, OFFICIAL_BASELINE, "reference.json")
    check_reference(INSTRUCTIONS, "another-baseline", "reference.json")


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("preference,", "pref,", "has no column preference"),
        ("\n0.6,0,", "\n1.6,0,", "line 2: preference 1.6 is not between 0 and 1; AlpacaEval's"),
        ("\n0.6,1,", "\nnan,1,", "line 3: expected finite"),
        ("\n0.6,1,", "\nmuch,1,", "line 3: expected numbers"),
        ("False,base-verbose", "True,base-verbose", "not_gamed_baseline: expected False"),
    ],
)
def test_a_bad_cell_is_named(tmp_path: Path, old: str, new: str, problem: str) -> None:
    path = tmp_path / "difficulty.csv"
    write_table(path, table())
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(UserError, match=problem):
        read_table(path)
