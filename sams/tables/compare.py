"""Comparison of runs: settings that differ, figures, differences with intervals, curves.

A run is a folder `results/<study>/<setting>/<method>/seed<k>`, the folder of a method (all its seeds, as repeats), or
the id of an MLflow run. Names are those in MLflow: dotted keys for settings of a recipe, metrics as in JSON files.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from sams.runtime.errors import UserError
from sams.runtime.files import read_json, whole_file
from sams.runtime.mappings import flatten, numbers
from sams.runtime.terminal import Readable, print_table
from sams.tables import comparisons, render
from sams.tables.captions import repeats_note
from sams.tables.comparisons import RESAMPLES, Side
from sams.tables.figures import learning_curves
from sams.tables.panels import save_as
from sams.tables.render import number
from sams.tables.results import Cell, read_log, read_run
from sams.tables.scores import score_named
from sams.tracking.log import run_id

if TYPE_CHECKING:
    import pandas as pd

RUN_ID = "mlflow_run_id"
LOG = "train.jsonl"
ABSENT = "–"


class Compared(NamedTuple):
    """A comparison: settings and figures with a column for each run, and differences from the first run."""

    settings: Readable
    figures: Readable
    differences: "pd.DataFrame"
    notes: list[str]


def sides(runs: Sequence[str], results: Path) -> list[Side]:
    """Return the requested runs, under distinct names.

    Raises:
        UserError: fewer than two runs are given, or one does not exist.
    """
    if len(runs) < 2:
        raise UserError("at least two runs are required", where="RUN")
    folders_of = [_folders(run, results) for run in runs]
    return [
        Side(name, folders, {
            Cell(name, seed, benchmark): values
            for seed, folder in folders.items()
            for benchmark, values in read_run(folder).items()
        })
        for name, folders in zip(_names(folders_of), folders_of, strict=True)
    ]  # fmt: skip


def compare(runs: Sequence[Side]) -> Compared:
    """Compare runs; differences are from the first run.

    Items are paired if both sides have them. Two sides of one seed each are paired, even if the seeds differ; sides
    of several seeds are paired by seed.
    """
    base, *others = [_renumbered(side) if len(side.folders) == 1 else side for side in runs]
    rows, notes = [], []
    for side in others:
        for row in comparisons.differences(side, base):
            if reason := _not_comparable(side, base, row["benchmark"]):
                notes.append(
                    f"{row['benchmark']} of {side.name} and {base.name} are not comparable: {reason}."
                )
            else:
                rows.append(row)
    table = comparisons.as_table(rows)
    notes = list(dict.fromkeys(notes))
    if len(table):
        notes.append(
            "difference is from the first run, with its 95 % interval; * marks intervals that exclude 0. paired: "
            f"bootstrap over the same instructions, questions or test pairs, {RESAMPLES} resamples; unpaired: from "
            "both standard errors over items. They cover the sampling of items, not the variation of training runs."
        )
    repeated = table.loc[table["interval"] == "over seeds", "n_seeds"]
    notes += [repeats_note(int(count)) for count in sorted(set(repeated))]
    return Compared(_settings(runs), _figures(runs), table, notes)


def show(compared: Compared) -> None:
    """Print a comparison."""
    if compared.settings.rows:
        print_table("Settings that differ", compared.settings)
    else:
        print("No setting differs.")
    print()
    print_table("Figures", compared.figures)
    print()
    if len(compared.differences):
        print_table("Differences", render.readable_comparisons(compared.differences), compared.notes)
    else:
        print("\n".join(["No scores in common.", *compared.notes]))


def write_curves(runs: Sequence[Side], out: Path) -> None:
    """Write the metric logs of runs: all values as `.csv`, or learning curves as `.svg` or `.png`.

    Raises:
        UserError: another suffix, or no run has a log.
    """
    import pandas as pd

    logs = {
        side.name: {
            seed: read_log(folder / LOG) for seed, folder in side.folders.items() if (folder / LOG).is_file()
        }
        for side in runs
    }
    if not any(logs.values()):
        raise UserError(f"no run has a metric log ({LOG})", where="RUN")
    if out.suffix == ".csv":
        long = [
            frame.melt(["step", "pairs_seen"], var_name="metric").dropna().assign(run=name, seed=seed)
            for name, frames in logs.items()
            for seed, frame in frames.items()
        ]
        columns = ["run", "seed", "step", "pairs_seen", "metric", "value"]
        with whole_file(out) as part:
            pd.concat(long)[columns].to_csv(part, index=False)
    elif out.suffix in (".svg", ".png"):
        drawn = {name: list(frames.values()) for name, frames in logs.items() if frames}
        save_as(learning_curves(drawn), out)
    else:
        raise UserError("expected a name that ends in .csv, .svg or .png", where=str(out))


# --- finding runs ---------------------------------------------------------------------------------


def _folders(run: str, results: Path) -> dict[int, Path]:
    """Return the folders of a run by seed."""
    path = Path(run)
    if not path.is_dir() and re.fullmatch(r"[0-9a-f]{32}", run):
        path = _of_mlflow(run, results)
    if not path.is_dir():
        raise UserError(
            "no such folder",
            where=run,
            remedy="give results/<study>/<setting>/<method>/seed<k>, the folder of a method, or an MLflow run id",
        )
    path = path.resolve()
    seeds = sorted(path.glob("seed*"), key=lambda folder: int(folder.name.removeprefix("seed")))
    if re.fullmatch(r"seed\d+", path.name):
        seeds = [path]
    if not seeds:
        raise UserError("not the folder of a method or seed", where=run, remedy="it has no seed<k>")
    return {int(folder.name.removeprefix("seed")): folder for folder in seeds}


def _of_mlflow(run: str, results: Path) -> Path:
    """Return the folder of a training or scoring run, found by the run id next to its result."""
    for pattern in (f"*/*/*/seed*/{RUN_ID}", f"*/*/*/seed*/*/{RUN_ID}"):
        for sidecar in results.glob(pattern):
            if run_id(sidecar) == run:
                folder = sidecar.parent
                return folder if folder.name.startswith("seed") else folder.parent
    raise UserError(
        "no result belongs to this MLflow run", where=run, remedy=f"give --results; searched {results}"
    )


def _names(runs: Sequence[dict[int, Path]]) -> list[str]:
    """Return the shortest ends of the runs' paths that are distinct."""
    paths = [folders[min(folders)] if len(folders) == 1 else folders[min(folders)].parent for folders in runs]
    for count in range(1, 6):
        names = [
            "/".join(path.parts[-count - (len(folders) == 1) :])
            for path, folders in zip(paths, runs, strict=True)
        ]
        if len(set(names)) == len(names):
            return names
    raise UserError("a run is given twice", where="RUN")


