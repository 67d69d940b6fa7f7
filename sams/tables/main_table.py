"""The main table: a row per method, each score with its two standard errors.

* A score is the mean over the seeds.
* `<score>_se_items` is the standard error over items (instructions, questions, test pairs) of one seed's
  score, as the root mean square over the seeds. All seeds are scored on the same items, so more seeds do not
  reduce this error, and it is not divided by the root of their number.
* `<score>_se_seeds` is the standard deviation over seeds (n - 1) divided by the root of their number: the
  uncertainty of the mean over training runs. It is empty with one seed.

A cell is filled only when every seed of its row has the figure; a missing figure is an empty cell.
"""

import math
import statistics
from typing import TYPE_CHECKING, Any

from sams.scoring.benchmark import Score
from sams.tables.results import Cell, Cells
from sams.tables.scores import SCORES, scores_in

if TYPE_CHECKING:
    import pandas as pd

COSTS = ["train_seconds", "peak_memory_mb"]


def columns_of(scores: list[Score]) -> list[str]:
    """Return the columns of a main table with these scores."""
    errors = ("", "_se_items", "_se_seeds")
    return ["method", "n_seeds", *(f"{score.column}{error}" for score in scores for error in errors), *COSTS]


COLUMNS = columns_of(SCORES)


def main_table(cells: Cells, methods: list[str], seeds: list[int]) -> "pd.DataFrame":
    """Return the main table, of COLUMNS and those that further benchmarks add; an empty cell is NaN.

    Args:
        cells: contents of the metrics files, from `sams.tables.results.read_cells` or from MLflow.
        methods: rows, in this order. A method without any file keeps its row, with `n_seeds` 0.
        seeds: seeds to average over; `n_seeds` is the number of them that have any file.
    """
    import pandas as pd

    rows = []
    scores = scores_in(cells)
    for method in methods:
        present = seeds_of(cells, method, seeds)
        row: dict[str, Any] = {"method": method, "n_seeds": len(present)}
        for score in scores:
            values = _values(cells, method, present, score.benchmark, score.key)
            errors = _values(cells, method, present, score.benchmark, score.se_key)
            row[score.column] = statistics.fmean(values) if values else None
            if values and errors:
                row[f"{score.column}_se_items"] = math.sqrt(statistics.fmean(e * e for e in errors))
            if len(values) > 1:
                row[f"{score.column}_se_seeds"] = statistics.stdev(values) / math.sqrt(len(values))
        for key in COSTS:
            values = _values(cells, method, present, "train", key)
            row[key] = statistics.fmean(values) if values else None
        rows.append(row)
    table = pd.DataFrame(rows, columns=columns_of(scores))
    numeric = list(table.columns[2:])
    return table.astype(dict.fromkeys(numeric, float))


def seeds_of(cells: Cells, method: str, seeds: list[int]) -> list[int]:
    """Return the seeds for which a method has any figure."""
    present = {cell.seed for cell in cells if cell.method == method}
    return [seed for seed in seeds if seed in present]


def _values(cells: Cells, method: str, seeds: list[int], benchmark: str, key: str) -> list[float]:
    """Return the values of a figure for all seeds; an empty list when one seed lacks it."""
    values = [cells.get(Cell(method, seed, benchmark), {}).get(key) for seed in seeds]
    return [float(value) for value in values if value is not None] if None not in values else []
