"""Write the table of the methods that were chosen on validation pairs."""

from pathlib import Path

from snakemake.iocontainers import Snakemake

from sams.runtime.files import read_json
from sams.runtime.stage import script
from sams.study.study import Study
from sams.tables import render
from sams.tables.chosen_table import chosen_table, notes, readable, title

snakemake: Snakemake


def main() -> None:
    study = Study.model_validate_json(snakemake.params.study)
    choice = read_json(Path(snakemake.input.choice))
    table = chosen_table(study, choice, [read_json(Path(file)) for file in snakemake.input.figures])
    outputs = dict(snakemake.output.items())
    render.write(outputs, table, title(study), readable(table), notes(study, choice))


script(main, snakemake.log[0])
