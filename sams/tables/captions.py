"""Titles and notes of tables: units, errors, judge, missing files. Derived from settings and results."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sams.data import findings
from sams.judge.known import comparable, published_note
from sams.runtime.files import read_json
from sams.scoring.benchmark import Figures
from sams.scoring.table import BENCHMARKS, judged, scored
from sams.study.reported import Reported, read_reported
from sams.study.study import BASE_METHOD, Study
from sams.tables import render
from sams.tables.agreement_note import agreement_notes
from sams.tables.repeats import least_p
from sams.tables.results import Cell, Cells, reports_of

if TYPE_CHECKING:
    import pandas as pd


def main_title(study: Study) -> str:
    """Return the heading of the main table."""
    return f"{_named(study)}: main table"


def comparison_title(study: Study) -> str:
    """Return the heading of the comparisons."""
    return f"{_named(study)}: differences between methods"


def _named(study: Study) -> str:
    return f"{'REHEARSAL: ' if study.rehearse else ''}Study {study.study}, {study.setting}"


def rehearsal_note(study: Study) -> list[str]:
    """Return the note that marks a rehearsal's figures; empty for other studies."""
    if not study.rehearse:
        return []
    return [
        "Rehearsal: a tiny fresh model, a few rounds on synthetic data, the local judge. It shows that the study "
        "runs to its tables; no figure here says anything about a method."
    ]


def paper_title(study: Study) -> str:
    """Return the heading of the comparison with the paper."""
    return f"{_named(study)}: compared with the paper's {_reported(study).title}"


def first_notes(study: Study, cells: Cells) -> list[str]:
    """Return what one needs to read the main table: errors, judge, missing files."""
    shown = _shown(study, cells)
    judge = [judge_note(study, shown), *agreement_of_judge(study, shown)] if scored(study) else []
    return [*rehearsal_note(study), errors_note(study.seeds), *judge, *missing_notes(study, cells)]


def main_notes(study: Study, cells: Cells) -> list[str]:
    """Return the notes of the main table."""
    shown = _shown(study, cells)
    notes = [*rehearsal_note(study), errors_note(study.seeds)]
    if judged(study):
        notes += [judge_note(study, shown), *agreement_of_judge(study, shown)]
    else:
        names = ", ".join(benchmark.title for benchmark in BENCHMARKS.values() if benchmark.has_judge)
        notes.append(f"{names}: left out by this study.")
    for benchmark in scored(study):
        notes += benchmark.notes(
            study.benchmarks.scored[benchmark.name], _figures(study, shown, benchmark.name)
        )
    notes.append(
        "Preferences, on the test pairs: test accuracy is the percentage of pairs with a larger reward for the "
        "chosen response, a tie counting one half; chosen reward is the mean implicit reward of the chosen "
        "responses, beta times the log-ratio to the reference; chosen log-prob is their mean log-prob in nats, "
        "summed over tokens. sft, which is the reference, has none."
    )
    notes.append(
        "Cost: training time and peak memory (of the process with the highest peak) are those of the method's "
        "own training job; SFT, reference log-probs and scheduler pretraining are not included."
    )
    return notes + missing_notes(study, cells)


def errors_note(seeds: Sequence[int]) -> str:
    """Return the note on the errors that tables show."""
    over_items = (
        "± is the standard error over items (instructions, questions, test pairs) of one seed's score, as the "
        "root mean square over seeds"
    )
    if len(seeds) == 1:
        return f"One seed ({seeds[0]}): {over_items}. It does not include the spread between training runs."
    names = ", ".join(map(str, seeds))
    return f"Means over seeds {names}; {over_items}; in brackets the standard deviation over seeds / √{len(seeds)}."


def judge_note(study: Study, shown: Cells) -> str:
    """Return the note on the judge, and on scores that are comparable with these."""
    if study.benchmarks.judge.kind == "local":
        return (
            "Judge: the study's local judge, which checks the answers to its own tasks. These are not GPT-4 "
            "judgments and never comparable with published AlpacaEval 2 or MT-Bench scores."
        )
    judges = judges_of(study, shown)
    names = " and ".join(sorted(judges)) or study.benchmarks.judge.model or "each benchmark's own"
    note = f"Judge: {names}. Scores of different judges are not comparable."
    return " ".join(filter(None, [note, published_note(study.benchmarks.judged, names)]))


def agreement_of_judge(study: Study, shown: Cells) -> list[str]:
    """Return the note on the judge's agreement with recorded judgments, if the settings name a file of it."""
    return agreement_notes(study.benchmarks.judge, judges_of(study, shown))


def judges_of(study: Study, shown: Cells) -> set[str]:
    """Return the names of the judges that gave the scores."""
    return {
        str(values["judge"])
        for cell, values in shown.items()
        if cell.benchmark in study.benchmarks.judged and values.get("judge")
    }


def missing_notes(study: Study, cells: Cells) -> list[str]:
    """Notes that name the missing metrics files."""
    notes = []
    for benchmark in ["train", *study.benchmarks.scored]:
        absent = [
            f"{method} seed {seed}"
            for method in study.methods
            for seed in study.seeds
            if Cell(method, seed, benchmark) not in cells
            and not (benchmark == "train" and method not in study.trained_methods)
        ]
        if absent:
            notes.append(f"Missing so far ({benchmark}): {', '.join(absent)}.")
    return notes


