"""Agreement of a judge with recorded judgments of the same pairs, for `sams judge-agreement`.

The pairs are those of files in AlpacaEval's form: outputs of models and of a baseline, with the preference of the
judge that was recorded. The tested judge gets the calls that a scoring would make, and the same in the other order.
"""

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from sams.judge.ask import DEFAULT_MODEL, LABEL_MASS, Judgment, Judgments, ask_judge
from sams.judge.client import key_withheld
from sams.runtime.errors import UserError
from sams.runtime.files import sha256_of
from sams.runtime.provenance import commit
from sams.scoring.agreement_figures import (
    LEVEL,
    RESAMPLES,
    Draws,
    Pairs,
    by_margin,
    counts_of,
    with_intervals,
)
from sams.scoring.alpaca_eval import ANNOTATOR, DRAW, preference_of
from sams.scoring.alpaca_eval_run import PairCall, pair_calls
from sams.scoring.inputs import numbered, some_of, text_of, versions
from sams.study.recipes import ScoreRecipe
from sams.study.settings import Judge
from sams.world.tasks import read_instruction

INSTRUCTIONS = 805
"""Instructions of AlpacaEval, for the cost of a scoring."""
SEED = 0
NAMED = 3  # reasons in a message


class Recorded(NamedTuple):
    """A recorded judgment: a preference from 1 (the baseline's output) to 2 (the model's)."""

    instruction: str
    model: str
    baseline_output: str
    output: str
    preference: float


@dataclass(frozen=True)
class Record:
    """Recorded judgments of one judge.

    Args:
        judge: the judge that was recorded.
        baseline: name of the baseline.
        rows: judgments of all models.
        failed: number of rows without a judgment, which are left out.
        files: name, models and SHA-256 of each file.
    """

    judge: str
    baseline: str
    rows: list[Recorded]
    failed: int
    files: list[dict[str, Any]]

    @property
    def models(self) -> list[str]:
        """Names of the models, in the order of the files."""
        return list(dict.fromkeys(row.model for row in self.rows))

    @property
    def instructions(self) -> list[str]:
        """The instructions, in the order of the files."""
        return list(dict.fromkeys(row.instruction for row in self.rows))


def read_record(paths: Sequence[Path]) -> Record:
    """Read recorded judgments.

    Raises:
        UserError: a row is not in AlpacaEval's form, an instruction is repeated, or there are several judges or
            baselines.
    """
    rows: dict[tuple[str, str], Recorded] = {}
    failed, judges, baselines, files = 0, set(), set(), []
    for path in paths:
        models: dict[str, None] = {}
        for where, row in numbered(path):
            preference = preference_of(row, where)
            if preference is None:
                failed += 1
                continue
            found = Recorded(
                text_of(row, "instruction", where),
                text_of(row, "generator_2", where),
                text_of(row, "output_1", where, empty=True),
                text_of(row, "output_2", where, empty=True),
                preference or DRAW,
            )
            if rows.setdefault((found.model, found.instruction), found) is not found:
                raise UserError(
                    f"a second judgment of {found.model} on {found.instruction!r:.60}",
                    where=where,
                    remedy="give each model once",
                )
            models[found.model] = None
            annotator = str(row.get("annotator", ANNOTATOR))
            judges.add(str(row.get("judge", DEFAULT_MODEL if annotator == ANNOTATOR else annotator)))
            baselines.add(text_of(row, "generator_1", where))
        files.append({"name": path.name, "models": list(models), "sha256": sha256_of(path)})
    where = str(paths[0]) if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"
    for what, names in (("judges", judges), ("baselines", baselines)):
        if len(names) > 1:
            raise UserError(
                f"expected one, found {some_of(sorted(names))}",
                where=f"{what} of {where}",
                remedy="compare with one at a time",
            )
    if not rows:
        raise UserError("holds no judgment", where=where)
    return Record(judges.pop(), baselines.pop(), list(rows.values()), failed, files)


