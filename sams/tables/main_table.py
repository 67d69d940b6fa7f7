"""The main table: a row per method, each score with its two standard errors.

* A score is the mean over the seeds.
* `<score>_se_items` is the standard error over items (instructions, questions, test pairs) of one seed's
  score, the root mean square of it over the seeds. All seeds are scored on the same items, so it does not
  shrink with more seeds, and it is not divided by their square root.
* `<score>_se_seeds` is the standard deviation over seeds (n - 1) divided by the root of their number: the
  uncertainty of the mean over training runs. It is empty with one seed.

A cell is filled only when every seed that counts has its value; what is missing is empty.
"""

import math
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from sams.runtime.errors import UserError
from sams.runtime.files import whole_file
from sams.runtime.stage import read_recipe, run
from sams.study.study import Study
from sams.tables.results import Cell, read_cells

if TYPE_CHECKING:
    import pandas as pd

Cells = Mapping[Cell, Mapping[str, Any]]


class Score(NamedTuple):
    """A column of the main table: where its value and its standard error over items are."""

    column: str
    benchmark: str
    key: str
    se_key: str


SCORES = [
    Score("length_controlled_winrate", "alpaca_eval", "length_controlled_winrate", "lc_standard_error"),
    Score("win_rate", "alpaca_eval", "win_rate", "standard_error"),
    Score("mt_bench", "mt_bench", "average", "average_standard_error"),
    Score("test_accuracy", "train", "test_accuracy", "test_accuracy_se_items"),
    Score("chosen_reward", "train", "chosen_reward", "chosen_reward_se_items"),
    Score("chosen_logp", "train", "chosen_logp", "chosen_logp_se_items"),
]
COSTS = ["train_seconds", "peak_memory_mb"]
COLUMNS = [
    "method",
    "n_seeds",
    *(
        name
        for score in SCORES
        for name in (score.column, f"{score.column}_se_items", f"{score.column}_se_seeds")
    ),
    *COSTS,
]


def main_table(cells: Cells, methods: list[str], seeds: list[int]) -> "pd.DataFrame":
    """The main table, of COLUMNS; an empty cell is NaN.

    Args:
        cells: contents of the metrics files, from `sams.tables.results.read_cells` or from MLflow.
        methods: rows, in this order. A method without any file keeps its row, with `n_seeds` 0.
        seeds: seeds that count; `n_seeds` is how many of them have any file.
    """
    import pandas as pd

    rows = []
    for method in methods:
        present = seeds_of(cells, method, seeds)
        row: dict[str, Any] = {"method": method, "n_seeds": len(present)}
        for score in SCORES:
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
    table = pd.DataFrame(rows, columns=COLUMNS)
    numeric = COLUMNS[2:]
    return table.astype(dict.fromkeys(numeric, float))


def seeds_of(cells: Cells, method: str, seeds: list[int]) -> list[int]:
    """Those of the seeds of which a method has any figure."""
    found = {cell.seed for cell in cells if cell.method == method}
    return [seed for seed in seeds if seed in found]


def _values(cells: Cells, method: str, seeds: list[int], benchmark: str, key: str) -> list[float]:
    """A figure's value for each seed, or nothing when one of them lacks it."""
    values = [cells.get(Cell(method, seed, benchmark), {}).get(key) for seed in seeds]
    return [float(value) for value in values if value is not None] if None not in values else []


def show(results_root: Path, study: Study) -> None:
    """Print a study's main table and its differences between methods, from the files that are there.

    Raises:
        UserError: there are none yet.
    """
    from sams.tables import captions, render
    from sams.tables.comparisons import RESAMPLES, comparisons

    setting = results_root / study.study / study.setting
    cells = read_cells(setting)
    table = main_table(cells, study.methods, study.seeds)
    if not table["n_seeds"].any():
        raise UserError("no results yet", where=str(setting), remedy="run the study: snakemake --cores all")
    notes = captions.main_notes(study, cells) + captions.leak_notes(setting)
    render.terminal(captions.main_title(study), render.readable_main(table), notes)
    differences = comparisons(setting, cells, study.methods, study.seeds)
    if len(differences):
        readable = render.readable_comparisons(differences)
        notes = captions.comparison_notes(study, RESAMPLES)
        render.terminal(captions.comparison_title(study), readable, notes)


def main(
    study_config: Annotated[str, typer.Option(help="Study, as JSON or a JSON file.")],
    results: Annotated[Path, typer.Option(help="Folder of the study's setting: results/<study>/<setting>.")],
    out_csv: Annotated[Path, typer.Option(help="Every figure at full precision.")],
    out_md: Annotated[Path, typer.Option(help="The table for reading, as Markdown.")],
    out_tex: Annotated[Path, typer.Option(help="The same for LaTeX, with booktabs.")],
    out_html: Annotated[Path, typer.Option(help="The same as a page of its own.")],
) -> None:
    """Write the main table of a study from its metrics files."""
    from sams.tables import captions, render

    study = read_recipe(study_config, Study)
    cells = read_cells(results)
    table = main_table(cells, study.methods, study.seeds)
    title = captions.main_title(study)
    notes = captions.main_notes(study, cells) + captions.leak_notes(results)
    with whole_file(out_csv) as part:
        table.to_csv(part, index=False)
    readable = render.readable_main(table)
    for path, form in ((out_md, render.markdown), (out_tex, render.latex), (out_html, render.html)):
        with whole_file(path) as part:
            part.write_text(form(title, readable, notes), encoding="utf-8")


if __name__ == "__main__":
    run(main)
