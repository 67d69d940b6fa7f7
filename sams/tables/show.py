"""A study's main table and comparisons in the terminal, for `sams show`."""

from pathlib import Path

from sams.runtime.errors import UserError
from sams.runtime.terminal import print_table
from sams.study.study import Study
from sams.tables import captions, render
from sams.tables.comparisons import RESAMPLES, comparisons
from sams.tables.main_table import main_table
from sams.tables.results import read_cells


def show(results_root: Path, study: Study, *, notes: bool = False, run: str = "sams run") -> None:
    """Print a study's main table and the differences between its methods, from the files that exist.

    Args:
        results_root: results folder.
        study: the study.
        notes: whether all notes are printed, or only those that one needs to read the tables.
        run: the command that runs the study.

    Raises:
        UserError: no results exist.
    """
    setting = results_root / study.study / study.setting
    cells = read_cells(setting)
    table = main_table(cells, study.methods, study.seeds)
    if not table["n_seeds"].any():
        raise UserError("no results yet", where=str(setting), remedy=f"run the study: {run}")
    found = captions.data_notes(setting) + captions.fallback_notes(setting, study)
    file = results_root / study.study / "tables" / "main.md"
    more = f"More on the scores: sams show --notes{f', or {file}' * file.is_file()}."
    described = captions.main_notes(study, cells) if notes else captions.first_notes(study, cells)
    described += found if notes else [*found, more]
    print_table(captions.main_title(study), render.readable_main(table, len(study.seeds)), described)
    differences = comparisons(setting, cells, study.methods, study.seeds)
    if len(differences):
        described = (
            captions.comparison_notes(study, RESAMPLES) if notes else captions.first_comparison_notes()
        )
        print()
        print_table(captions.comparison_title(study), render.readable_comparisons(differences), described)
