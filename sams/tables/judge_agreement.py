"""Agreement of a judge with recorded judgments: tables in the terminal and a figure."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from sams.judge.ask import LABEL_MASS, STORE, DryRun, judge_name
from sams.runtime.errors import UserError
from sams.runtime.extras import require
from sams.runtime.files import whole_file, write_json
from sams.runtime.terminal import Readable, print_table
from sams.scoring.agreement import judge_agreement, read_record, some_instructions
from sams.scoring.agreement_figures import RESAMPLES
from sams.study.recipes import ScoreRecipe
from sams.study.settings import Judge
from sams.study.study import Study
from sams.tables.panels import COLOURS, Plot, panels, save
from sams.tables.render import MISSING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Content = Mapping[str, Any]
"""Content of agreement.json."""

FOLDER = Path("results/judge_agreement")
RESULT = "agreement.json"

# Label, key, decimals, and the number of pairs or models.
ROWS = (
    ("same output preferred, %", "agreement", 1, "decided"),
    ("... by always preferring the longer", "agreement_longer", 1, "decided"),
    ("... by always preferring the baseline", "agreement_baseline", 1, "decided"),
    ("... by the mean of both orders", "agreement_both_orders", 1, "decided_both_orders"),
    ("Cohen's kappa", "kappa", 2, "decided"),
    ("correlation of preferences, Pearson", "pearson", 2, "pairs"),
    ("... Spearman", "spearman", 2, "pairs"),
    ("mean difference of preferences, 0 to 1", "difference", 3, "pairs"),
    ("same output in both orders, %", "consistency", 1, "both_orders"),
    ("output shown first preferred, %", "first", 1, "both_orders"),
    ("longer output preferred, %", "longer_judge", 1, "unequal"),
    ("... by the record", "longer_record", 1, "unequal"),
    ("... difference, points", "longer_shift", 1, "unequal"),
    ("length coefficient, logits", "length_judge", 2, "pairs"),
    ("... of the record", "length_record", 2, "pairs"),
    ("... difference", "length_shift", 2, "pairs"),
    ("mean shift of win rates, points", "win_rate_shift", 1, "models"),
    ("correlation of win rates, Pearson", "models_pearson", 2, "models"),
    ("... Spearman", "models_spearman", 2, "models"),
    ("... Kendall", "models_kendall", 2, "models"),
)
FEW = 10  # models
TOO_NARROW = 100  # instructions (docs/log.md, agreement of judges)
NAMED = 3


def compare_judge(
    annotations: Sequence[Path],
    study: Study,
    *,
    base_url: str | None = None,
    model: str | None = None,
    limit: int | None = None,
    both_orders: bool = True,
    dry_run: bool = False,
    out: Path | None = None,
    store: Path | None = None,
    as_json: bool = False,
) -> None:
    """Compare a judge with recorded judgments; write agreement.json, pairs.jsonl and the figure, and print them.

    Args:
        annotations: files of recorded judgments.
        study: settings of the judge, and the synthetic world of a local judge.
        base_url: address of the judge, in place of the study's.
        model: its model, in place of the study's.
        limit: number of instructions; None takes all.
        both_orders: judge each pair in both orders.
        dry_run: only log the estimate of the calls.
        out: folder of the result; None is one by the judge's name.
        store: file of the judge's answers; None is in the folder of the result.
        as_json: print agreement.json instead of tables.

    Raises:
        UserError: files that cannot be read, or a judge that cannot be asked.
    """
    require("score", where="sams judge-agreement")
    given = {key: value for key, value in (("base_url", base_url), ("model", model)) if value is not None}
    settings = study.benchmarks.judge.model_dump() | given | ({"kind": "openai"} if given else {})
    try:
        judge = Judge.model_validate(settings)
    except ValidationError as error:
        fault = error.errors()[0]
        option = str(fault["loc"][0]).replace("_", "-") if fault["loc"] else "model"
        raise UserError(fault["msg"].removeprefix("Value error, "), where=f"--{option}") from None
    recipe = ScoreRecipe(judge=judge, world=study.data.world)
    record = some_instructions(read_record(annotations), limit)
    folder = out or FOLDER / re.sub(r"[^A-Za-z0-9.]+", "_", judge_name(judge)).strip("_")
    try:
        content, pairs = judge_agreement(
            record,
            recipe,
            both_orders=both_orders,
            store=store or folder / STORE,
            dry_run=dry_run,
            resamples=RESAMPLES,
        )
    except DryRun:
        return
    write_json(folder / RESULT, content)
    with whole_file(folder / "pairs.jsonl") as part:
        part.write_text(
            "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in pairs), encoding="utf-8"
        )
    save(agreement_figure(content), folder / "agreement")
    if as_json:
        print(json.dumps(content, indent=2, ensure_ascii=False))
    else:
        show(content)
        print(f"\nwritten to {folder}: {RESULT} (for `judge.agreement`), pairs.jsonl, agreement.svg and .png")


def title(content: Content) -> str:
    """Return the heading."""
    return f"Judge {content['judge']} compared with recorded judgments of {content['record']['judge']}"


def show(content: Content) -> None:
    """Print figures, win rates and notes."""
    counts = content["n"]
    # A judge without log-probs is always asked in both orders.
    repeated = () if content["requested"].get("log_probs", True) else ("agreement_both_orders",)
    figures: list[list[tuple[str, ...]]] = [
        [(label,), *_cells(content["figures"][key], decimals), (_count(counts[count], count),)]
        for label, key, decimals, count in ROWS
        if content["figures"][key]["value"] is not None and key not in repeated
    ]
    print_table(title(content), Readable(["", "value", f"{content['level']} % interval", "n"], figures))
    print()
    by_record = sorted(content["win_rates"].items(), key=lambda item: -(item[1]["record"]["value"] or 0.0))
    rates = [
        [(name,), _with_interval(both["judge"], 1), _with_interval(both["record"], 1)]
        for name, both in by_record
    ]
    print_table(
        f"Win rates over {content['record']['baseline']}, %",
        Readable(["model", "this judge", "recorded"], rates),
        notes(content),
    )


def notes(content: Content) -> list[str]:
    """Return what the figures count, and what was missing, doubtful and paid."""
    counts = content["n"] | {"recorded_draws": content["n"]["pairs"] - content["n"]["decided"]}
    found = [
        f"{counts['pairs']:,} pairs of {_count(counts['models'], 'models')} and {counts['instructions']:,} "
        f"instructions. Intervals: percentiles of {content['resamples']:,} resamples of instructions; models are not "
        f"resampled{'; few models say little about others' * (counts['models'] < FEW)}."
    ]
    if counts["instructions"] < TOO_NARROW:
        found.append(
            f"With fewer than {TOO_NARROW} instructions intervals are too narrow: of 30, they contained 91 to 92 % "
            "of known values, not 95."
        )
    left_out = [
        f"{counts[key]:,} {words}"
        for key, words in (
            ("identical", "identical outputs (draws of both, in the win rates only)"),
            ("recorded_draws", "recorded draws (not in the agreement)"),
            ("not_recorded", "rows without a recorded judgment"),
            ("without_judgment", "pairs without a judgment"),
        )
        if counts[key]
    ]
    if left_out:
        found.append(f"Left out: {'; '.join(left_out)}.")
    if content["figures"]["agreement"]["value"] <= content["figures"]["agreement_longer"]["value"]:
        found.append("This judge agrees with the record no better than always preferring the longer output.")
    found.append(
        "Length coefficient: of the log of the length ratio in a logistic regression of the preferences with an "
        "intercept for each model. Chance agrees on 50 % of pairs and has a kappa of 0."
    )
    if (mass := content["label_mass"]) is not None:
        found.append(
            f"Probability of both labels together: {mass['mean']:.3f} in the mean; below .9 in "
            f"{mass['low_share']:.1f} % of {mass['n']:,} judgments"
            + (": it answers something else." if mass["mean"] < LABEL_MASS else ".")
        )
    if (facts := content["judge_calls"]) is not None:
        found.append(
            f"Calls: {facts['n_calls']:,} made, {facts['n_cached']:,} from the store; {facts['prompt_tokens']:,} "
            f"prompt and {facts['completion_tokens']:,} answer tokens{_dollars(facts['cost'])}."
        )
        if facts["missing"]:
            reasons = list(facts["missing"].items())
            named = "; ".join(f"{count} {reason}" for reason, count in reasons[:NAMED])
            found.append(f"Calls without a judgment: {facts['n_missing']:,} ({named}).")
    if (one := content["one_scoring"]) is not None:
        found.append(
            f"AlpacaEval of one model needs {one['calls']:,} such calls: some {one['prompt_tokens']:,} prompt and "
            f"{one['completion_tokens']:,} answer tokens{_dollars(one['cost'])}."
        )
    return found


def agreement_figure(content: Content) -> "Figure":
    """Draw the win rates of the models by both judges, and the agreement by the certainty of the record."""
    known = [item for item in content["win_rates"].items() if item[1]["judge"]["low"] is not None]
    rates = sorted(known, key=lambda item: item[1]["record"]["value"])
    bins = content["by_margin"]
    plots = [Plot("Win rate over the baseline")]
    if len(bins) > 1:  # a record without log-probs is always certain
        plots.append(Plot("Agreement by the record's certainty", "same output preferred, %"))
    figure, axes = panels(plots, max(3.4, 0.32 * len(rates) + 1.2))
    judges = (("record", content["record"]["judge"], 0.14), ("judge", content["judge"], -0.14))
    for index, (key, name, offset) in enumerate(judges):
        values = [both[key] for _, both in rates]
        axes[0].errorbar(
            [each["value"] for each in values],
            [row + offset for row in range(len(rates))],
            xerr=_bars(values),
            fmt="os"[index],
            color=COLOURS[2 * index],
            markerfacecolor="white" if index else COLOURS[0],
            markersize=6,
            linewidth=1.4,
            label=name,
        )
    axes[0].set_yticks(range(len(rates)), [_shortened(name) for name, _ in rates])
    axes[0].set_ylim(-0.6, len(rates) - 0.4)
    axes[0].set_xlim(left=0)
    axes[0].set_xlabel("%")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    if len(bins) > 1:
        axis, positions = axes[1], range(len(bins))
        axis.errorbar(
            positions, [each["value"] for each in bins], yerr=_bars(bins), fmt="s", color=COLOURS[2],
            markerfacecolor="white", markersize=6, linewidth=1.4,
        )  # fmt: skip
        axis.axhline(50, color="#666666", linewidth=1, linestyle="--")
        axis.annotate(
            "chance", (positions[-1] + 0.4, 50), (0, 3), textcoords="offset points", fontsize=9, ha="right"
        )
        limits = [f"{each['from']:g}–{each['to']:g}".replace("0.", ".") for each in bins]
        axis.set_xticks(
            positions,
            [f"{name}\nn {each['n']:,}" for name, each in zip(limits, bins, strict=True)],
            fontsize=9,
        )
        axis.set_xlim(-0.5, len(bins) - 0.5)
        axis.set_ylim(0, 103)
        axis.set_xlabel("record's probability of the output that it prefers")
    return figure


def _bars(values: Sequence[Mapping[str, float]]) -> list[list[float]]:
    """Return the lengths of the error bars, below and above."""
    return [
        [max(0.0, each["value"] - each["low"]) for each in values],
        [max(0.0, each["high"] - each["value"]) for each in values],
    ]


def _cells(figure: Mapping[str, float | None], decimals: int) -> tuple[tuple[str], tuple[str]]:
    """Return the cells of a value and of its interval."""
    value, low, high = (_number(figure[key], decimals) for key in ("value", "low", "high"))
    return (value,), (MISSING if figure["low"] is None else f"{low} to {high}",)


def _with_interval(figure: Mapping[str, float | None], decimals: int) -> tuple[str, ...]:
    [value], [interval] = _cells(figure, decimals)
    return (value, f"({interval})")


def _number(value: float | None, decimals: int) -> str:
    # Without the sign of a zero.
    return MISSING if value is None else f"{round(value, decimals) + 0.0:.{decimals}f}"


def _count(count: int, what: str) -> str:
    return f"{count} model{'s' * (count > 1)}" if what == "models" else f"{count:,}"


def _dollars(cost: float | None) -> str:
    return "" if cost is None else f", ${cost:,.2f}"


def _shortened(name: str) -> str:
    return name if len(name) <= 32 else f"{name[:31]}…"
