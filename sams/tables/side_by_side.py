"""Page of two methods' answers side by side, with the judge's verdicts, in one self-contained file.

The filters are part of the address: `page.html#on=mt_bench&better=base&text=divide`.
"""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sams.runtime.errors import UserError
from sams.scoring.inputs import read_json_lines, read_json_rows, some_of
from sams.study.study import BASE_METHOD, Study
from sams.tables import captions
from sams.tables.benchmarks import BENCHMARKS, judged
from sams.tables.comparisons import paired_difference
from sams.tables.pages import render_page
from sams.tables.render import number
from sams.tables.results import Cell, read_cells

TIES = {"alpaca_eval": 1.0, "mt_bench": 0.0}  # largest difference of two answers that are shown as equal
TURNS = (1, 2)


class Side(NamedTuple):
    """One method's answers to an item, with a verdict and the judge's explanation for each turn, and its score."""

    answers: list[str]
    verdicts: list[str]
    explanations: list[str]
    score: float


class Item(NamedTuple):
    """An item: its questions by turn, both methods' answers, and the better side (method, base or equal)."""

    name: str
    questions: list[str]
    method: Side
    base: Side
    better: str
    baseline: str | None = None


class Section(NamedTuple):
    """The part of the page for one benchmark: its items and their summary."""

    key: str
    title: str
    judge: str
    columns: list[str]
    scores: list[list[str]]
    difference: str
    items: list[Item]

    @property
    def counts(self) -> Counter[str]:
        """Number of items by better side."""
        return Counter(item.better for item in self.items)


def pairs(study: Study) -> list[tuple[str, str]]:
    """Pairs of methods shown on one page: each method with `sft`, and with the first of the others.

    Empty if no benchmark of the study has a judge.
    """
    if not judged(study):
        return []
    start = [BASE_METHOD] if BASE_METHOD in study.methods else []
    others = [method for method in study.methods if method != BASE_METHOD]
    return [(method, base) for base in [*start, *others[:1]] for method in others if method != base]


def page(study: Study, results: Path, method: str, base: str) -> str:
    """Return the page of two methods, with the answers of the study's first seed.

    Args:
        study: the study.
        results: folder of its setting.
        method: a method.
        base: the method to compare it with.

    Raises:
        UserError: a file is broken, or the methods were scored on different questions or by different judges.
    """
    seed = study.seeds[0]
    folders = {name: results / name / f"seed{seed}" for name in (method, base)}
    cells = read_cells(results)
    shown = {cell: values for cell, values in cells.items() if cell.method in folders and cell.seed == seed}
    sections = []
    for name in judged(study):
        figures = [shown.get(Cell(one, seed, name), {}) for one in folders]
        sections.append(SECTIONS[name](folders, figures, results / "questions"))
    return render_page(
        "side_by_side",
        study=study,
        seed=seed,
        method=method,
        base=base,
        benchmarks=sections,
        judge_note=captions.judge_note(study, shown),
        rehearsal_note=captions.rehearsal_note(study),
    )


# --- AlpacaEval -----------------------------------------------------------------------------------


def alpaca_eval(
    folders: Mapping[str, Path], figures: Sequence[Mapping[str, Any]], questions: Path
) -> Section:
    """Instructions with both answers and the preference for each over the baseline's answer.

    Args:
        folders: folder of the seed by name: the method, then the base.
        figures: AlpacaEval's figures of both methods.
        questions: not read; annotations contain the instructions.
    """
    files, scores = _judged("alpaca_eval", folders)
    rows = [{row["instruction"]: row for row in read_json_rows(file)} for file in files]
    items = []
    for instruction in scores[0]:
        method, base = (
            Side(
                answers=[of[instruction]["output_2"]],
                verdicts=[f"preferred with {number(values[instruction], 1)} %"],
                explanations=[],
                score=values[instruction],
            )
            for of, values in zip(rows, scores, strict=True)
        )
        better = _better(method, base, TIES["alpaca_eval"])
        row = rows[0][instruction]
        items.append(Item(row.get("dataset", ""), [instruction], method, base, better, row["output_1"]))
    answers = [[row["output_2"] for row in of.values()] for of in rows]
    table = [
        [
            name,
            number(values.get("length_controlled_winrate"), 1),
            number(values.get("win_rate"), 1),
            *lengths(texts),
        ]
        for name, values, texts in zip(folders, figures, answers, strict=True)
    ]
    baseline = [row["output_1"] for row in rows[0].values()]
    return Section(
        key="alpaca_eval",
        title=BENCHMARKS["alpaca_eval"].title,
        judge=_one_judge([row.get("judge", "unknown") for of in rows for row in of.values()], files),
        columns=["", "LC win rate", "win rate", *LENGTHS],
        scores=[*table, ["baseline", number(None, 1), number(None, 1), *lengths(baseline)]],
        difference=_difference(list(folders), scores, "win rate", "points", "instructions"),
        items=items,
    )


