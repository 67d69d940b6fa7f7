"""What stands below a table: units, errors, judge, and what is missing. Taken from settings and results."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sams.study.reported import Reported, read_reported
from sams.study.study import Study
from sams.tables import render
from sams.tables.repeats import least_p
from sams.tables.results import Cell, data_reports

if TYPE_CHECKING:
    import pandas as pd

Cells = Mapping[Cell, Mapping[str, Any]]


def main_title(study: Study) -> str:
    """Heading of the main table."""
    return f"{_named(study)}: main table"


def comparison_title(study: Study) -> str:
    """Heading of the comparisons."""
    return f"{_named(study)}: differences between methods"


def _named(study: Study) -> str:
    return f"{'REHEARSAL: ' if study.rehearse else ''}Study {study.study}, {study.setting}"


def rehearsal_note(study: Study) -> list[str]:
    """What must be said first of a rehearsal's figures; nothing of other studies."""
    if not study.rehearse:
        return []
    return [
        "Rehearsal: a tiny fresh model, a few rounds on synthetic data, the local judge. It shows that the study "
        "runs to its tables; no figure here says anything of a method."
    ]


def paper_title(study: Study) -> str:
    """Heading of the study's figures beside the paper's."""
    assert study.paper is not None
    return f"{_named(study)}: beside the paper's {_reported(study).title}"


def main_notes(study: Study, cells: Cells) -> list[str]:
    """Notes of the main table, one sentence or two each."""
    shown = _shown(study, cells)
    notes = [*rehearsal_note(study), errors_note(study.seeds)]
    if study.benchmarks.alpaca_eval or study.benchmarks.mt_bench:
        notes.append(judge_note(study, shown))
    else:
        notes.append("AlpacaEval 2 and MT-Bench: left out by this study, so their columns are empty.")
    if study.benchmarks.alpaca_eval:
        notes += alpaca_eval_notes(study, shown)
    if study.benchmarks.mt_bench:
        counts = _values(shown, "mt_bench", "n_judgments")
        failed = sum(_values(shown, "mt_bench", "n_failed"))
        notes.append(
            f"MT-Bench: mean of both turns, 1 to 10, over {_range(counts)} judgments; {failed:g} failed."
        )
    notes.append(
        "Preferences, on the test pairs: test_accuracy is the share with a larger reward for the chosen "
        "response, in percent; chosen_reward the mean implicit reward of the chosen responses, beta times "
        "the log-ratio to the reference; chosen_logp their mean log-prob in nats, summed over tokens. Empty "
        "for sft, which is the reference."
    )
    notes.append(
        "Cost: train_seconds and peak_memory_mb (of the process that held most) are those of the method's "
        "own training job; SFT, reference log-probs and scheduler pretraining are not in it."
    )
    return notes + missing_notes(study, cells)


def errors_note(seeds: Sequence[int]) -> str:
    """What the figures after ± are."""
    told = (
        "± is the standard error over items (instructions, questions, test pairs) of one seed's score, the "
        "root mean square over seeds"
    )
    if len(seeds) == 1:
        return f"One seed ({seeds[0]}): {told}. It does not hold the spread between training runs."
    named = ", ".join(map(str, seeds))
    return f"Means over seeds {named}; {told}; in brackets the standard deviation over seeds / √{len(seeds)}."


def judge_note(study: Study, shown: Cells) -> str:
    """Who graded, and what the scores may be compared with."""
    if study.benchmarks.judge.kind == "local":
        return (
            "Judge: the study's local judge, which checks the answers of its own tasks. These are not GPT-4 "
            "judgments and never comparable with published AlpacaEval 2 or MT-Bench scores."
        )
    judges = {
        str(values["judge"])
        for cell, values in shown.items()
        if cell.benchmark != "train" and values.get("judge")
    }
    named = " and ".join(sorted(judges)) or study.benchmarks.judge.model or "each benchmark's own"
    return f"Judge: {named}. Scores of different judges are not comparable."


def alpaca_eval_notes(study: Study, shown: Cells) -> list[str]:
    """Number of instructions, where length control comes from or why there is none, and lengths."""
    assert study.benchmarks.alpaca_eval is not None
    counts = _values(shown, "alpaca_eval", "n_total")
    notes = [f"AlpacaEval 2: win rates in percent over {_range(counts)} instructions, against the baseline."]
    reasons = sorted(
        {str(values["lc_unavailable"]) for values in shown.values() if values.get("lc_unavailable")}
    )
    if reasons:
        notes.append(f"Length control: unavailable: {'; '.join(reasons)}.")
    elif study.benchmarks.alpaca_eval.difficulty is None:
        notes.append(
            "Length control: with a difficulty table made for this study's own instructions, not the "
            "official one; its standard error is a bootstrap over instructions of ours."
        )
    else:
        notes.append(
            f"Length control: with the difficulty table {study.benchmarks.alpaca_eval.difficulty}; its "
            "standard error is a bootstrap over instructions of ours."
        )
    lengths = []
    for method in study.methods:
        of_method = {cell: values for cell, values in shown.items() if cell.method == method}
        if found := _values(of_method, "alpaca_eval", "avg_length"):
            lengths.append(f"{method} {sum(found) / len(found):.0f}")
    if lengths:
        notes.append(f"Mean answer length in characters: {', '.join(lengths)}.")
    return notes


