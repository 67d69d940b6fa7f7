"""Stage `score_alpaca_eval`: AlpacaEval 2 of one model's outputs, by the unmodified package.

    python -m sams.scoring.alpaca_eval --model-outputs answers.json --reference-outputs baseline.json \
        --recipe recipe.json --difficulty difficulty.csv --out metrics.json

The package silently scores missing, repeated and reordered rows. Here, rows are put into order by instruction or
refused, and every instruction must have a judgment. The prompts are those of the package; `sams.judge` requests the
judgments, and the package computes the figures.
"""

import functools
import json
import logging
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

import typer

from sams.judge.ask import (
    DEFAULT_MODEL,
    DryRun,
    Judgment,
    Judgments,
    ask_judge,
    check_missing,
    judge_name,
)
from sams.judge.calls import Reading, is_snapshot
from sams.judge.noise import judge_standard_error
from sams.judge.store import USUAL_ANSWER_TOKENS
from sams.runtime.errors import UserError
from sams.runtime.files import whole_file
from sams.runtime.stage import read_recipe, run
from sams.scoring.alpaca_eval_run import PairCall, compute_figures, pair_calls
from sams.scoring.benchmark import (
    Benchmark,
    ByColumn,
    Figures,
    Items,
    Score,
    Shown,
    Work,
    named,
    noise_notes,
    spread,
    values_of,
)
from sams.scoring.difficulty_table import check_reference, check_table, read_table
from sams.scoring.inputs import Row, doubled, input_hashes, numbered, read_rows, some_of, text_of, versions
from sams.scoring.job import DryRunOption, MissingOption, RecipeOption, StoreOption, run_scoring
from sams.scoring.question_set import Decoded, Decoder, Prepared, QuestionSet, user
from sams.study.recipes import ScoreRecipe
from sams.study.settings import AlpacaEval, Judge, World
from sams.world import examples as synthetic

log = logging.getLogger("alpaca_eval")

Key = tuple[str, str, str]  # instruction, baseline's output, model's output

ANNOTATOR = "weighted_alpaca_eval_gpt4_turbo"
DRAW = 1.5
NOTHING_FITTED = 1e-3  # points
COUNTS = ("n_wins", "n_wins_base", "n_draws", "n_total")
RATES = ("win_rate", "standard_error", "discrete_win_rate")


