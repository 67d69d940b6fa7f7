"""Answers of two methods beside each other, with the judge's verdicts: a page that needs no other file.

    python -m sams.tables.side_by_side --study-config study.json --results results/<study>/<setting> \
        --method dpo-sams --base sft --out page.html

What models and judges said is escaped, and the page's own policy lets no other script run and nothing be
loaded. Its filters are part of the address: `page.html#on=mt_bench&better=base&text=divide`.
"""

import base64
import hashlib
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from sams.runtime.errors import UserError
from sams.runtime.files import whole_file
from sams.runtime.stage import read_recipe, run
from sams.scoring.inputs import read_json_lines, read_json_rows, some_of
from sams.study.study import BASE_METHOD, Study
from sams.tables import captions
from sams.tables.comparisons import alpaca_eval_items, mt_bench_items, paired_difference
from sams.tables.render import number
from sams.tables.results import Cell, read_cells

# Preferences are probabilities, in percent: less than a point is no difference to a reader.
ALPACA_EVAL_TIE = 1.0
MT_BENCH_TIE = 0.0
TURNS = (1, 2)


class Side(NamedTuple):
    """One method's part in an item, turn by turn: its answers, verdicts, the judge's words; its score."""

    answers: list[str]
    verdicts: list[str]
    words: list[str]
    score: float


class Item(NamedTuple):
    """A question turn by turn, both methods' answers, and who did better: method, base or equal."""

    name: str
    questions: list[str]
    method: Side
    base: Side
    better: str
    baseline: str | None = None


class Benchmark(NamedTuple):
    """A benchmark's items and what they come to."""

    key: str
    title: str
    judge: str
    columns: list[str]
    scores: list[list[str]]
    difference: str
    items: list[Item]

    @property
    def counts(self) -> Counter[str]:
        """How many items the method, the base and neither did better on."""
        return Counter(item.better for item in self.items)


def pairs(study: Study) -> list[tuple[str, str]]:
    """Methods with what each is shown beside: the start of all, and the first one of the others."""
    start = [BASE_METHOD] if BASE_METHOD in study.methods else []
    others = [method for method in study.methods if method != BASE_METHOD]
    return [(method, base) for base in [*start, *others[:1]] for method in others if method != base]


