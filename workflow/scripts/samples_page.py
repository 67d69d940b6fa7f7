"""Write the page of all methods' answers to test prompts."""

from pathlib import Path

from snakemake.iocontainers import Snakemake

from sams.runtime.files import whole_file
from sams.runtime.stage import script
from sams.study.study import Study
from sams.tables.samples import page

snakemake: Snakemake


def main() -> None:
    study, results = Study.model_validate_json(snakemake.params.study), Path(snakemake.params.results)
    with whole_file(Path(snakemake.output.html)) as part:
        part.write_text(page(study, results, Path(snakemake.input.data).parent), encoding="utf-8")


script(main, snakemake.log[0])