def missing_notes(study: Study, cells: Cells) -> list[str]:
    """Which files the table still lacks."""
    wanted = ["train"] + [
        name for name in ("alpaca_eval", "mt_bench") if getattr(study.benchmarks, name) is not None
    ]
    notes = []
    for benchmark in wanted:
        absent = [
            f"{method} seed {seed}"
            for method in study.methods
            for seed in study.seeds
            if Cell(method, seed, benchmark) not in cells
            and not (benchmark == "train" and method not in study.trained_methods)
        ]
        if absent:
            notes.append(f"Not there yet ({benchmark}): {', '.join(absent)}.")
    return notes


def paper_notes(study: Study, cells: Cells, table: "pd.DataFrame") -> list[str]:
    """Notes of the table beside the paper's figures."""
    shown = _shown(study, cells)
    reported = _reported(study)
    elsewhere = {
        f"{row} from the {source}"
        for row, source in zip(table["row"], table["source"], strict=True)
        if source and source != reported.source
    }
    notes = [
        *rehearsal_note(study),
        "; ".join([f"Reported: {reported.source}", *sorted(elsewhere)])
        + ". difference is reproduced minus reported; the paper gives no errors.",
        errors_note(study.seeds) + " n is the number of seeds.",
    ]
    if reported.judges:
        notes.append(judge_note(study, shown))
    runs: dict[str, list[str]] = {}
    for method, score, ids in zip(table["method"], table["score"], table["run_ids"], strict=True):
        if ids:
            short = " ".join(run[: run.index(":") + 9] for run in ids.split())
            runs.setdefault(f"{method} {short}", []).append(render.LABELS[score])
    if runs:
        listed = "; ".join(f"{run} ({', '.join(scores)})" for run, scores in runs.items())
        notes.append(f"MLflow runs, in full in the CSV file: {listed}.")
    return notes + [f"{reported.title}: {note}" for note in reported.notes] + missing_notes(study, cells)


def leak_notes(setting: Path) -> list[str]:
    """Whether prompts of the training pairs are among the test pairs, as `prepare_data` counted them."""
    leaks = [report["leak"] for report in data_reports(setting) if "leak" in report]
    if not leaks:
        return []
    found = {key: sum(leak[key] for leak in leaks) for key in ("prompts", "test_pairs")}
    if not found["prompts"]:
        return ["Leaks: no prompt of the training pairs is among the test pairs."]
    return [
        f"Leaks: {found['prompts']} prompts of the training pairs are in the test pairs too, which makes "
        f"{found['test_pairs']} test pairs: test figures look better than they are."
    ]


def comparison_notes(study: Study, resamples: int) -> list[str]:
    """Notes of the comparisons."""
    notes = [
        *rehearsal_note(study),
        (
            "difference is the method's score minus the base's, in the units of the main table, with its "
            "95 % interval (ci_low to ci_high); excludes 0 says that the interval does not hold 0."
        ),
        (
            "paired: bootstrap over the same instructions or questions, each item's score being its mean "
            f"over seeds; {resamples} resamples, percentiles. unpaired: from the standard errors of both "
            "scores over items, added in squares; as a rule wider than a paired interval would be."
        ),
        (
            "Paired and unpaired intervals hold the chance of the items, not of the training runs. None are "
            "corrected for their number: of 20 without any effect, one excludes 0."
        ),
    ]
    if len(study.seeds) > 1:
        notes.append(repeats_note(len(study.seeds)))
    if study.benchmarks.alpaca_eval or study.benchmarks.mt_bench:
        notes.append(judge_note(study, {}))
    return notes


def repeats_note(seeds: int) -> str:
    """What tests over so many seeds can show."""
    return (
        f"{seeds} seeds: each seed's difference counts once, as a repeat. Interval and p (t) are those of the "
        f"paired t test with {seeds - 1} degree{'s' * (seeds > 2)} of freedom; p (flips) is of the exact sign-flip "
        f"permutation test, which with {seeds} seeds cannot give less than {least_p(seeds):.2g}. Few seeds show "
        "large effects only."
    )


def _reported(study: Study) -> Reported:
    assert study.paper is not None
    return read_reported(study.paper.table, study.paper.setting)


def _shown(study: Study, cells: Cells) -> Cells:
    """The cells of this study's methods and seeds."""
    return {
        cell: values
        for cell, values in cells.items()
        if cell.method in study.methods and cell.seed in study.seeds
    }


def _values(cells: Cells, benchmark: str, key: str) -> list[float]:
    found = [values.get(key) for cell, values in cells.items() if cell.benchmark == benchmark]
    return [value for value in found if value is not None]


def _range(values: Iterable[float]) -> str:
    distinct = sorted(set(values))
    if not distinct:
        return "no"
    return f"{distinct[0]:g}" if len(distinct) == 1 else f"{distinct[0]:g} to {distinct[-1]:g}"
