"""Write the page of a method's pairs."""

from pathlib import Path

from snakemake.iocontainers import Snakemake

from sams.runtime.files import whole_file
from sams.runtime.stage import script
from sams.study.study import Study
from sams.tables.pairs_page import page

snakemake: Snakemake


def main() -> None:
    study = Study.model_validate_json(snakemake.params.study)
    text = page(study, Path(snakemake.params.results), snakemake.wildcards.method)
    with whole_file(Path(snakemake.output.html)) as part:
        part.write_text(text, encoding="utf-8")


script(main, snakemake.log[0])