# --- MT-Bench -------------------------------------------------------------------------------------


def mt_bench(folders: Mapping[str, Path], figures: Sequence[Mapping[str, Any]], questions: Path) -> Section:
    """Questions of two turns with both methods' answers, and the judge's rating and explanation for each.

    Args:
        folders: folder of the seed by name: the method, then the base.
        figures: MT-Bench's figures of both methods.
        questions: folder of the study's questions.
    """
    files, scores = _judged("mt_bench", folders)
    rated = [{(str(row["question_id"]), row["turn"]): row for row in read_json_lines(file)} for file in files]
    answers_of = [_answers(folder / BENCHMARKS["mt_bench"].answers) for folder in folders.values()]
    items = []
    for question in read_json_lines(questions / "mt_bench_questions.jsonl"):
        key = str(question["question_id"])
        if key not in scores[0]:
            continue
        method, base = (
            Side(
                answers=answers[key],
                verdicts=[f"rated {judged[key, turn]['score']:g}" for turn in TURNS],
                explanations=[judged[key, turn]["judgment"] for turn in TURNS],
                score=values[key],
            )
            for answers, judged, values in zip(answers_of, rated, scores, strict=True)
        )
        better = _better(method, base, TIES["mt_bench"])
        items.append(Item(f"question {key}, {question['category']}", question["turns"], method, base, better))
    table = [
        [
            name,
            *(number(values.get(key), 2) for key in ("average", "turn_1", "turn_2")),
            *lengths([turn for turns in answers.values() for turn in turns]),
        ]
        for name, values, answers in zip(folders, figures, answers_of, strict=True)
    ]
    return Section(
        key="mt_bench",
        title=BENCHMARKS["mt_bench"].title,
        judge=_one_judge([row["judge"][0] for judged in rated for row in judged.values()], files),
        columns=["", "average", "first turn", "second turn", *LENGTHS],
        scores=table,
        difference=_difference(list(folders), scores, "average", "of 10", "questions"),
        items=items,
    )


def _answers(path: Path) -> dict[str, list[str]]:
    """Answers of both turns by question id."""
    return {str(row["question_id"]): row["choices"][0]["turns"] for row in read_json_lines(path)}


SECTIONS = {"alpaca_eval": alpaca_eval, "mt_bench": mt_bench}


# --- all benchmarks -------------------------------------------------------------------------------

LENGTHS = ["mean length", "median length", "longest"]


def lengths(texts: Sequence[str]) -> list[str]:
    """Lengths of answers in characters, in the order of LENGTHS."""
    sizes = [len(text) for text in texts]
    return [number(value, 0) for value in (statistics.fmean(sizes), statistics.median(sizes), max(sizes))]


def _judged(name: str, folders: Mapping[str, Path]) -> tuple[list[Path], list[dict[str, float]]]:
    """Return the files of verdicts of both methods and their scores by item.

    Raises:
        UserError: the methods were judged on different items.
    """
    files = [folder / BENCHMARKS[name].judged for folder in folders.values()]
    scores = [items for file in files for items in BENCHMARKS[name].items(file).values()]
    if differing := sorted(scores[0].keys() ^ scores[1].keys()):
        raise UserError(
            f"judged on other questions than {files[0]}: {some_of(differing)}",
            where=str(files[1]),
            remedy="delete both and score again",
        )
    return files, scores


def _better(method: Side, base: Side, tie: float) -> str:
    difference = method.score - base.score
    if abs(difference) <= tie:
        return "equal"
    return "method" if difference > 0 else "base"


def _difference(names: list[str], scores: list[dict[str, float]], score: str, unit: str, items: str) -> str:
    """Return the difference between both methods, with its paired interval."""
    *values, count = paired_difference(*scores)
    mean, low, high = (f"{value:+.2f}".replace("-", "−") for value in values)
    return (
        f"{names[0]} − {names[1]}, {score}: {mean} {unit} (95 % interval {low} to {high}, paired bootstrap "
        f"over {count} {items}, this seed)"
    )


def _one_judge(judges: Sequence[str], files: Sequence[Path]) -> str:
    """Return the judge of both methods.

    Raises:
        UserError: there are several.
    """
    if len(names := sorted(set(judges))) > 1:
        raise UserError(
            f"judgments of {some_of(names)} are not comparable",
            where=" and ".join(map(str, files)),
            remedy="score both methods with one judge",
        )
    return names[0]
