"""Write the study's figures next to the paper's."""

from pathlib import Path

from snakemake.iocontainers import Snakemake

from sams.runtime.stage import script
from sams.study.study import Study
from sams.tables import captions, render
from sams.tables.paper_table import paper_table
from sams.tables.results import read_cells

snakemake: Snakemake


def main() -> None:
    study, results = Study.model_validate_json(snakemake.params.study), Path(snakemake.params.results)
    cells = read_cells(results)
    table = paper_table(study, results, cells)
    readable, reasons = render.readable_paper(table)
    notes = reasons + captions.paper_notes(study, cells, table) + captions.data_notes(results)
    render.write(dict(snakemake.output.items()), table, captions.paper_title(study), readable, notes)


script(main, snakemake.log[0])
