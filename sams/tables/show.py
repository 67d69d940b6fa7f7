"""A study's main table and comparisons in the terminal, for `sams show`."""

from pathlib import Path

from sams.runtime.errors import UserError
from sams.study.study import Study
from sams.tables import captions, render
from sams.tables.comparisons import RESAMPLES, comparisons
from sams.tables.main_table import main_table
from sams.tables.results import read_cells


def show(results_root: Path, study: Study) -> None:
    """Print a study's main table and the differences between its methods, from the files that exist.

    Raises:
        UserError: no results exist.
    """
    setting = results_root / study.study / study.setting
    cells = read_cells(setting)
    table = main_table(cells, study.methods, study.seeds)
    if not table["n_seeds"].any():
        raise UserError("no results yet", where=str(setting), remedy="run the study: snakemake --cores all")
    notes = captions.main_notes(study, cells) + captions.data_notes(setting)
    notes += captions.fallback_notes(setting, study)
    render.terminal(captions.main_title(study), render.readable_main(table), notes)
    differences = comparisons(setting, cells, study.methods, study.seeds)
    if len(differences):
        readable = render.readable_comparisons(differences)
        notes = captions.comparison_notes(study, RESAMPLES)
        render.terminal(captions.comparison_title(study), readable, notes)
