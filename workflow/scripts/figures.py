"""Draw the figures of a study as SVG and PNG."""

from pathlib import Path

from snakemake.iocontainers import Snakemake

from sams.runtime.stage import script
from sams.study.study import Study
from sams.tables.figures import study_figures
from sams.tables.panels import save

snakemake: Snakemake


def main() -> None:
    study = Study.model_validate_json(snakemake.params.study)
    folder = Path(snakemake.output[0]).parent
    for name, figure in study_figures(study, Path(snakemake.params.results)).items():
        save(figure, folder / name)


script(main, snakemake.log[0])
