"""Interface of a benchmark: its files, its columns, its notes and its part of the answers page.

A benchmark is one file in this folder, a line in `sams.scoring.table`, and a class and a field in
`sams.study.settings.benchmarks`. Of its three parts each stage depends on its own (`sams.study.code`):

* `QUESTIONS`, a `QuestionSet`: questions and answers, for stages `prepare_questions` and `generate_answers`;
* `main`: the command line of stage `score_<name>`, which writes metrics.json and the judged file;
* `BENCHMARK`, a `Benchmark`: what the workflow, the plan, tables and pages have to know.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from sams.judge.calls import Call
from sams.study.settings import Judge

Items = dict[str, float]
ByColumn = dict[str, Items]
"""Scores of items by column of the main table that is their mean."""

Figures = Mapping[str, Sequence[Mapping[str, Any]]]
"""Contents of the existing metrics.json files of a benchmark by method, one for each seed."""


class Score(NamedTuple):
    """A column of the main table.

    Args:
        column: name of the column.
        benchmark: name of the benchmark, or `train` for a figure of the training job.
        key: the figure's key in metrics.json.
        se_key: key of its standard error over items.
        decimals: decimals shown, as many as the standard error justifies.
        label: name of the score in the paper's tables.
        unit: its unit, for headings.
    """

    column: str
    benchmark: str
    key: str
    se_key: str
    decimals: int
    label: str
    unit: str = ""


class Work(NamedTuple):
    """Work of a benchmark for one model: prompts to answer, the judge's calls, and tokens of a call.

    Args:
        prompts: number of prompts, each turn of a dialogue being one; several samples of an answer are not counted.
        calls: calls of the judge.
        prompt_tokens: mean number of tokens of a call's prompt.
        answer_tokens: mean number of tokens of the judge's answer.
    """

    prompts: int = 0
    calls: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0


class Shown(NamedTuple):
    """An item of one method on the page of two methods' answers.

    Args:
        name: name of the item; may be empty.
        questions: the question of each turn.
        answers: the method's answer to each.
        verdicts: the judge's verdict on each.
        explanations: the judge's words on each; empty for a judge that gives none.
        judge: name of the judge; empty for an item that was not judged.
        baseline: the answer of a baseline; None without one.
    """

    name: str
    questions: list[str]
    answers: list[str]
    verdicts: list[str]
    explanations: list[str]
    judge: str
    baseline: str | None = None


class Benchmark:
    """One benchmark."""

    name: ClassVar[str]
    """Its key in the settings, the name of its file here, and of its folder below a seed folder."""
    title: ClassVar[str]
    """Its published name."""

    # --- files, below the seed folder ---
    answers: ClassVar[str] = ""
    """The answers that are scored; empty if a benchmark asks and scores in one job."""
    judged: ClassVar[str]
    """The verdicts or scores of each item."""
    answers_key: ClassVar[str] = "answers"
    """Key of the SHA-256 of `answers` among the `inputs` of metrics.json."""

    # --- the rules ---
    has_judge: ClassVar[bool] = True
    """Whether a judge scores the answers, which a page then shows with its verdicts."""
    judgment: ClassVar[str] = "pair"
    """What the judge gives, which stage `preflight` tries: pair (the better of two answers, by its label), rating, or
    own, for which the calls of `trial` are made."""
    asks_test_prompts: ClassVar[bool] = False
    """Whether the questions are the prompts of the test pairs, and not files of stage `prepare_questions`."""
    needs_gpu: ClassVar[bool] = False
    """Whether the scoring stage computes with a model."""
    inputs: ClassVar[tuple[str, ...]] = ("answers", "questions")
    """Inputs of the scoring rule, of: answers, questions, data, model, start, difficulty."""
    options: ClassVar[Mapping[str, str]] = {}
    """Options of the scoring stage, besides `--out` and `given`: {questions} is the folder of its questions,
    {input.<name>} and {output.<name>} are files; output `judged` and those of `outputs`."""
    given: ClassVar[tuple[str, ...]] = ("answers",)
    """Inputs that are options of their own names; an input without a file, such as `start` for the start model, is
    left out."""
    outputs: ClassVar[Mapping[str, str]] = {}
    """Further files that the scoring stage writes, by the name of the rule's output."""
    start: ClassVar[str] = ""
    """File of the start model that is input `start` of the other methods' scoring."""

    # --- tables ---
    scores: ClassVar[Sequence[Score]] = ()
    """Columns of the main table."""
    in_every_table: ClassVar[bool] = False
    """Whether every main table has these columns, also of studies without the benchmark."""
    wins: ClassVar[Mapping[str, str]] = {}
    """Columns with the share of items on which a method is better than a base, by the column whose items say so."""
    comparison_notes: ClassVar[Sequence[str]] = ()
    """Notes below the differences between methods."""

    # --- the page of two methods' answers ---
    page_scores: ClassVar[Sequence[tuple[str, str, int]]] = ()
    """Heading, key in metrics.json and decimals of the scores on the page."""
    compared: ClassVar[tuple[str, str, str]] = ("", "", "")
    """Score whose difference the page gives, its unit, and the noun of the items."""
    tie: ClassVar[float] = 0.0
    """Largest difference of two items that are shown as equal."""
    verdict_note: ClassVar[str] = ""
    """What a verdict says."""

    @property
    def metrics(self) -> str:
        """The file with the figures, below the seed folder."""
        return f"{self.name}/metrics.json"

    def work(self, settings: Any, judge: Judge) -> Work:
        """Return the work for one model."""
        return Work()

    def trial(self) -> Sequence[Call]:
        """Return calls with a known judgment above one half, made before anything is trained."""
        return ()

    def columns(self, metrics: Mapping[str, Any]) -> Sequence[Score]:
        """Return the columns of the main table that a metrics.json has."""
        return self.scores

    def score_of(self, column: str) -> Score | None:
        """Return the score of a column of the main table; None if it is another benchmark's."""
        return next((score for score in self.scores if score.column == column), None)

    def items(self, path: Path) -> ByColumn:
        """Read the scores of items from `judged`, by the column that is their mean; the page shows the first.

        Raises:
            UserError: the file is broken.
        """
        raise NotImplementedError

    def notes(self, settings: Any, figures: Figures) -> list[str]:
        """Return notes below the main table: what is scored, and what is missing.

        Args:
            settings: the benchmark's settings.
            figures: the metrics.json files of the methods, in the order of the table.
        """
        return []

    def shown(self, run: Path, questions: Path) -> dict[str, Shown]:
        """Return the items of a run for the page of two methods' answers, under the names of `items`.

        Args:
            run: seed folder of a method.
            questions: folder of the questions.
        """
        raise NotImplementedError


