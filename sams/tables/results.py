"""Results as data frames: every metrics.json and every metric log below a results folder.

The files of a study are in `<root>/<study>/<setting>/<method>/seed<k>/`, under the names of METRICS.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sams.runtime.errors import UserError
from sams.runtime.mappings import numbers
from sams.tables.scores import METRICS

if TYPE_CHECKING:
    import pandas as pd


class Cell(NamedTuple):
    """One method, seed and benchmark (`train` for the figures of the training job)."""

    method: str
    seed: int
    benchmark: str


Cells = Mapping[Cell, Mapping[str, Any]]
"""Contents of metrics files."""


def load(results: str | Path = "results") -> "pd.DataFrame":
    """All figures of all studies, for notebooks: one row for each study, setting, method and seed.

    Returns:
        Columns study, setting, method, seed, then every figure as `<benchmark>/<key>`, sorted:
        `train/test_accuracy`, `alpaca_eval/win_rate`, `mt_bench/categories/math`. Benchmark `train` holds the
        figures of the training job, method `scheduler` those of its pretraining. Figures that a run lacks are
        NaN; texts are left out.
    """
    import pandas as pd

    rows: dict[tuple[str, str, str, int], dict[str, float]] = {}
    for study in _folders(Path(results)):
        for setting in _folders(study):
            for cell, values in read_cells(setting).items():
                row = rows.setdefault((study.name, setting.name, cell.method, cell.seed), {})
                row |= {f"{cell.benchmark}/{key}": value for key, value in numbers(values).items()}
    keys = sorted({key for row in rows.values() for key in row})
    return pd.DataFrame(
        [(*run, *(row.get(key) for key in keys)) for run, row in rows.items()],
        columns=["study", "setting", "method", "seed", *keys],
    ).astype(dict.fromkeys(keys, float))


def read_cells(setting: Path) -> dict[Cell, dict[str, Any]]:
    """Return the contents of the existing metrics files below one setting's folder.

    Raises:
        UserError: a file is no JSON object.
    """
    return {
        Cell(method, seed, benchmark): values
        for method, seed, folder in _runs(setting)
        for benchmark, values in read_run(folder).items()
    }


def read_run(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the contents of the existing metrics files of one method and seed, by benchmark.

    Raises:
        UserError: a file is no JSON object.
    """
    return {
        benchmark: _read_object(folder / name)
        for benchmark, name in METRICS.items()
        if (folder / name).is_file()
    }


def read_log(path: Path) -> "pd.DataFrame":
    """A metric log as a data frame with a row for each line; null becomes NaN.

    An incomplete last line, which a machine failure can leave, is skipped.
    """
    import pandas as pd

    records = []
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), start=1):
        if not line.endswith(b"\n"):
            break
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise UserError(f"not JSON ({error.msg})", where=f"{path}, row {number}") from None
    frame = pd.DataFrame(records, columns=None if records else ["step", "pairs_seen"])
    numeric: pd.DataFrame = frame.drop(columns="non_finite", errors="ignore").apply(pd.to_numeric)
    return numeric


def reports_of(setting: Path, stage: str) -> list[dict[str, Any]]:
    """Return the existing reports of stage `data` or `tokens`: one for the study, or one for each seed's own data."""
    folder = setting / stage
    files = [folder / "report.json", *sorted(folder.glob("seed*/report.json"))]
    return [_read_object(file) for file in files if file.is_file()]


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def _runs(setting: Path) -> Iterator[tuple[str, int, Path]]:
    for method in _folders(setting):
        for folder in _folders(method):
            if re.fullmatch(r"seed\d+", folder.name):
                yield method.name, int(folder.name.removeprefix("seed")), folder


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(
            f"not JSON ({error.msg}, line {error.lineno})",
            where=str(path),
            remedy="delete it and score again",
        ) from None
    if not isinstance(value, dict):
        raise UserError("a JSON object was expected", where=str(path), remedy="delete it and score again")
    return value
