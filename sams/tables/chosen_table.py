"""The table of chosen methods: accuracies, kept flips and differences to the base, at equal data and compute."""

import math
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sams.runtime.files import read_json
from sams.study.recipes import require
from sams.study.study import BASE_METHOD, Study
from sams.tables.choose import LIMITS, point_name
from sams.tables.render import MISSING, Readable, number
from sams.tables.repeats import over_repeats

if TYPE_CHECKING:
    import pandas as pd

SCORES = ("sampled", "greedy", "test_accuracy")
KEPT = ("flipped_kept", "flipped_share")
LABELS = {"sampled": "sampled", "greedy": "greedy", "test_accuracy": "preference"}


def chosen_table(study: Study, choice: dict[str, Any], figures: list[dict[str, Any]]) -> "pd.DataFrame":
    """Return the accuracies of each method at its chosen points, with a row for each method and limit.

    A score has its mean, its standard error over seeds, and the difference to the base, paired by seed, with its
    95 % t interval and p values.

    Args:
        study: a study with `chosen`.
        choice: choice.json of stage `choose`.
        figures: figures.json of stage `assess` for each seed.
    """
    import pandas as pd

    chosen = require(study.chosen, "chosen")
    rows = []
    for limit in LIMITS:
        base = point_name(choice["methods"][chosen.base][limit])
        # Scripts get the study as canonical JSON, which sorts the keys of `runs`; `methods` keeps the study's order.
        ordered = sorted(chosen.runs, key=lambda method: study.methods.index(chosen.runs[method][0]))
        for method in [BASE_METHOD, *ordered]:
            row: dict[str, Any] = {"method": method, "limit": limit}
            name = BASE_METHOD
            if method != BASE_METHOD:
                point = choice["methods"][method][limit]
                name = point_name(point)
                row |= {
                    key: point[key] for key in ("run", "step", "pairs_seen", "compute", "validation_accuracy")
                }
                row["learning_rate"] = study.preference_of(point["run"]).learning_rate
                row["epochs"] = point["pairs_seen"] / _pairs_of_an_epoch(study, point)
                for key in KEPT:
                    row[key] = None if None in point[key] else 100 * statistics.fmean(point[key])
            for score in SCORES:
                values = [seed[name].get(score) for seed in figures]
                if None in values:
                    continue
                row[score] = statistics.fmean(values)
                if len(values) > 1:
                    row[f"{score}_se_seeds"] = statistics.stdev(values) / math.sqrt(len(values))
                of_base = [seed[base].get(score) for seed in figures]
                if method != chosen.base and len(values) > 1:
                    paired = over_repeats([a - b for a, b in zip(values, of_base, strict=True)])
                    row[f"{score}_difference"] = paired.difference
                    row[f"{score}_ci_low"], row[f"{score}_ci_high"] = paired.low, paired.high
                    row[f"{score}_p_t"], row[f"{score}_p_sign_flip"] = paired.p_t, paired.p_sign_flip
            rows.append(row)
    return pd.DataFrame(rows)


def read_figures(study: Study, results: Path) -> list[dict[str, Any]]:
    """Return the figures that stage `assess` wrote for each seed."""
    return [read_json(results / "chosen" / f"seed{seed}" / "figures.json") for seed in study.seeds]


def _pairs_of_an_epoch(study: Study, point: dict[str, Any]) -> int:
    """Return the number of pairs in the batches of one epoch."""
    own = study.preference_of(point["run"])
    world = require(study.data.world, "data.world")
    return world.train_pairs // own.batch_size * own.batch_size


def readable(table: "pd.DataFrame") -> Readable:
    """Return the table as text, with both limits of a method in one row."""
    columns = ["method", "learning rate × epochs", *LABELS.values(), "flipped kept"]
    columns += [f"equal compute: {name}" for name in ("learning rate × epochs", *LABELS.values())]
    records: dict[tuple[str, str], dict[str, Any]] = {
        (row["method"], row["limit"]): {str(key): value for key, value in row.items()}
        for row in table.to_dict("records")
    }
    rows = []
    for method in dict.fromkeys(table["method"]):
        data, compute = (records[method, limit] for limit in LIMITS)
        row: list[tuple[str, ...]] = [(method,), (_point(data),), *(_cell(data, score) for score in SCORES)]
        row += [(number(data.get("flipped_kept"), 1),), (_point(compute),)]
        rows.append([*row, *(_cell(compute, score) for score in SCORES)])
    return Readable(columns, rows)


def _point(row: dict[str, Any]) -> str:
    rate = row.get("learning_rate")
    return MISSING if rate is None or math.isnan(rate) else f"{rate:.0e} × {row['epochs']:g}"


def _cell(row: dict[str, Any], score: str) -> tuple[str, ...]:
    value, error = number(row.get(score), 1), number(row.get(f"{score}_se_seeds"), 1)
    cell = [value] + [f"({error})"] * (error != MISSING)
    difference = row.get(f"{score}_difference")
    if difference is not None and not math.isnan(difference):
        low, high = number(row[f"{score}_ci_low"], 1), number(row[f"{score}_ci_high"], 1)
        star = " *" if row[f"{score}_ci_low"] > 0 or row[f"{score}_ci_high"] < 0 else ""
        cell.append(f"{'+' if difference > 0 else ''}{number(difference, 1)} [{low}, {high}]{star}")
    return tuple(cell)


def title(study: Study) -> str:
    """Return the heading of the table."""
    return f"Study {study.study}, {study.setting}: methods chosen on validation pairs"


def notes(study: Study, choice: dict[str, Any]) -> list[str]:
    """Notes that explain the figures."""
    chosen = require(study.chosen, "chosen")
    world = require(study.data.world, "data.world")
    tried = {point["equal_data"]["points"] for point in choice["methods"].values()}
    within = ", ".join(
        f"{method} {point['equal_compute']['points']}" for method, point in choice["methods"].items()
    )
    return [
        f"Means over {len(study.seeds)} seeds, each with its own data and SFT model; in brackets the standard "
        f"deviation over seeds / √{len(study.seeds)}. Then the difference to {chosen.base}, paired by seed, "
        "with its 95 % t interval; * marks intervals that exclude 0. They are not corrected for their number.",
        f"sampled, greedy: percent of right answers to {chosen.accuracy.instructions:,} held-out instructions. "
        f"preference: percent of {world.test_pairs:,} clean test pairs whose right answer has the larger reward.",
        f"Learning rate and epochs of each method are the best of {'/'.join(map(str, sorted(tried)))} points by "
        f"accuracy on {world.validation_pairs:,} validation pairs of each seed, mean over seeds. "
        f"{world.flipped_share:.0%} of the labels of validation and training pairs are swapped.",
        "flipped kept: percent of the flipped pairs seen up to the chosen length that the method trained on.",
        f"Equal compute: the best of the points within {choice['compute']['equal_compute']:,.0f} forward "
        "passes of a pair (a backward pass counts as two), the compute of the cheapest method's complete run; the "
        f"scheduler's own networks are not counted. Points within this limit: {within}.",
    ]
