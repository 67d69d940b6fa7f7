"""The study's figures next to the paper's: reported, reproduced, difference, and the reason for each gap.

A reported figure is shown only where it is comparable with the study's: same kind of judge, a pretrained model, real
data. Elsewhere it is left out, with the reason.
"""

import math
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sams.judge.known import comparable
from sams.runtime.errors import UserError
from sams.study.reported import Reported, read_reported
from sams.study.settings import Paper
from sams.study.study import BASE_METHOD, Study
from sams.tables.main_table import main_table, seeds_of
from sams.tables.results import Cell, Cells
from sams.tables.scores import SCORES
from sams.tracking.log import run_id

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = [
    "method",
    "row",
    "score",
    "reported",
    "reproduced",
    "se_items",
    "se_seeds",
    "n_seeds",
    "difference",
    "judge",
    "source",
    "run_ids",
    "reported_missing",
    "reproduced_missing",
    "difference_missing",
]
HOURS = "hours"
BENCHMARK_OF = {score.column: score.benchmark for score in SCORES} | {HOURS: "train"}
RUN_ID = "mlflow_run_id"


class Reproduced(NamedTuple):
    """A score of the study: its mean over seeds, both standard errors, the number of seeds."""

    value: float | None
    se_items: float | None
    se_seeds: float | None
    n_seeds: int


def paper_table(study: Study, setting: Path, cells: Cells) -> "pd.DataFrame":
    """Figures of the paper's table and of the study, as a table of COLUMNS with a row for each method and score.

    The study's methods come first, in its order; then the paper's rows that no method reproduces.

    Args:
        study: a study with `paper`.
        setting: folder of the study's setting, for the ids of its runs.
        cells: contents of its metrics files.
    """
    import pandas as pd

    paper = paper_of(study)
    reported = read_reported(paper.table, paper.setting)
    rows = []
    for method, row in _rows(study, paper, reported):
        reproduced = reproduce(cells, method, study.seeds) if method else {}
        for score in reported.columns:
            rows.append(_row(study, setting, cells, reported, method, row, score, reproduced.get(score)))
    return pd.DataFrame(rows, columns=COLUMNS).astype({"n_seeds": "Int64"})


def paper_of(study: Study) -> Paper:
    """Return the table of the paper that a study reproduces.

    Raises:
        UserError: the study reproduces none.
    """
    if study.paper is None:
        raise UserError("the study reproduces no table of the paper", where="paper", remedy="set `paper`")
    return study.paper


def reproduce(cells: Cells, method: str, seeds: list[int]) -> dict[str, Reproduced]:
    """A method's scores as in the main table, and its hours of training, preparation included."""
    present = seeds_of(cells, method, seeds)
    [figures] = main_table(cells, [method], seeds).astype(object).to_dict("records")
    reproduced = {
        score.column: Reproduced(
            _known(figures[score.column]),
            _known(figures[f"{score.column}_se_items"]),
            _known(figures[f"{score.column}_se_seeds"]),
            len(present),
        )
        for score in SCORES
    }
    trained = [cells.get(Cell(method, seed, "train"), {}) for seed in present]
    if trained and all("train_seconds" in run for run in trained):
        hours = [(run["train_seconds"] + run.get("preparation_seconds", 0.0)) / 3600 for run in trained]
        spread = statistics.stdev(hours) / math.sqrt(len(hours)) if len(hours) > 1 else None
        reproduced[HOURS] = Reproduced(statistics.fmean(hours), None, spread, len(hours))
    return reproduced


def not_comparable(study: Study, score: str, judges: set[str]) -> str:
    """Return the reason why a reported score is not comparable with the study's; empty when it is comparable.

    Args:
        study: the study.
        score: a column of the paper's table.
        judges: judges of the study's scores; empty before any score exists.
    """
    if study.data.world is not None:
        return "not comparable: synthetic data"
    if study.model.path is None:
        return "not comparable: a model built from scratch"
    accepted = comparable(score)
    if not accepted:
        return ""
    judge = study.benchmarks.judge
    planned = {"the local judge"} if judge.kind == "local" else {judge.model} if judge.model else set()
    others = sorted(str(name) for name in (judges or planned) if name not in accepted)
    return f"not comparable: judged by {' and '.join(others)}" if others else ""