def some_instructions(record: Record, limit: int | None) -> Record:
    """Return the judgments of the first instructions that all models have, in an order drawn with a fixed seed.

    A larger limit adds to those of a smaller one, so that stored answers remain useful.

    Raises:
        UserError: no instruction is common to all models.
    """
    if limit is None:
        return record
    models = Counter(row.instruction for row in record.rows)
    common = sorted(name for name, count in models.items() if count == len(record.models))
    if not common:
        raise UserError("no instruction is common to all models", where="--limit")
    random.Random(SEED).shuffle(common)
    chosen = set(common[:limit])
    return Record(
        record.judge,
        record.baseline,
        [row for row in record.rows if row.instruction in chosen],
        record.failed,
        record.files,
    )


def judge_agreement(
    record: Record,
    recipe: ScoreRecipe,
    *,
    both_orders: bool = True,
    store: Path | None = None,
    dry_run: bool = False,
    resamples: int = RESAMPLES,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Compare a judge with recorded judgments.

    Args:
        record: the judgments to compare with.
        recipe: the judge.
        both_orders: judge each pair in both orders; otherwise in the one that a scoring uses. A judge without
            log-probs always judges both.
        store: file of an endpoint's answers, which are not paid again.
        dry_run: only log the estimate of the calls.
        resamples: number of bootstrap resamples.

    Returns:
        The content of agreement.json, and a row for each pair.

    Raises:
        UserError: no pair has a judgment, or `ask_judge` fails.
        DryRun: in a dry run.
    """
    settings = recipe.judge
    log_probs = settings.log_probs or settings.kind == "local"
    if settings.kind == "local" and not any(map(read_instruction, record.instructions)):
        raise UserError(
            "the local judge can only grade the synthetic world, and these instructions are others",
            where="key 'benchmarks.judge.kind'",
            remedy="name a judge with --base-url and --model, or with --configfile",
        )
    called = [_calls(row, log_probs, both_orders) for row in record.rows]
    calls = [each.call for of_row in called for each in of_row]
    with key_withheld():
        judged = ask_judge(recipe, calls, store=store, dry_run=dry_run)
    rows, pairs, draws = _pairs(record, called, judged, log_probs)
    if not len(pairs):
        reasons = Counter(judgment.missing for judgment in judged.each).most_common()
        named = "; ".join(f"{count} {reason}" for reason, count in reasons[:NAMED])
        raise UserError(
            f"no pair has a judgment: {named or 'all outputs are identical'}",
            where=f"judge {judged.judge}",
            remedy="check 'judge.model', 'judge.parameters' and 'judge.log_probs'",
        )
    if not (pairs.record != 0.5).any():
        raise UserError("every recorded judgment is a draw", where=f"judge {record.judge}")
    figures, rates = with_intervals(pairs, draws, len(record.models), resamples=resamples, seed=SEED)
    masses = [
        reading.label_mass
        for judgment in judged.each
        for reading in judgment.readings
        if reading.label_mass is not None
    ]
    counts = {
        "instructions": len(record.instructions),
        "models": len(record.models),
        **counts_of(pairs),
        "identical": len(draws.item),
        "without_judgment": len(record.rows) - len(pairs) - len(draws.item),
        "not_recorded": record.failed,
    }
    content = {
        "judge": judged.judge,
        "requested": {
            "kind": settings.kind,
            "model": settings.model,
            "base_url": settings.base_url if settings.kind == "openai" else None,
            **settings.asked_with,
            "repeats": settings.repeats,
        },
        "record": {"judge": record.judge, "baseline": record.baseline, "files": record.files},
        "n": counts,
        "level": LEVEL,
        "resamples": resamples,
        "seed": SEED,
        "figures": figures,
        "win_rates": dict(zip(record.models, rates, strict=True)),
        "by_margin": by_margin(pairs),
        "label_mass": {
            "n": len(masses),
            "mean": math.fsum(masses) / len(masses),
            "low_share": 100 * sum(mass < LABEL_MASS for mass in masses) / len(masses),
        }
        if masses
        else None,
        "judge_calls": judged.facts,
        "one_scoring": _one_scoring(settings, judged, 1 if log_probs else 2),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "versions": versions("alpaca-eval", "numpy", "scipy"),
    }
    plain: dict[str, Any] = _plain(content)
    return plain, rows


def _calls(row: Recorded, log_probs: bool, both_orders: bool) -> list[PairCall]:
    if row.output == row.baseline_output:
        return []
    reference = {"instruction": row.instruction, "output": row.baseline_output}
    name = f"{row.model} on {row.instruction[:40]!r}"
    return pair_calls(name, reference, {"output": row.output}, log_probs=log_probs, both_orders=both_orders)


def _pairs(
    record: Record, called: Sequence[Sequence[PairCall]], judged: Judgments, log_probs: bool
) -> tuple[list[dict[str, Any]], Pairs, Draws]:
    """Return a row for each pair, the pairs with a judgment, and the identical outputs."""
    import numpy as np

    answers = iter(judged.each)
    items = {instruction: number for number, instruction in enumerate(record.instructions)}
    models = {model: number for number, model in enumerate(record.models)}
    rows, values, draws = [], [], []
    for row, of_pair in zip(record.rows, called, strict=True):
        indices = (items[row.instruction], models[row.model])
        if not of_pair:
            draws.append(indices)
            continue
        judgments = [next(answers) for _ in of_pair]
        orders = [math.nan, math.nan]
        for call, judgment in zip(of_pair, judgments, strict=True):
            if not judgment.missing:
                orders[call.switched] = call.preference(judgment.value) - 1
        # As a scoring computes it: the drawn order, or the mean of both.
        preference = orders[of_pair[0].switched] if log_probs else sum(orders) / 2
        length = math.log((len(row.output) + 1) / (len(row.baseline_output) + 1))
        if not math.isnan(preference):
            values.append((*indices, row.preference - 1, preference, *orders, length))
        rows.append(_row(row, preference, orders, judgments))
    table = np.array(values, dtype=float).reshape(len(values), 7)
    drawn = np.array(draws, dtype=int).reshape(len(draws), 2)
    pairs = Pairs(
        item=table[:, 0].astype(int),
        model=table[:, 1].astype(int),
        record=table[:, 2],
        judge=table[:, 3],
        orders=table[:, 4:6],
        log_length=table[:, 6],
    )
    return rows, pairs, Draws(drawn[:, 0], drawn[:, 1])


def _row(
    row: Recorded, preference: float, orders: Sequence[float], judgments: Sequence[Judgment]
) -> dict[str, Any]:
    """Return a pair for pairs.jsonl; preferences are from 1 (baseline) to 2 (model)."""
    missing = sorted({judgment.missing for judgment in judgments if judgment.missing})
    masses = [r.label_mass for judgment in judgments for r in judgment.readings if r.label_mass is not None]
    found = {
        "instruction": row.instruction,
        "model": row.model,
        "recorded": row.preference,
        "judged": 1 + preference,
        "baseline_first": 1 + orders[0],
        "model_first": 1 + orders[1],
        "label_mass": min(masses, default=None),
        "missing": "; ".join(missing) or None,
        "characters": [len(row.baseline_output), len(row.output)],
    }
    plain: dict[str, Any] = _plain(found)
    return plain


def _one_scoring(settings: Judge, judged: Judgments, orders: int) -> dict[str, Any] | None:
    """Return calls, tokens and cost of AlpacaEval for one model, from those of the calls that were made."""
    if judged.facts is None or not (answers := judged.facts["n_calls"] + judged.facts["n_cached"]):
        return None
    calls = INSTRUCTIONS * orders * settings.repeats
    share, cost = calls / answers, judged.facts["cost"]
    return {
        "calls": calls,
        "prompt_tokens": round(judged.facts["prompt_tokens"] * share),
        "completion_tokens": round(judged.facts["completion_tokens"] * share),
        "cost": None if cost is None else cost * share,
    }


def _plain(value: Any) -> Any:
    """Convert numbers of numpy, and NaN to None."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value
