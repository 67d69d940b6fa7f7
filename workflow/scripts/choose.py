"""Choose each method's run and length by the validation accuracies in the metric logs."""

from pathlib import Path

from snakemake.iocontainers import Snakemake

from sams.runtime.files import whole_file, write_json
from sams.runtime.stage import script
from sams.study.study import Study
from sams.tables.choose import chosen_of

snakemake: Snakemake


def main() -> None:
    study = Study.model_validate_json(snakemake.params.study)
    with whole_file(Path(snakemake.output.choice)) as part:
        write_json(part, chosen_of(study, Path(snakemake.params.results)))


script(main, snakemake.log[0])