def _renumbered(side: Side) -> Side:
    """Number the seed of a side with one seed as 0, so that it pairs with another seed."""
    [folder] = side.folders.values()
    return Side(
        side.name, {0: folder}, {cell._replace(seed=0): values for cell, values in side.cells.items()}
    )


# --- tables ---------------------------------------------------------------------------------------


def _settings(runs: Sequence[Side]) -> Readable:
    """Return the table of settings, code, upstream, libraries and commit in which runs differ."""
    described = [_described(side) for side in runs]
    keys = sorted({key for settings in described for key in settings})
    rows: list[list[tuple[str, ...]]] = [
        [(key,), *((settings.get(key, ABSENT),) for settings in described)]
        for key in keys
        if len({settings.get(key) for settings in described}) > 1
    ]
    return Readable(["setting", *(side.name for side in runs)], rows)


def _described(side: Side) -> dict[str, str]:
    """Return flattened settings of a run, and what its job chose (`tuning`: layout, kernels).

    Of several seeds those of the first, without seed-dependent settings.
    """
    folder = next(iter(side.folders.values()))
    described: dict[str, str] = {}
    if (folder / "recipe.json").is_file():
        record = read_json(folder / "recipe.json")
        others = {
            "tuning": record.get("tuning") or {},
            "code": record["code"],
            "upstream": record["upstream"],
        }
        described |= flatten({**record["recipe"], **others})
    if (folder / "environment.json").is_file():
        described |= flatten(read_json(folder / "environment.json"))
    if len(side.folders) > 1:
        of_seed = ("upstream.model", "upstream.reference", "upstream.scheduler", "upstream.crossfit")
        return {
            key: value for key, value in described.items() if key != "seed" and not key.startswith(of_seed)
        }
    return described


def _figures(runs: Sequence[Side]) -> Readable:
    """Return the table of all figures; of several seeds the mean over the seeds that have the figure."""
    columns = []
    for side in runs:
        values: dict[str, list[float]] = {}
        for cell, metrics in side.cells.items():
            for key, value in numbers(
                {k: v for k, v in metrics.items() if k not in ("recipe", "judge_calls")}
            ).items():
                values.setdefault(f"{cell.benchmark}/{key}", []).append(value)
        columns.append({key: _figure(sum(seeds) / len(seeds)) for key, seeds in values.items()})
    keys = sorted({key for column in columns for key in column})
    rows: list[list[tuple[str, ...]]] = [
        [(key,), *((column.get(key, ABSENT),) for column in columns)] for key in keys
    ]
    return Readable(["figure", *(side.name for side in runs)], rows)


def _figure(value: float) -> str:
    """Return a figure with four significant digits, and without an exponent from 1,000 on."""
    return number(value, 0) if abs(value) >= 1000 else f"{value:.4g}".replace("-", "−", 1)


def _not_comparable(side: Side, base: Side, column: str) -> str:
    """Return the reason why two sides' scores are not comparable; empty when they are."""
    benchmark = score_named(column).benchmark
    if benchmark == "train":
        tests = [_described(one).get("upstream.tokens") for one in (side, base)]
        return "" if tests[0] == tests[1] else "the test pairs come from other data or another tokenizer"
    judges = [
        {str(values.get("judge")) for cell, values in one.cells.items() if cell.benchmark == benchmark}
        for one in (side, base)
    ]
    return "" if judges[0] == judges[1] else "judged by different judges"
