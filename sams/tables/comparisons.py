"""Is a method better than the start of all methods, or than plain DPO? Differences with their intervals."""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from sams.runtime.errors import UserError
from sams.runtime.files import whole_file
from sams.runtime.stage import read_recipe, run
from sams.study.study import BASE_METHOD, Study
from sams.tables.main_table import SCORES, Cells, main_table, seeds_of
from sams.tables.repeats import Repeats, over_repeats
from sams.tables.results import Cell, read_cells

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

BASES = [BASE_METHOD, "dpo"]
RESAMPLES = 10_000
COLUMNS = [
    "benchmark",
    "method",
    "base",
    "difference",
    "ci_low",
    "ci_high",
    "excludes_zero",
    "n_items",
    "n_seeds",
    "interval",
    "p_t",
    "p_sign_flip",
]

Items = dict[str, float]


class PerItem(NamedTuple):
    """A score with a value for each item: where the values are and how they are read."""

    column: str
    file: str
    read: Callable[[Path], Items]


def alpaca_eval_items(path: Path) -> Items:
    """Preference for the model on each instruction, in percent: their mean is AlpacaEval's `win_rate`.

    AlpacaEval counts preferences from 1 (baseline) to 2 (model), and an old 0 as a draw.
    """
    items: Items = {}
    for row in _read(path, json.loads):
        preference = row.get("preference")
        if preference is not None and (preference == 0 or 1 <= preference <= 2):
            items[row["instruction"]] = 100 * ((preference or 1.5) - 1)
    return items


def mt_bench_items(path: Path) -> Items:
    """Mean rating of both turns of each question; questions with a failed turn are left out.

    Raises:
        UserError: the file holds judgments of several models.
    """
    turns: dict[str, dict[int, float]] = {}
    models = set()
    for row in _read(path, lambda text: [json.loads(line) for line in text.split("\n") if line.strip()]):
        models.add(row.get("model"))
        if row["score"] != -1:  # FastChat's mark of a judgment without a rating
            turns.setdefault(str(row["question_id"]), {})[row["turn"]] = row["score"]
    if len(models) > 1:
        raise UserError(f"judgments of {len(models)} models, expected one", where=str(path))
    return {question: (rated[1] + rated[2]) / 2 for question, rated in turns.items() if len(rated) == 2}


PER_ITEM = [
    PerItem("win_rate", "alpaca_eval/annotations.json", alpaca_eval_items),
    PerItem("mt_bench", "mt_bench/judgments.jsonl", mt_bench_items),
]
# Scores without a file of items: length control is a fit over all instructions at once.
SUMMARISED = ["length_controlled_winrate", "test_accuracy"]


class Interval(NamedTuple):
    """A difference and its 95 % interval."""

    difference: float
    low: float
    high: float


class Side(NamedTuple):
    """One side of a comparison: its name, the folder of each seed, and the metrics files of these."""

    name: str
    folders: Mapping[int, Path]
    cells: Cells


def comparisons(setting: Path, cells: Cells, methods: list[str], seeds: list[int]) -> "pd.DataFrame":
    """Every method against `sft` and against `dpo`, of COLUMNS, where both have the score.

    Args:
        setting: folder of the study's setting.
        cells: contents of its metrics files.
        methods: methods of the study.
        seeds: seeds that count; a pair of methods is compared on those that both have.
    """
    pairs = [
        (method, base)
        for base in BASES
        if base in methods
        for method in methods
        if method != base and method != BASE_METHOD
    ]
    sides = {
        name: Side(name, {seed: setting / name / f"seed{seed}" for seed in seeds}, cells) for name in methods
    }
    rows = [row for method, base in pairs for row in differences(sides[method], sides[base])]
    return as_table(rows)


def as_table(rows: Sequence[Mapping[str, Any]]) -> "pd.DataFrame":
    """Rows of `differences` as a table of COLUMNS."""
    import pandas as pd

    table = pd.DataFrame(rows, columns=COLUMNS)
    return table.astype({"n_items": "Int64", "n_seeds": "Int64", "p_t": float, "p_sign_flip": float})


def differences(method: Side, base: Side) -> Iterator[dict[str, Any]]:
    """Every score of two sides that both have, on the seeds that both have."""
    yield from _paired(method, base)
    yield from _unpaired(method, base)
    yield from _over_seeds(method, base)


def paired_difference(method: Items, base: Items) -> tuple[float, float, float, int]:
    """Mean difference over the items of both, its 95 % bootstrap interval, and their number."""
    import numpy as np

    shared = [key for key in method if key in base]
    differences = np.array([method[key] - base[key] for key in shared])
    low, high = np.percentile(_resampled_means(differences), [2.5, 97.5])
    return float(differences.mean()), float(low), float(high), len(shared)


