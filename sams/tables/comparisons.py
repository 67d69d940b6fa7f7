"""Is a method better than the start of all methods, or than plain DPO? Differences with their intervals."""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from sams.config import BASE_METHOD, Study
from sams.errors import UserError
from sams.files import whole_file
from sams.results import read_cells
from sams.stage import read_recipe, run
from sams.tables.main_table import Cells, main_table, seeds_of

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


def comparisons(setting: Path, cells: Cells, methods: list[str], seeds: list[int]) -> "pd.DataFrame":
    """Every method against `sft` and against `dpo`, of COLUMNS, where both have the score.

    Args:
        setting: folder of the study's setting.
        cells: contents of its metrics files.
        methods: methods of the study.
        seeds: seeds that count; a pair of methods is compared on those that both have.
    """
    import pandas as pd

    pairs = [
        (method, base)
        for base in BASES
        if base in methods
        for method in methods
        if method != base and method != BASE_METHOD
    ]
    rows: list[dict[str, Any]] = []
    for method, base in pairs:
        rows += _paired(setting, method, base, seeds)
        rows += _unpaired(cells, method, base, seeds)
    table = pd.DataFrame(rows, columns=COLUMNS)
    return table.astype({"n_items": "Int64", "n_seeds": "Int64"})


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


def _paired(setting: Path, method: str, base: str, seeds: list[int]) -> Iterator[dict[str, Any]]:
    for score in PER_ITEM:
        files = [
            tuple(setting / name / f"seed{seed}" / score.file for name in (method, base)) for seed in seeds
        ]
        files = [both for both in files if all(file.is_file() for file in both)]
        of_method, of_base = (_mean([score.read(both[side]) for both in files]) for side in (0, 1))
        if of_method.keys() & of_base.keys():
            found = paired_difference(of_method, of_base)
            yield _row(score.column, method, base, *found, len(files), "paired")


def _unpaired(cells: Cells, method: str, base: str, seeds: list[int]) -> Iterator[dict[str, Any]]:
    shared = [seed for seed in seeds_of(cells, method, seeds) if seed in seeds_of(cells, base, seeds)]
    table = main_table(cells, [method, base], shared).set_index("method")
    for column in SUMMARISED:
        difference = table[column][method] - table[column][base]
        half = 1.96 * math.hypot(*table[f"{column}_se_items"])
        if not math.isnan(difference + half):
            found = (difference, difference - half, difference + half, None)
            yield _row(column, method, base, *found, len(shared), "unpaired")


def _row(
    benchmark: str,
    method: str,
    base: str,
    difference: float,
    low: float,
    high: float,
    items: int | None,
    seeds: int,
    interval: str,
) -> dict[str, Any]:
    values = (benchmark, method, base, difference, low, high, low > 0 or high < 0, items, seeds, interval)
    return dict(zip(COLUMNS, values, strict=True))


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
