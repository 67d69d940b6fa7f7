"""The study's figures beside those of the paper: reported, reproduced, difference; every gap with its reason.

A reported figure stands beside ours only where they measure the same: scored by a judge that the paper's may be
compared with, on a model that was not built from scratch and on real data. Else it is left out, and told so.
"""

import math
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from sams.runtime.errors import UserError
from sams.runtime.files import whole_file
from sams.runtime.stage import read_recipe, run
from sams.study.reported import Reported, read_reported
from sams.study.settings import Paper
from sams.study.study import BASE_METHOD, Study
from sams.tables.main_table import SCORES, Cells, main_table, seeds_of
from sams.tables.results import Cell, read_cells
from sams.tracking.mirror import run_id

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
    """A score of ours: its mean over seeds, both standard errors, the number of seeds."""

    value: float | None
    se_items: float | None
    se_seeds: float | None
    n_seeds: int


def paper_table(study: Study, setting: Path, cells: Cells) -> "pd.DataFrame":
    """Figures of the paper's table and of the study, of COLUMNS: a row for each method and score.

    Methods come in the study's order, then rows of the paper that no method reproduces.

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
        ours = reproduce(cells, method, study.seeds) if method else {}
        for score in reported.columns:
            rows.append(_row(study, setting, cells, reported, method, row, score, ours.get(score)))
    return pd.DataFrame(rows, columns=COLUMNS).astype({"n_seeds": "Int64"})


def paper_of(study: Study) -> Paper:
    """The table that a study reproduces.

    Raises:
        UserError: it reproduces none.
    """
    if study.paper is None:
        raise UserError("the study reproduces no table of the paper", where="paper", remedy="set `paper`")
    return study.paper


def reproduce(cells: Cells, method: str, seeds: list[int]) -> dict[str, Reproduced]:
    """A method's scores as in the main table, and its hours: training and what prepared it."""
    present = seeds_of(cells, method, seeds)
    [found] = main_table(cells, [method], seeds).astype(object).to_dict("records")
    ours = {
        score.column: Reproduced(
            _known(found[score.column]),
            _known(found[f"{score.column}_se_items"]),
            _known(found[f"{score.column}_se_seeds"]),
            len(present),
        )
        for score in SCORES
    }
    trained = [cells.get(Cell(method, seed, "train"), {}) for seed in present]
    if trained and all("train_seconds" in figures for figures in trained):
        hours = [
            (figures["train_seconds"] + figures.get("preparation_seconds", 0.0)) / 3600 for figures in trained
        ]
        spread = statistics.stdev(hours) / math.sqrt(len(hours)) if len(hours) > 1 else None
        ours[HOURS] = Reproduced(statistics.fmean(hours), None, spread, len(hours))
    return ours


def not_comparable(study: Study, reported: Reported, score: str, judges: set[str]) -> str:
    """Why a reported score must not stand beside ours; empty when it may.

    Args:
        study: the study.
        reported: the paper's table.
        score: one of its columns.
        judges: who gave our scores; empty when none is there yet.
    """
    if study.data.world is not None:
        return "not comparable: synthetic data"
    if study.model.path is None:
        return "not comparable: a model built from scratch"
    accepted = reported.judges.get(score)
    if accepted is None:
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
    ours: Reproduced | None,
) -> dict[str, Any]:
    benchmark = BENCHMARK_OF[score]
    figures = {
        seed: cells[cell]
        for seed in study.seeds
        if method and (cell := Cell(method, seed, benchmark)) in cells
    }
    judges = {str(found["judge"]) for found in figures.values() if found.get("judge")}
    theirs = reported.rows.get(row, {}).get(score)
    foreign = not_comparable(study, reported, score, judges)
    if row not in reported.rows:
        reported_missing = f"not in the paper's {reported.title}"
    elif theirs is None:
        reported_missing = "not reported"
    else:
        reported_missing = foreign
    value = ours.value if ours else None
    reproduced_missing = "" if value is not None else _not_reproduced(study, cells, method, score, figures)
    shown = theirs if not reported_missing else None
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
        "se_items": ours.se_items if ours else None,
        "se_seeds": ours.se_seeds if ours else None,
        "n_seeds": ours.n_seeds if ours and value is not None else 0,
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
    """Why a score of ours is missing."""
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
        {str(found["lc_unavailable"]) for found in figures.values() if found.get("lc_unavailable")}
    )
    if score == "length_controlled_winrate" and obstacles:
        return f"unavailable: {'; '.join(obstacles)}"
    # Among the seeds of which there is anything: a mean over fewer would pass for one over all.
    training = "train_sft" if method == BASE_METHOD else "train_preference"
    rule = training if benchmark == "train" else f"score_{benchmark}"
    wanted = seeds_of(cells, method, study.seeds) or study.seeds
    absent = [seed for seed in wanted if seed not in figures] or wanted
    return f"not run: {rule}, seed {', '.join(map(str, absent))}"


def _run_ids(setting: Path, method: str | None, seeds: list[int], benchmark: str) -> str:
    """MLflow runs of the figures, seed by seed; a run without one is named by its folder alone."""
    found = []
    for seed in seeds:
        folder = setting / str(method) / f"seed{seed}"
        sidecar = folder / RUN_ID if benchmark == "train" else folder / benchmark / RUN_ID
        found.append(f"seed{seed}:{run_id(sidecar) or 'untracked'}")
    return " ".join(found)


def _known(value: Any) -> float | None:
    return None if value is None or math.isnan(value) else float(value)


def main(
    study_config: Annotated[str, typer.Option(help="Study, as JSON or a JSON file.")],
    results: Annotated[Path, typer.Option(help="Folder of the study's setting: results/<study>/<setting>.")],
    out_csv: Annotated[Path, typer.Option(help="Every figure at full precision, every reason.")],
    out_md: Annotated[Path, typer.Option(help="The table for reading, as Markdown.")],
    out_tex: Annotated[Path, typer.Option(help="The same for LaTeX, with booktabs.")],
    out_html: Annotated[Path, typer.Option(help="The same as a page of its own.")],
) -> None:
    """Write the study's figures beside the paper's from its metrics files."""
    from sams.tables import captions, render

    study = read_recipe(study_config, Study)
    cells = read_cells(results)
    table = paper_table(study, results, cells)
    with whole_file(out_csv) as part:
        table.to_csv(part, index=False)
    readable, reasons = render.readable_paper(table)
    notes = reasons + captions.paper_notes(study, cells, table) + captions.leak_notes(results)
    title = captions.paper_title(study)
    for path, form in ((out_md, render.markdown), (out_tex, render.latex), (out_html, render.html)):
        with whole_file(path) as part:
            part.write_text(form(title, readable, notes), encoding="utf-8")


if __name__ == "__main__":
    run(main)
