"""Write the main table of a study from its metrics files."""

import shutil
from pathlib import Path

from snakemake.iocontainers import Snakemake

from sams.runtime.stage import script
from sams.study.study import Study
from sams.tables import captions, render
from sams.tables.main_table import main_table
from sams.tables.results import read_cells

snakemake: Snakemake


def main() -> None:
    study, results = Study.model_validate_json(snakemake.params.study), Path(snakemake.params.results)
    cells = read_cells(results)
    table = main_table(cells, study.methods, study.seeds)
    notes = captions.main_notes(study, cells) + captions.data_notes(results)
    notes += captions.fallback_notes(results, study)
    readable = render.readable_main(table, len(study.seeds))
    files = dict(snakemake.output.items())
    if copy := files.pop("agreement", None):
        shutil.copyfile(str(study.benchmarks.judge.agreement), copy)
    render.write(files, table, captions.main_title(study), readable, notes)


script(main, snakemake.log[0])
