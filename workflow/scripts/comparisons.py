"""Write the differences between a study's methods with their intervals."""

from pathlib import Path

from snakemake.iocontainers import Snakemake

from sams.runtime.stage import script
from sams.study.study import Study
from sams.tables import captions, render
from sams.tables.comparisons import RESAMPLES, comparisons
from sams.tables.results import read_cells

snakemake: Snakemake


def main() -> None:
    study, results = Study.model_validate_json(snakemake.params.study), Path(snakemake.params.results)
    table = comparisons(results, read_cells(results), study.methods, study.seeds)
    readable = render.readable_comparisons(table)
    notes = captions.comparison_notes(study, RESAMPLES)
    render.write(dict(snakemake.output.items()), table, captions.comparison_title(study), readable, notes)


script(main, snakemake.log[0])
