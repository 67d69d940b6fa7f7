"""Page of two methods' answers side by side, with the judge's verdicts, in one self-contained file.

The filters are part of the address: `page.html#on=mt_bench&better=base&text=divide`.
"""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sams.runtime.errors import UserError
from sams.scoring.benchmark import Benchmark
from sams.scoring.inputs import some_of
from sams.scoring.table import judged
from sams.study.study import BASE_METHOD, Study
from sams.tables import captions
from sams.tables.comparisons import paired_difference
from sams.tables.pages import render_page
from sams.tables.render import MISSING, number
from sams.tables.results import Cell, read_cells


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
    verdict_note: str
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
    for benchmark in judged(study):
        figures = [shown.get(Cell(one, seed, benchmark.name), {}) for one in folders]
        sections.append(section(benchmark, folders, figures, results / "questions" / benchmark.name))
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


def section(
    benchmark: Benchmark,
    folders: Mapping[str, Path],
    figures: Sequence[Mapping[str, Any]],
    questions: Path,
) -> Section:
    """Return the part of the page for one benchmark.

    Args:
        benchmark: the benchmark.
        folders: folder of the seed by name: the method, then the base.
        figures: the benchmark's figures of both methods.
        questions: folder of the benchmark's questions.
    """
    files = [folder / benchmark.judged for folder in folders.values()]
    scores = [next(iter(benchmark.items(file).values())) for file in files]
    shown = [benchmark.shown(folder, questions) for folder in folders.values()]
    _check_same(shown, files)
    start_is_base = benchmark.start and BASE_METHOD in folders  # its answers are shown already
    items = []
    for key, one in shown[0].items():
        if not all(key in of for of in scores):  # a judgment is missing
            continue
        method, base = (
            Side(of[key].answers, of[key].verdicts, of[key].explanations, values[key])
            for of, values in zip(shown, scores, strict=True)
        )
        better = _better(method, base, benchmark.tie)
        baseline = None if start_is_base else one.baseline
        items.append(Item(one.name, one.questions, method, base, better, baseline))
    table = [
        [
            name,
            *(number(values.get(key), decimals) for _, key, decimals in benchmark.page_scores),
            *lengths([answer for item in of.values() for answer in item.answers]),
        ]
        for name, values, of in zip(folders, figures, shown, strict=True)
    ]
    if baselines := [item.baseline for item in items if item.baseline is not None]:
        table.append(["baseline", *(MISSING for _ in benchmark.page_scores), *lengths(baselines)])
    return Section(
        key=benchmark.name,
        title=benchmark.title,
        judge=_one_judge([item.judge for of in shown for item in of.values() if item.judge], files),
        columns=["", *(heading for heading, _, _ in benchmark.page_scores), *LENGTHS],
        scores=table,
        difference=_difference(list(folders), scores, benchmark.compared),
        verdict_note=benchmark.verdict_note,
        items=items,
    )


LENGTHS = ["mean length", "median length", "longest"]


def lengths(texts: Sequence[str]) -> list[str]:
    """Lengths of answers in characters, in the order of LENGTHS."""
    sizes = [len(text) for text in texts]
    return [number(value, 0) for value in (statistics.fmean(sizes), statistics.median(sizes), max(sizes))]


def _check_same(shown: Sequence[Mapping[str, Any]], files: Sequence[Path]) -> None:
    """Check that both methods were judged on the same items.

    Raises:
        UserError: an item of one is none of the other.
    """
    if differing := sorted(shown[0].keys() ^ shown[1].keys()):
        raise UserError(
            f"judged on other questions than {files[0]}: {some_of(differing)}",
            where=str(files[1]),
            remedy="delete both and score again",
        )


def _better(method: Side, base: Side, tie: float) -> str:
    difference = method.score - base.score
    if abs(difference) <= tie:
        return "equal"
    return "method" if difference > 0 else "base"


def _difference(names: list[str], scores: list[dict[str, float]], compared: tuple[str, str, str]) -> str:
    """Return the difference between both methods, with its paired interval."""
    score, unit, items = compared
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
    return names[0] if names else "none was needed"