def _rows(study: Study, paper: Paper, reported: Reported) -> list[tuple[str | None, str]]:
    rows: list[tuple[str | None, str]] = [
        (method, row) for method in study.methods for row in paper.rows_of(method)
    ]
    reproduced = {row for _, row in rows}
    return rows + [(None, row) for row in reported.rows if row not in reproduced]


def _row(
    study: Study,
    setting: Path,
    cells: Cells,
    reported: Reported,
    method: str | None,
    row: str,
    score: str,
    reproduced: Reproduced | None,
) -> dict[str, Any]:
    benchmark = BENCHMARK_OF[score]
    figures = {
        seed: cells[cell]
        for seed in study.seeds
        if method and (cell := Cell(method, seed, benchmark)) in cells
    }
    judges = {str(values["judge"]) for values in figures.values() if values.get("judge")}
    figure = reported.rows.get(row, {}).get(score)
    obstacle = not_comparable(study, score, judges)
    if row not in reported.rows:
        reported_missing = f"not in the paper's {reported.title}"
    elif figure is None:
        reported_missing = "not reported"
    else:
        reported_missing = obstacle
    value = reproduced.value if reproduced else None
    reproduced_missing = "" if value is not None else _not_reproduced(study, cells, method, score, figures)
    shown = figure if not reported_missing else None
    difference_missing = ""
    if shown and value is not None and score == HOURS:
        difference_missing = "hours of other hardware"
    compared = shown is not None and value is not None and not difference_missing
    return {
        "method": method,
        "row": row,
        "score": score,
        "reported": shown.value if shown else None,
        "reproduced": value,
        "se_items": reproduced.se_items if reproduced else None,
        "se_seeds": reproduced.se_seeds if reproduced else None,
        "n_seeds": reproduced.n_seeds if reproduced and value is not None else 0,
        "difference": value - shown.value if compared and shown and value is not None else None,
        "judge": " and ".join(sorted(judges)),
        "source": shown.source if shown else "",
        "run_ids": _run_ids(setting, method, list(figures), benchmark),
        "reported_missing": reported_missing,
        "reproduced_missing": reproduced_missing,
        "difference_missing": difference_missing,
    }


def _not_reproduced(
    study: Study, cells: Cells, method: str | None, score: str, figures: dict[int, Any]
) -> str:
    """Return the reason why a score of the study is missing."""
    if method is None:
        return "no method of this study"
    benchmark = BENCHMARK_OF[score]
    if benchmark != "train" and getattr(study.benchmarks, benchmark) is None:
        return f"{benchmark} is left out by this study"
    if (
        method == BASE_METHOD
        and benchmark == "train"
        and (score != HOURS or method not in study.trained_methods)
    ):
        return "sft is the reference" if score != HOURS else "sft is the model as it is"
    obstacles = sorted(
        {str(values["lc_unavailable"]) for values in figures.values() if values.get("lc_unavailable")}
    )
    if score == "length_controlled_winrate" and obstacles:
        return f"unavailable: {'; '.join(obstacles)}"
    # Only seeds with some figure are required: they are the seeds of the row's other means.
    training = "train_sft" if method == BASE_METHOD else "train_preference"
    rule = training if benchmark == "train" else f"score_{benchmark}"
    required = seeds_of(cells, method, study.seeds) or study.seeds
    absent = [seed for seed in required if seed not in figures] or required
    return f"not run: {rule}, seed {', '.join(map(str, absent))}"


def _run_ids(setting: Path, method: str | None, seeds: list[int], benchmark: str) -> str:
    """MLflow run ids of the figures, as `seed<k>:<id>`; a result without a run has `untracked`."""
    ids = []
    for seed in seeds:
        folder = setting / str(method) / f"seed{seed}"
        sidecar = folder / RUN_ID if benchmark == "train" else folder / benchmark / RUN_ID
        ids.append(f"seed{seed}:{run_id(sidecar) or 'untracked'}")
    return " ".join(ids)


def _known(value: Any) -> float | None:
    return None if value is None or math.isnan(value) else float(value)