def paper_notes(study: Study, cells: Cells, table: "pd.DataFrame") -> list[str]:
    """Return the notes of the comparison with the paper."""
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
    if any(map(comparable, reported.columns)):
        notes += [judge_note(study, shown), *agreement_of_judge(study, shown)]
    runs: dict[str, list[str]] = {}
    for method, score, ids in zip(table["method"], table["score"], table["run_ids"], strict=True):
        if ids:
            short = " ".join(run[: run.index(":") + 9] for run in ids.split())
            runs.setdefault(f"{method} {short}", []).append(render.label_of(score))
    if runs:
        listed = "; ".join(f"{run} ({', '.join(scores)})" for run, scores in runs.items())
        notes.append(f"MLflow runs, in full in the CSV file: {listed}.")
    return notes + [f"{reported.title}: {note}" for note in reported.notes] + missing_notes(study, cells)


def data_notes(setting: Path) -> list[str]:
    """Return notes on the data: leaks and contradictions by `prepare_data`, cut responses by `tokenise`."""
    reports = reports_of(setting, "data")
    leaks = [report["leak"] for report in reports if "leak" in report]
    notes = []
    if leaks:
        total = {key: sum(leak[key] for leak in leaks) for key in ("prompts", "test_pairs")}
        notes = findings.of_leak(total) or ["Leaks: no prompt of the training pairs is among the test pairs."]
    notes += [sentence for report in reports for sentence in findings.of_records(report)]
    notes += [sentence for report in reports_of(setting, "tokens") for sentence in findings.of_tokens(report)]
    return list(dict.fromkeys(notes))


def fallback_notes(setting: Path, study: Study) -> list[str]:
    """Return a note for each fall-back of row layout, kernel or precision, with the runs that computed with it.

    The training jobs of a table's methods recorded them in recipe.json: SFT, scheduler pretraining and halves of the
    pairs count with the folder that they are in.
    """
    runs: dict[str, dict[str, set[int]]] = {}
    for method in dict.fromkeys([*study.methods, BASE_METHOD, "scheduler"]):
        for seed in study.seeds:
            folder = setting / method / f"seed{seed}"
            for file in (folder / "recipe.json", *sorted(folder.glob("crossfit/half*/recipe.json"))):
                tuning = (read_json(file).get("tuning") or {}) if file.is_file() else {}
                for reason in tuning.get("fallbacks", []):
                    runs.setdefault(reason, {}).setdefault(method, set()).add(seed)
    return [
        "; ".join(f"{method}, {len(seeds)} seed{'s' * (len(seeds) > 1)}" for method, seeds in users.items())
        + f": {reason}"
        for reason, users in runs.items()
    ]


def comparison_notes(study: Study, resamples: int) -> list[str]:
    """Return the notes of the comparisons."""
    notes = [
        *rehearsal_note(study),
        (
            "difference is the method's score minus the base's, in the units of the main table, with its "
            "95 % interval; * marks intervals that exclude 0."
        ),
        (
            "paired: percentile bootstrap over the same instructions, questions or test pairs, each item's score "
            f"being its mean over the seeds of both methods; {resamples} resamples. unpaired: from the root of "
            "the sum of squares of both scores' standard errors over items; usually wider than a paired interval."
        ),
        (
            "Paired and unpaired intervals cover the sampling of items, not the variation of training runs. None are "
            "corrected for their number: without any effect, one in 20 excludes 0."
        ),
    ]
    notes += [note for benchmark in scored(study) for note in benchmark.comparison_notes]
    if len(study.seeds) > 1:
        notes.append(repeats_note(len(study.seeds)))
    if judged(study):
        notes.append(judge_note(study, {}))
    return notes


def first_comparison_notes() -> list[str]:
    """Return what one needs to read the comparisons."""
    return [
        "Of the 95 % intervals, * marks those that exclude 0. paired: over the same items; unpaired: usually wider. "
        "These cover the sampling of items, not the variation of training runs. None are corrected for their number."
    ]


def repeats_note(seeds: int) -> str:
    """Return the note on tests over this number of seeds."""
    return (
        f"{seeds} seeds: each seed's difference counts once, as a repeat. Interval and p (t) are those of the "
        f"paired t test with {seeds - 1} degree{'s' * (seeds > 2)} of freedom; p (flips) is of the exact sign-flip "
        f"permutation test, which with {seeds} seeds cannot give less than {least_p(seeds):.2g}. Few seeds show only "
        "large effects."
    )


def _reported(study: Study) -> Reported:
    assert study.paper is not None
    return read_reported(study.paper.table, study.paper.setting)


def _shown(study: Study, cells: Cells) -> Cells:
    """Return the cells of this study's methods and seeds."""
    return {
        cell: values
        for cell, values in cells.items()
        if cell.method in study.methods and cell.seed in study.seeds
    }


def _figures(study: Study, shown: Cells, benchmark: str) -> Figures:
    """Return the metrics files of a benchmark by method, in the order of the table."""
    return {
        method: [values for cell, values in shown.items() if cell[::2] == (method, benchmark)]
        for method in study.methods
    }
