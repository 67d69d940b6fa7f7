"""Write the page of two methods' answers side by side."""

from pathlib import Path

from snakemake.iocontainers import Snakemake

from sams.runtime.files import whole_file
from sams.runtime.stage import script
from sams.study.study import Study
from sams.tables.side_by_side import page

snakemake: Snakemake


def main() -> None:
    study, results = Study.model_validate_json(snakemake.params.study), Path(snakemake.params.results)
    text = page(study, results, snakemake.wildcards.method, snakemake.wildcards.base)
    with whole_file(Path(snakemake.output.html)) as part:
        part.write_text(text, encoding="utf-8")


script(main, snakemake.log[0])