def page(study: Study, results: Path, method: str, base: str) -> str:
    """The page of two methods, with the answers of the study's first seed.

    Args:
        study: the study.
        results: folder of its setting.
        method: a method.
        base: what it is shown beside.

    Raises:
        UserError: a broken file, or methods that were scored on other questions or by other judges.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    seed = study.seeds[0]
    folders = {name: results / name / f"seed{seed}" for name in (method, base)}
    cells = read_cells(results)
    shown = {cell: found for cell, found in cells.items() if cell.method in folders and cell.seed == seed}
    benchmarks = []
    if study.benchmarks.alpaca_eval is not None:
        figures = [shown.get(Cell(name, seed, "alpaca_eval"), {}) for name in folders]
        benchmarks.append(alpaca_eval(folders, figures))
    if study.benchmarks.mt_bench is not None:
        figures = [shown.get(Cell(name, seed, "mt_bench"), {}) for name in folders]
        benchmarks.append(mt_bench(folders, figures, results / "questions" / "mt_bench_questions.jsonl"))
    templates = Environment(
        loader=PackageLoader("sams.tables"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = templates.get_template("side_by_side.js").render()
    return templates.get_template("side_by_side.html").render(
        study=study,
        seed=seed,
        method=method,
        base=base,
        benchmarks=benchmarks,
        judge_note=captions.judge_note(study, shown),
        rehearsal_note=captions.rehearsal_note(study),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


# --- AlpacaEval -----------------------------------------------------------------------------------


def alpaca_eval(folders: Mapping[str, Path], figures: Sequence[Mapping[str, Any]]) -> Benchmark:
    """Instructions with both answers and the preference for each over the baseline's answer.

    Args:
        folders: folder of the seed by name: the method, then the base.
        figures: AlpacaEval's figures of both.
    """
    files = [folder / "alpaca_eval" / "annotations.json" for folder in folders.values()]
    rows = [{row["instruction"]: row for row in read_json_rows(file)} for file in files]
    scores = [alpaca_eval_items(file) for file in files]
    _check_same(scores, files)
    items = []
    for instruction in scores[0]:
        method, base = (
            Side(
                answers=[of[instruction]["output_2"]],
                verdicts=[f"preferred with {number(values[instruction], 1)} %"],
                words=[],
                score=values[instruction],
            )
            for of, values in zip(rows, scores, strict=True)
        )
        better = _better(method, base, ALPACA_EVAL_TIE)
        row = rows[0][instruction]
        items.append(Item(row.get("dataset", ""), [instruction], method, base, better, row["output_1"]))
    answers = [[row["output_2"] for row in of.values()] for of in rows]
    table = [
        [
            name,
            number(found.get("length_controlled_winrate"), 1),
            number(found.get("win_rate"), 1),
            *_lengths(texts),
        ]
        for name, found, texts in zip(folders, figures, answers, strict=True)
    ]
    baseline = [row["output_1"] for row in rows[0].values()]
    return Benchmark(
        key="alpaca_eval",
        title="AlpacaEval 2",
        judge=_one_judge([row.get("judge", "unknown") for of in rows for row in of.values()], files),
        columns=["", "LC win rate", "win rate", *LENGTHS],
        scores=[*table, ["baseline", number(None, 1), number(None, 1), *_lengths(baseline)]],
        difference=_difference(list(folders), scores, "win rate", "points", "instructions"),
        items=items,
    )


# --- MT-Bench -------------------------------------------------------------------------------------


def mt_bench(folders: Mapping[str, Path], figures: Sequence[Mapping[str, Any]], questions: Path) -> Benchmark:
    """Questions of two turns with both methods' answers, and the judge's rating and words of each.

    Args:
        folders: folder of the seed by name: the method, then the base.
        figures: MT-Bench's figures of both.
        questions: the questions, in FastChat's form.
    """
    files = [folder / "mt_bench" / "judgments.jsonl" for folder in folders.values()]
    scores = [mt_bench_items(file) for file in files]
    _check_same(scores, files)
    rated = [{(str(row["question_id"]), row["turn"]): row for row in read_json_lines(file)} for file in files]
    said = [_answers(folder / "mt_bench" / "answers.jsonl") for folder in folders.values()]
    items = []
    for question in read_json_lines(questions):
        key = str(question["question_id"])
        if key not in scores[0]:
            continue
        method, base = (
            Side(
                answers=answers[key],
                verdicts=[f"rated {judged[key, turn]['score']:g}" for turn in TURNS],
                words=[judged[key, turn]["judgment"] for turn in TURNS],
                score=values[key],
            )
            for answers, judged, values in zip(said, rated, scores, strict=True)
        )
        better = _better(method, base, MT_BENCH_TIE)
        items.append(Item(f"question {key}, {question['category']}", question["turns"], method, base, better))
    table = [
        [
            name,
            *(number(found.get(key), 2) for key in ("average", "turn_1", "turn_2")),
            *_lengths([turn for turns in answers.values() for turn in turns]),
        ]
        for name, found, answers in zip(folders, figures, said, strict=True)
    ]
    return Benchmark(
        key="mt_bench",
        title="MT-Bench",
        judge=_one_judge([row["judge"][0] for judged in rated for row in judged.values()], files),
        columns=["", "average", "first turn", "second turn", *LENGTHS],
        scores=table,
        difference=_difference(list(folders), scores, "average", "of 10", "questions"),
        items=items,
    )


def _answers(path: Path) -> dict[str, list[str]]:
    return {str(row["question_id"]): row["choices"][0]["turns"] for row in read_json_lines(path)}


# --- both -----------------------------------------------------------------------------------------

LENGTHS = ["mean length", "median length", "longest"]


def _lengths(texts: Sequence[str]) -> list[str]:
    """Lengths of answers in characters, in the order of LENGTHS."""
    sizes = [len(text) for text in texts]
    return [number(value, 0) for value in (statistics.fmean(sizes), statistics.median(sizes), max(sizes))]


def _better(method: Side, base: Side, tie: float) -> str:
    difference = method.score - base.score
    if abs(difference) <= tie:
        return "equal"
    return "method" if difference > 0 else "base"


def _difference(names: list[str], scores: list[dict[str, float]], score: str, unit: str, items: str) -> str:
    """The difference between both, with its paired interval."""
    *values, count = paired_difference(*scores)
    mean, low, high = (f"{value:+.2f}".replace("-", "−") for value in values)
    return (
        f"{names[0]} − {names[1]}, {score}: {mean} {unit} (95 % interval {low} to {high}, paired bootstrap "
        f"over {count} {items}, this seed)"
    )


def _check_same(scores: Sequence[Mapping[str, float]], files: Sequence[Path]) -> None:
    if differing := sorted(scores[0].keys() ^ scores[1].keys()):
        raise UserError(
            f"judged on other questions than {files[0]}: {some_of(differing)}",
            where=str(files[1]),
            remedy="delete both and score again",
        )


def _one_judge(judges: Sequence[str], files: Sequence[Path]) -> str:
    if len(names := sorted(set(judges))) > 1:
        raise UserError(
            f"judgments of {some_of(names)} do not compare with one another",
            where=" and ".join(map(str, files)),
            remedy="score both methods with one judge",
        )
    return names[0]


def main(
    study_config: Annotated[str, typer.Option(help="Study, as JSON or a JSON file.")],
    results: Annotated[Path, typer.Option(help="Folder of the study's setting: results/<study>/<setting>.")],
    method: Annotated[str, typer.Option(help="A method of the study.")],
    base: Annotated[str, typer.Option(help="The method that it is shown beside.")],
    out: Annotated[Path, typer.Option(help="The page.")],
) -> None:
    """Write the page of two methods' answers."""
    text = page(read_recipe(study_config, Study), results, method, base)
    with whole_file(out) as part:
        part.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    run(main)
