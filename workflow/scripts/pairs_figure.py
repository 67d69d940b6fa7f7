"""Draw the margins of the training pairs of all methods."""

from pathlib import Path

from snakemake.iocontainers import Snakemake

from sams.runtime.stage import script
from sams.study.study import Study
from sams.tables.pairs import read_pairs
from sams.tables.pairs_figure import READ, pair_margins
from sams.tables.panels import save

snakemake: Snakemake


def main() -> None:
    study = Study.model_validate_json(snakemake.params.study)
    results = Path(snakemake.params.results)
    records = {
        method: [read_pairs(results / method / f"seed{seed}", READ, split="train") for seed in study.seeds]
        for method in study.preference_methods
    }
    figure = pair_margins(records)
    if study.rehearse:
        figure.suptitle("REHEARSAL: tiny model, synthetic data", color="#D55E00")
    save(figure, Path(snakemake.output.svg).with_suffix(""))


script(main, snakemake.log[0])