def score_alpaca_eval(
    model_outputs: Path,
    reference_outputs: Path,
    *,
    recipe: ScoreRecipe | None = None,
    annotations: Path | None = None,
    difficulty: Path | None = None,
    annotations_out: Path | None = None,
    accept_missing: int = 0,
    judge_store: Path | None = None,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Score a model's outputs against the baseline's.

    Args:
        model_outputs: rows {instruction, output, generator} as JSON, gzip or not.
        reference_outputs: rows of the baseline; their order is the order of the instructions.
        recipe: the judge; None if `annotations` holds every judgment.
        annotations: recorded judgments, in AlpacaEval's form. Missing ones are requested from the judge of the recipe
            if it made the recorded ones.
        difficulty: difficulty table; None gives no length-controlled win rate.
        annotations_out: file for all judgments.
        accept_missing: number of judgments that may be missing; the figures are then those of the others.
        judge_store: file of a remote endpoint's answers, which are not paid again.
        dry_run: only log the estimate of the judge's calls.

    Returns:
        AlpacaEval's figures by its own names (rates and standard errors in percentage points), `lc_standard_error`
        and `judge_standard_error` of repeated judgments (ours), and the inputs, versions and settings.

    Raises:
        UserError: inputs that the package would score wrongly, or judgments that are missing.
        DryRun: at the end of a dry run.
    """
    reference = read_outputs(reference_outputs)
    instructions = [row["instruction"] for row in reference]
    check_reference(instructions, reference[0]["generator"], str(reference_outputs))
    outputs, reordered = align(read_outputs(model_outputs), reference, str(model_outputs))
    if difficulty is not None:
        check_table(read_table(difficulty), instructions, str(difficulty))
    reason = lc_obstacle(outputs, reference, difficulty)

    recorded, recorded_by = _recorded(annotations) if annotations else ({}, None)
    unjudged = _unjudged(outputs, reference, recorded)
    asks = _is_asked(unjudged, recorded_by, annotations, recipe, accept_missing)
    if dry_run and not asks:
        raise DryRun
    judged, [judgments] = judge_outputs(
        recipe if asks else None, reference, [outputs], recorded, store=judge_store, dry_run=dry_run
    )
    requested = judge_name(recipe.judge) if recipe else DEFAULT_MODEL
    judge = judged.judge if judged else recorded_by or requested
    if recorded_by not in (None, judge):
        raise UserError(f"mixes judgments of {recorded_by} and {judge}", where=str(annotations))
    check_missing(judgments, accept_missing, str(annotations or model_outputs))
    rows = annotations_of(reference, outputs, judgments, annotator_name(judge, recipe))
    [computed] = compute_figures([rows], difficulty if reason is None else None)
    metrics = {
        **figures(computed, reason),
        "n_missing": sum(bool(judgment.missing) for judgment in judgments),
        "missing": {judgment.name: judgment.missing for judgment in judgments if judgment.missing},
        "judge_standard_error": judge_standard_error(judgments, 100),
        "judge": judge,
        "judge_calls": judged.facts if judged else None,
        "annotator": rows[0]["annotator"],
        "generator": outputs[0]["generator"],
        "reference": reference[0]["generator"],
        "order_repaired": reordered,
        "n_identical": sum(a["output"] == b["output"] for a, b in zip(outputs, reference, strict=True)),
        "n_empty": sum(not row["output"].strip() for row in outputs),
        "recipe": recipe.judge.model_dump(mode="json") if recipe else None,
        "versions": versions("alpaca-eval", "scikit-learn", "numpy", "pandas", "openai"),
        "inputs": input_hashes(
            {
                "model_outputs": model_outputs,
                "reference_outputs": reference_outputs,
                "annotations": annotations,
                "difficulty": difficulty,
            }
        ),
    }
    if annotations_out is not None:
        _write_annotations(annotations_out, rows, judge)
    return metrics


# --- rows -----------------------------------------------------------------------------------------


def read_outputs(path: Path) -> list[Row]:
    """Read the outputs of one model as rows {instruction, output, generator, dataset}.

    Raises:
        UserError: a row without text, a repeated instruction, several generators, or only empty outputs.
    """
    rows = []
    for where, row in numbered(path):
        rows.append(
            {
                "instruction": text_of(row, "instruction", where),
                "output": text_of(row, "output", where, empty=True),
                "generator": text_of(row, "generator", where),
                "dataset": str(row.get("dataset", "")),
            }
        )
    if twice := doubled([row["instruction"] for row in rows]):
        raise UserError(
            f"{len(twice)} instructions occur more than once: {some_of(twice)}",
            where=str(path),
            remedy="give one row per instruction",
        )
    if len(generators := sorted({row["generator"] for row in rows})) > 1:
        raise UserError(
            f"expected one generator, found {some_of(generators)}",
            where=str(path),
            remedy="give the outputs of one model",
        )
    if not any(row["output"].strip() for row in rows):
        raise UserError("all outputs are empty", where=str(path), remedy="check how they were generated")
    return rows


def align(outputs: Sequence[Row], reference: Sequence[Row], where: str) -> tuple[list[Row], bool]:
    """Return outputs in the order of the reference, and whether their order was another one.

    Raises:
        UserError: instructions that only one of the two has, or a model with the name of the baseline.
    """
    by_instruction = {row["instruction"]: row for row in outputs}
    required = [row["instruction"] for row in reference]
    absent = [instruction for instruction in required if instruction not in by_instruction]
    if absent:
        raise UserError(
            f"has no output for {len(absent)} of the {len(required)} reference instructions: {some_of(absent)}",
            where=where,
            remedy="generate an answer to every instruction",
        )
    if unknown := list(by_instruction.keys() - set(required)):
        raise UserError(
            f"{len(unknown)} instructions are not among the reference outputs: {some_of(sorted(unknown))}",
            where=where,
            remedy="give outputs for the instructions of the reference outputs",
        )
    if outputs[0]["generator"] == reference[0]["generator"]:
        # The package would compare the baseline with itself and report a length-controlled win rate of 50.
        raise UserError(
            f"its generator has the baseline's name, {outputs[0]['generator']!r}",
            where=where,
            remedy="give the model another name",
        )
    ordered = [by_instruction[instruction] for instruction in required]
    return ordered, ordered != list(outputs)


def lc_obstacle(outputs: Sequence[Row], reference: Sequence[Row], difficulty: Path | None) -> str | None:
    """Return the reason why there is no length-controlled win rate; None if there is one."""
    if difficulty is None:
        return "no difficulty table of these instructions was given"
    deltas = {len(a["output"]) - len(b["output"]) for a, b in zip(outputs, reference, strict=True)}
    if len(deltas) == 1:
        return "all outputs differ from the baseline's by the same length: length and quality cannot be separated"
    return None


# --- judgments ------------------------------------------------------------------------------------


def judge_outputs(
    recipe: ScoreRecipe | None,
    reference: Sequence[Row],
    models: Sequence[Sequence[Row]],
    recorded: Mapping[Key, float],
    *,
    store: Path | None,
    dry_run: bool = False,
) -> tuple[Judgments | None, list[list[Judgment]]]:
    """Return what the judge was asked, and a preference from 1 (baseline) to 2 (model) for each output of each model.

    Args:
        recipe: the judge; None requests no judgment.
        reference: the baseline's rows.
        models: rows of each model, in the same order.
        recorded: known preferences. Identical outputs are a draw without a call.
        store: file of a remote endpoint's answers.
        dry_run: only log the estimate of the calls.
    """
    pairs = [
        (ours, theirs, f"instruction {number}")
        for outputs in models
        for number, (theirs, ours) in enumerate(zip(reference, outputs, strict=True), start=1)
    ]
    called = {
        index: pair_calls(
            name, theirs, ours, log_probs=recipe.judge.log_probs or recipe.judge.kind == "local"
        )
        for index, (ours, theirs, name) in enumerate(pairs)
        if recipe is not None and needs_judge(theirs, ours, recorded)
    }
    judged = None
    answers: Iterator[Judgment] = iter(())
    if recipe is not None:
        calls = [each.call for of_pair in called.values() for each in of_pair]
        judged = ask_judge(recipe, calls, store=store, dry_run=dry_run)
        answers = iter(judged.each)
    preferences = []
    for index, (ours, theirs, name) in enumerate(pairs):
        if index in called:
            of_pair = [(each, next(answers)) for each in called[index]]
            preferences.append(_preference(name, of_pair))
        elif ours["output"] == theirs["output"]:
            preferences.append(Judgment(name, (Reading(DRAW),)))
        elif (known := recorded.get(key_of(theirs, ours))) is not None:
            preferences.append(Judgment(name, (Reading(known),)))
        else:
            preferences.append(Judgment(name, missing="not among the recorded judgments"))
    count = len(reference)
    return judged, [preferences[start : start + count] for start in range(0, len(preferences), count)]


def _preference(name: str, of_pair: Sequence[tuple[PairCall, Judgment]]) -> Judgment:
    """Return the mean preference over the orders of a pair, for each repeat; missing if one of them is."""
    for _, judgment in of_pair:
        if judgment.missing:
            return Judgment(name, missing=judgment.missing)
    repeats = zip(
        *([call.preference(r.value) for r in judgment.readings] for call, judgment in of_pair), strict=True
    )
    return Judgment(name, tuple(Reading(statistics.fmean(values)) for values in repeats))


def key_of(reference: Row, output: Row) -> Key:
    """Return the key of a judgment."""
    return reference["instruction"], reference["output"], output["output"]


def needs_judge(reference: Row, output: Row, recorded: Mapping[Key, float]) -> bool:
    """Return whether a pair needs a call."""
    return output["output"] != reference["output"] and key_of(reference, output) not in recorded


def annotator_name(judge: str, recipe: ScoreRecipe | None) -> str:
    """Return the name of the annotator: the package's for its judge, one of its own for each other judge."""
    if judge == DEFAULT_MODEL:
        return ANNOTATOR
    slug = re.sub(r"[^A-Za-z0-9.]+", "_", judge).strip("_")
    weighted = recipe is None or recipe.judge.log_probs or recipe.judge.kind == "local"
    return f"{'weighted_' if weighted else ''}alpaca_eval_{slug}"


def annotations_of(
    reference: Sequence[Row], outputs: Sequence[Row], judgments: Sequence[Judgment], annotator: str
) -> list[Row]:
    """Return judgments in AlpacaEval's form."""
    return [
        {
            "instruction": theirs["instruction"],
            "dataset": theirs["dataset"],
            "output_1": theirs["output"],
            "generator_1": theirs["generator"],
            "output_2": ours["output"],
            "generator_2": ours["generator"],
            "annotator": annotator,
            "preference": None if judgment.missing else judgment.value,
            **({"missing": judgment.missing} if judgment.missing else {}),
            **({"repeats": [r.value for r in judgment.readings]} if len(judgment.readings) > 1 else {}),
        }
        for theirs, ours, judgment in zip(reference, outputs, judgments, strict=True)
    ]


def _recorded(path: Path) -> tuple[dict[Key, float], str | None]:
    """Read recorded judgments and the name of their judge, without failed calls; None if there is no other call.

    Raises:
        UserError: another annotator, a preference out of range, contradicting rows, or several judges.
    """
    known: dict[Key, float] = {}
    judges = set()
    for where, row in numbered(path):
        annotator = row.get("annotator", ANNOTATOR)
        if annotator != ANNOTATOR and "judge" not in row:
            raise UserError(f"expected judgments of {ANNOTATOR}, found {annotator!r}", where=where)
        key = (
            text_of(row, "instruction", where),
            text_of(row, "output_1", where, empty=True),
            text_of(row, "output_2", where, empty=True),
        )
        preference = preference_of(row, where)
        if preference is None:
            continue
        if known.setdefault(key, preference) != preference:
            raise UserError(
                "contradicts an earlier judgment of the same outputs",
                where=where,
                remedy="give one judgment per instruction",
            )
        judges.add(row.get("judge", DEFAULT_MODEL))
    if len(judges) > 1:
        raise UserError(f"mixes judgments of {some_of(sorted(judges))}", where=str(path))
    return known, judges.pop() if judges else None


def preference_of(row: Row, where: str) -> float | None:
    """Return the preference of a recorded judgment from 1 to 2, or 0 for a draw; None for a call that failed.

    Raises:
        UserError: another value.
    """
    preference = row.get("preference")
    if preference is None or preference == -1:  # the package's mark of a call that failed
        return None
    if not isinstance(preference, int | float) or not (preference == 0 or 1 <= preference <= 2):
        raise UserError(
            f"expected a number from 1 to 2, found {preference!r:.40}",
            where=f"{where}, key 'preference'",
            remedy="give the annotations.json of AlpacaEval, which holds judgments",
        )
    return float(preference)


def _unjudged(outputs: Sequence[Row], reference: Sequence[Row], recorded: Mapping[Key, float]) -> list[str]:
    """Return the instructions that need a call."""
    return [
        ours["instruction"]
        for theirs, ours in zip(reference, outputs, strict=True)
        if needs_judge(theirs, ours, recorded)
    ]


def _is_asked(
    unjudged: Sequence[str],
    recorded_by: str | None,
    annotations: Path | None,
    recipe: ScoreRecipe | None,
    accept_missing: int,
) -> bool:
    """Return whether the judge of the recipe judges what is not recorded.

    Raises:
        UserError: judgments are missing, and the recipe does not have the judge of the recorded ones.
    """
    if not unjudged:
        log.info("no call of the judge is needed")
        return False
    requested = judge_name(recipe.judge) if recipe else None
    # The recorded name may be that of a snapshot.
    if requested is not None and is_snapshot(recorded_by or requested, requested):
        log.info("%d judgments are needed of %s", len(unjudged), requested)
        return True
    if len(unjudged) > accept_missing:
        raise UserError(
            f"{len(unjudged)} judgments are missing: {some_of(list(unjudged))}",
            where=str(annotations) if annotations else "--annotations",
            remedy="give judgments of exactly these outputs, or a --recipe with the judge"
            + (f" ({recorded_by}, as for the others)" if recorded_by else ""),
        )
    return False


def figures(metrics: Mapping[str, Any], lc_unavailable: str | None) -> dict[str, Any]:
    """Return AlpacaEval's figures by its own names, and our standard error of the length-controlled win rate."""
    if lc_unavailable is None and metrics.get("length_controlled_winrate") is None:
        raise RuntimeError("alpaca_eval gave no length-controlled win rate")
    lc, error = metrics.get("length_controlled_winrate"), metrics.get("lc_standard_error")
    if lc is not None and error is not None and max(abs(lc - 50), error) < NOTHING_FITTED:
        lc = error = None
        lc_unavailable = (
            f"{metrics['n_total']:.0f} instructions are too few: the fit's penalty leaves 50 for any"
        )
    lengths: dict[str, Any] = {"length_controlled_winrate": lc, "lc_standard_error": error}
    if lc_unavailable is not None:
        lengths["lc_unavailable"] = lc_unavailable
    return {
        **{key: metrics[key] for key in RATES},
        **lengths,
        **{key: int(metrics[key]) for key in COUNTS},
        "avg_length": int(metrics["avg_length"]),
    }


def _write_annotations(path: Path, annotations: Sequence[Row], judge: str) -> None:
    """Write judgments with the name of the judge, which AlpacaEval's form does not have."""
    with whole_file(path) as part:
        rows = [{**row, "judge": judge} for row in annotations]
        part.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


# --- questions and answers ------------------------------------------------------------------------


class Instructions(QuestionSet):
    """AlpacaEval's instructions, with the baseline's outputs, and a model's outputs."""

    key = "alpaca_eval"
    file = "alpaca_eval.json"

    def prepare(self, settings: AlpacaEval, world: World | None) -> dict[str, Prepared]:
        """Return the baseline's outputs, which the scorer must be able to read."""
        given = settings.reference_outputs
        if given is None:
            rows = synthetic.baseline_outputs(self.world(world, "reference_outputs"))
        else:
            with self.naming("reference_outputs"):
                rows = read_rows(Path(given))
                outputs = read_outputs(Path(given))
                check_reference([row["instruction"] for row in outputs], outputs[0]["generator"], given)
        return {self.file: Prepared(rows, given)}

    def check(self, settings: AlpacaEval, world: World | None) -> None:
        """Check the baseline's outputs, and that the difficulty table belongs to them."""
        rows = self.prepare(settings, world)[self.file].rows
        if settings.difficulty is not None and Path(settings.difficulty).is_file():
            table = read_table(Path(settings.difficulty))
            with self.naming("difficulty"):
                check_table(table, [row["instruction"] for row in rows], settings.difficulty)

    def read(self, folder: Path) -> tuple[list[Row], Path]:
        """Read rows {instruction, dataset}; return them and their file."""
        path = folder / self.file
        rows = numbered(path)
        for where, row in rows:
            text_of(row, "instruction", where)
        return [row for _, row in rows], path

    def answer(
        self, decoder: Decoder, rows: Sequence[Row], name: str
    ) -> tuple[list[Row], dict[str, Decoded]]:
        """Return outputs in AlpacaEval's form, in the order of the rows, and the answers by the name of their row.

        The form has one answer per row: of several samples the first, which does not depend on their number.
        """
        conversations = [[user(row["instruction"])] for row in rows]
        answers = decoder.answer(conversations, [decoder.decoding.temperature] * len(rows), self.key)
        outputs = [
            {
                "instruction": row["instruction"],
                "output": answer.text,
                "generator": name,
                "dataset": row.get("dataset", ""),
            }
            for row, answer in zip(rows, answers, strict=True)
        ]
        return outputs, {f"row {number}": answer for number, answer in enumerate(answers, start=1)}


QUESTIONS = Instructions()


# --- tables and pages -----------------------------------------------------------------------------


class AlpacaEval2(Benchmark):
    """AlpacaEval 2, with length control."""

    name, title = "alpaca_eval", "AlpacaEval 2"
    answers, answers_key = "alpaca_eval/answers.json", "model_outputs"
    judged = "alpaca_eval/annotations.json"
    inputs, given = ("answers", "questions", "difficulty"), ("difficulty",)
    options: ClassVar = {
        "model_outputs": "{input.answers}",
        "reference_outputs": "{questions}/alpaca_eval.json",
        "annotations_out": "{output.judged}",
    }
    scores = (
        Score(
            "length_controlled_winrate",
            "alpaca_eval",
            "length_controlled_winrate",
            "lc_standard_error",
            1,
            "LC win rate",
            "%",
        ),
        Score("win_rate", "alpaca_eval", "win_rate", "standard_error", 1, "win rate", "%"),
    )
    in_every_table = True
    page_scores = (("LC win rate", "length_controlled_winrate", 1), ("win rate", "win_rate", 1))
    compared = ("win rate", "points", "instructions")
    tie = 1.0
    verdict_note = (
        "A preference is the judge's probability that the answer is better than the baseline's. Equal: less than a "
        "point apart"
    )

    def work(self, settings: AlpacaEval, judge: Judge) -> Work:
        """Return the work of 805 instructions, in both orders of the outputs for a judge without log-probs.

        The judge's prompt, at four characters a token, is the template, an instruction, the baseline's output (3,612
        characters) and an output of 2,034.
        """
        orders, answer = (1, 1) if judge.log_probs else (2, USUAL_ANSWER_TOKENS)
        calls = 805 * orders * judge.repeats
        return Work(prompts=805, calls=calls, prompt_tokens=1410, answer_tokens=answer)

    def items(self, path: Path) -> ByColumn:
        """Return the preference for the model on each instruction, in percent: their mean is `win_rate`.

        AlpacaEval counts preferences from 1 (baseline) to 2 (model); older versions wrote 0 for a draw.
        """
        items: Items = {}
        for row in read_rows(path):
            preference = row.get("preference")
            if preference is not None and (preference == 0 or 1 <= preference <= 2):
                items[row["instruction"]] = 100 * ((preference or 1.5) - 1)
        return {"win_rate": items}

    def notes(self, settings: AlpacaEval, figures: Figures) -> list[str]:
        """Return the number of instructions, length control or the reason why it is missing, and answer lengths."""
        counts = values_of(figures, "n_total")
        notes = [
            f"AlpacaEval 2: win rates in percent over {spread(counts)} instructions, against the baseline; "
            f"judgments: {named(figures, 'missing')}."
        ]
        reasons = sorted({str(reason) for reason in values_of(figures, "lc_unavailable")})
        if reasons:
            notes.append(f"Length control: unavailable: {'; '.join(reasons)}.")
        elif settings.difficulty is None:
            notes.append(
                "Length control: with a difficulty table made for this study's own instructions, not the "
                "official one; its standard error is this project's bootstrap over instructions."
            )
        else:
            notes.append(
                f"Length control: with the difficulty table {settings.difficulty}; its standard error is this "
                "project's bootstrap over instructions."
            )
        lengths = {method: values_of({method: of}, "avg_length") for method, of in figures.items()}
        means = [f"{method} {statistics.fmean(known):.0f}" for method, known in lengths.items() if known]
        if means:
            notes.append(f"Mean answer length in characters: {', '.join(means)}.")
        return [*notes, *noise_notes("AlpacaEval 2, win rate", figures, "standard_error")]

    def shown(self, run: Path, questions: Path) -> dict[str, Shown]:
        """Return instructions with the model's output, the baseline's, and the preference."""
        preferences = self.items(run / self.judged)["win_rate"]
        return {
            row["instruction"]: Shown(
                name=row.get("dataset", ""),
                questions=[row["instruction"]],
                answers=[row["output_2"]],
                verdicts=[
                    f"preferred with {preferences[row['instruction']]:.1f} %"
                    if row["instruction"] in preferences
                    else "not judged"
                ],
                explanations=[],
                judge=row.get("judge", "unknown"),
                baseline=row["output_1"],
            )
            for row in read_rows(run / self.judged)
        }


BENCHMARK = AlpacaEval2()


# --- command line ---------------------------------------------------------------------------------


def main(
    model_outputs: Annotated[Path, typer.Option(help="Outputs of the model, JSON, gzip or not.")],
    reference_outputs: Annotated[Path, typer.Option(help="Outputs of the baseline.")],
    out: Annotated[Path, typer.Option(help="File for the figures (metrics.json).")],
    recipe: RecipeOption = None,
    annotations: Annotated[Path | None, typer.Option(help="Recorded judgments.")] = None,
    difficulty: Annotated[Path | None, typer.Option(help="Difficulty table, for length control.")] = None,
    annotations_out: Annotated[Path | None, typer.Option(help="File for all judgments.")] = None,
    accept_missing: MissingOption = 0,
    judge_store: StoreOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Score a model's outputs with AlpacaEval 2."""
    settings = read_recipe(recipe, ScoreRecipe) if recipe else None
    score = functools.partial(
        score_alpaca_eval,
        model_outputs,
        reference_outputs,
        annotations=annotations,
        difficulty=difficulty,
        annotations_out=annotations_out,
        accept_missing=max(accept_missing, settings.accept_missing if settings else 0),
    )
    metrics = run_scoring("score_alpaca_eval", score, settings, out, judge_store, dry_run)
    if metrics is None:
        return
    lc = metrics["length_controlled_winrate"]
    log.info(
        "%s: win rate %.2f +- %.2f, length-controlled %s, %d instructions, %s",
        metrics["generator"],
        metrics["win_rate"],
        metrics["standard_error"],
        f"{lc:.2f} +- {metrics['lc_standard_error']:.2f}" if lc is not None else "unavailable",
        metrics["n_total"],
        metrics["judge"],
    )


if __name__ == "__main__":
    run(main)
