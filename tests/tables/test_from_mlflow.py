"""MLflow carries everything the main table needs."""

from pathlib import Path
from typing import Any

import pandas as pd

from sams.runtime.files import read_json
from sams.tables.from_mlflow import main_from_mlflow
from sams.tables.main_table import main_table
from sams.tables.results import METRICS, read_cells
from sams.tracking import log as tracking
from tests.tables.made import alpaca_eval, mt_bench, study, train, write
from tests.tracking.test_tracking import workplace

__all__ = ["workplace"]  # a fixture

STAGES = {
    "train": "train_preference",
    "alpaca_eval": "score_alpaca_eval",
    "mt_bench": "score_mt_bench",
}


def log(method: str, seed: int, benchmark: str, final: Any, status: tracking.Status = "FINISHED") -> None:
    """One run of a training or scoring job, as its stage logs it."""
    stage = "train_sft" if (method, benchmark) == ("sft", "train") else STAGES[benchmark]
    run = tracking.start(
        None,
        Path(f"sidecars/{method}{seed}{benchmark}"),
        study="tiny",
        setting="world",
        name=f"world/{method}/seed{seed}",
        stage=stage,
        recipe={},
        tags={},
    )
    run.finish(status, final=final)


def test_main_table_from_runs_equals_the_one_from_files(workplace: Path) -> None:
    settings = study(["sft", "dpo"], [0, 1])
    root = workplace / "results/tiny/world"
    for seed in (0, 1):
        write(
            root / f"sft/seed{seed}",
            {
                "train_metrics.json": {"train_seconds": 100 / 3, "peak_memory_mb": 400, "loss": 1.5},
                "alpaca_eval/metrics.json": alpaca_eval(48.1 + seed / 7, 1.0),
            },
        )
        write(
            root / f"dpo/seed{seed}",
            {
                "train_metrics.json": train(61.0 + seed / 3, 1.5),
                "alpaca_eval/metrics.json": alpaca_eval(
                    54.0, 1 / 3, length_controlled_winrate=None, lc_unavailable="no table"
                ),
                "mt_bench/metrics.json": mt_bench(5.5, 0.1 + seed / 9),
            },
        )
    log("dpo", 0, "train", train(1.0, 1.0))  # an earlier run of the same job
    for cell in read_cells(root):
        log(*cell, read_json(root / cell.method / f"seed{cell.seed}" / METRICS[cell.benchmark]))
    log("dpo", 1, "alpaca_eval", alpaca_eval(99.0, 9.0), status="FAILED")
    log("dpo", 7, "alpaca_eval", alpaca_eval(99.0, 9.0))  # a seed that the study does not count

    from_files = main_table(read_cells(root), settings.methods, settings.seeds)
    from_runs = main_from_mlflow(settings)
    pd.testing.assert_frame_equal(from_runs, from_files, check_exact=True)
    assert from_runs.to_csv(index=False) == from_files.to_csv(index=False)
    assert from_files["mt_bench"].notna().sum() == 1 and from_files["win_rate"].notna().all()


def test_study_without_runs_is_an_empty_table(workplace: Path) -> None:
    table = main_from_mlflow(study(["sft"], [0]))
    assert table["n_seeds"].tolist() == [0] and table["win_rate"].isna().all()