def values_of(figures: Figures, key: str) -> list[Any]:
    """Return the known values of a key of metrics.json, of all methods and seeds."""
    found = [metrics.get(key) for of_method in figures.values() for metrics in of_method]
    return [value for value in found if value is not None]


def spread(numbers: Iterable[float]) -> str:
    """Return the range of numbers in words: `805`, `79 to 80`, or `no`."""
    distinct = sorted(set(numbers))
    if not distinct:
        return "no"
    return f"{distinct[0]:g}" if len(distinct) == 1 else f"{distinct[0]:g} to {distinct[-1]:g}"


NAMED = 3


def named(figures: Figures, key: str) -> str:
    """Return the number of judgments under key `missing` or `doubtful`, and the first of them with their reasons."""
    found = [
        f"{method}, {name}: {reason}"
        for method, of_method in figures.items()
        for metrics in of_method
        for name, reason in (metrics.get(key) or {}).items()
    ]
    if not found:
        return f"none {key}"
    more = f"; and {len(found) - NAMED} more" if len(found) > NAMED else ""
    return f"{len(found)} {key} ({'; '.join(found[:NAMED])}{more})"


def noise_notes(title: str, figures: Figures, se_key: str) -> list[str]:
    """Return the note on the judge's part of the standard error; none without repeated judgments."""
    keys = ("judge_standard_error", se_key)
    known = [one for of in figures.values() for one in of if all(one.get(key) is not None for key in keys)]
    if not known:
        return []
    judge, total = (math.sqrt(statistics.fmean(one[key] ** 2 for one in known)) for key in keys)
    repeats = spread(one["recipe"]["repeats"] for one in known)
    share = f", {judge**2 / total**2:.0%} of its variance" if total else ""
    return [
        f"{title}: {repeats} judgments of each item, averaged. The judge's noise gives the score a standard error of "
        f"{judge:.2g}; the ± over items, {total:.2g}, contains it{share}."
    ]