def _resampled_means(values: "NDArray[np.float64]") -> "NDArray[np.float64]":
    """Means of RESAMPLES draws with replacement; the same draws at every call."""
    import numpy as np

    generator = np.random.default_rng(0)
    chunks = [
        values[generator.integers(len(values), size=(RESAMPLES // 20, len(values)))].mean(axis=1)
        for _ in range(20)  # in parts, to stay below 100 MB
    ]
    return np.concatenate(chunks)


def _paired(method: Side, base: Side) -> Iterator[dict[str, Any]]:
    for score in PER_ITEM:
        files = [
            (method.folders[seed] / score.file, base.folders[seed] / score.file)
            for seed in method.folders
            if seed in base.folders
        ]
        files = [both for both in files if all(file.is_file() for file in both)]
        of_method, of_base = (_mean([score.read(both[side]) for both in files]) for side in (0, 1))
        if of_method.keys() & of_base.keys():
            difference, low, high, items = paired_difference(of_method, of_base)
            found = Interval(difference, low, high)
            yield _row(score.column, method, base, found, len(files), "paired", items=items)


def _unpaired(method: Side, base: Side) -> Iterator[dict[str, Any]]:
    table, shared = _both(method, base)
    for column in SUMMARISED:
        difference = table[column][method.name] - table[column][base.name]
        half = 1.96 * math.hypot(*table[f"{column}_se_items"])
        if not math.isnan(difference + half):
            found = Interval(difference, difference - half, difference + half)
            yield _row(column, method, base, found, len(shared), "unpaired")


def _over_seeds(method: Side, base: Side) -> Iterator[dict[str, Any]]:
    """Seeds as repeats: the difference of each seed counts once."""
    _, shared = _both(method, base)
    for score in SCORES if len(shared) > 1 else ():
        if score.column not in [*SUMMARISED, *(item.column for item in PER_ITEM)]:
            continue
        values = [
            [side.cells.get(Cell(side.name, seed, score.benchmark), {}).get(score.key) for seed in shared]
            for side in (method, base)
        ]
        if any(value is None for side in values for value in side):
            continue
        found = over_repeats([one - other for one, other in zip(*values, strict=True)])
        interval = Interval(found.difference, found.low, found.high)
        yield _row(score.column, method, base, interval, len(shared), "over seeds", repeats=found)


def _both(method: Side, base: Side) -> "tuple[pd.DataFrame, list[int]]":
    """The main table of two sides, and the seeds that both have figures of."""
    cells = {**base.cells, **method.cells}
    seeds = [seed for seed in method.folders if seed in base.folders]
    shared = seeds_of(cells, method.name, seeds_of(cells, base.name, seeds))
    return main_table(cells, [method.name, base.name], shared).set_index("method"), shared


def _row(
    benchmark: str,
    method: Side,
    base: Side,
    found: Interval,
    seeds: int,
    interval: str,
    *,
    items: int | None = None,
    repeats: Repeats | None = None,
) -> dict[str, Any]:
    return {
        "benchmark": benchmark,
        "method": method.name,
        "base": base.name,
        "difference": found.difference,
        "ci_low": found.low,
        "ci_high": found.high,
        "excludes_zero": found.low > 0 or found.high < 0,
        "n_items": items,
        "n_seeds": seeds,
        "interval": interval,
        "p_t": repeats.p_t if repeats else None,
        "p_sign_flip": repeats.p_sign_flip if repeats else None,
    }


def _mean(seeds: list[Items]) -> Items:
    """Mean over seeds of the items that every seed has."""
    if not seeds:
        return {}
    shared = [key for key in seeds[0] if all(key in items for items in seeds)]
    return {key: sum(items[key] for items in seeds) / len(seeds) for key in shared}


def _read(path: Path, parse: Callable[[str], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    try:
        return parse(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(
            f"no JSON ({error.msg})", where=str(path), remedy="delete it and score again"
        ) from None


def main(
    study_config: Annotated[str, typer.Option(help="Study, as JSON or a JSON file.")],
    results: Annotated[Path, typer.Option(help="Folder of the study's setting: results/<study>/<setting>.")],
    out_csv: Annotated[Path, typer.Option(help="Every figure at full precision.")],
    out_md: Annotated[Path, typer.Option(help="The table for reading, as Markdown.")],
) -> None:
    """Write the differences between a study's methods from its item files."""
    from sams.tables import captions, render

    study = read_recipe(study_config, Study)
    table = comparisons(results, read_cells(results), study.methods, study.seeds)
    with whole_file(out_csv) as part:
        table.to_csv(part, index=False)
    text = render.markdown(
        captions.comparison_title(study),
        render.readable_comparisons(table),
        captions.comparison_notes(study, RESAMPLES),
    )
    with whole_file(out_md) as part:
        part.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    run(main)
