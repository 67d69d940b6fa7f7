"""Stage `score_alpaca_eval`: AlpacaEval 2 of one model's outputs, by the unmodified package.

    python -m sams.scoring.alpaca_eval --model-outputs answers.json --reference-outputs baseline.json \
        --recipe recipe.json --difficulty difficulty.csv --out metrics.json

The package silently scores missing, repeated and reordered rows. Here, rows are put into order by instruction or
refused, and every instruction must have a verdict.
"""

import functools
import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from sams.judge.endpoint import DEFAULT_MODEL, STORE, judge_name, open_judge
from sams.judge.proxy import DryRun
from sams.runtime.errors import UserError
from sams.runtime.files import whole_file
from sams.runtime.stage import read_recipe, run
from sams.scoring.alpaca_eval_run import ANNOTATOR, Key, Result, key_of, run_alpaca_eval
from sams.scoring.difficulty_table import check_reference, check_table, read_table
from sams.scoring.inputs import Row, doubled, input_hashes, read_json_rows, some_of, text_of, versions
from sams.scoring.job import run_scoring
from sams.study.recipes import ScoreRecipe

log = logging.getLogger("alpaca_eval")

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
        judge_store: file of a remote endpoint's answers, which are not paid again.
        dry_run: only log the estimate of the judge's calls.

    Returns:
        AlpacaEval's figures by its own names (rates and standard errors in percentage points), `lc_standard_error`
        (ours), and the inputs, versions and settings.

    Raises:
        UserError: inputs that the package would score wrongly, or instructions without a verdict.
        DryRun: at the end of a dry run.
    """
    reference = read_outputs(reference_outputs)
    instructions = [row["instruction"] for row in reference]
    check_reference(instructions, reference[0]["generator"], str(reference_outputs))
    outputs, reordered = align(read_outputs(model_outputs), reference, str(model_outputs))
    if difficulty is not None:
        check_table(read_table(difficulty), instructions, str(difficulty))
    reason = lc_obstacle(outputs, reference, difficulty)

    with ExitStack() as stack:
        recorded, recorded_by = _recorded(annotations) if annotations else ({}, None)
        unjudged = _unjudged(outputs, reference, recorded)
        judge = _judge_of(unjudged, recorded_by, annotations, recipe)
        if dry_run and not unjudged:
            raise DryRun
        endpoint = None
        if unjudged:
            assert recipe is not None
            endpoint = stack.enter_context(open_judge(recipe, judge_store, dry_run))
        [result] = run_alpaca_eval(
            reference,
            [outputs],
            endpoint=endpoint,
            recorded=recorded,
            difficulty=difficulty if reason is None else None,
        )
    metrics = {
        **figures(result, reason),
        "judge": judge,
        "judge_calls": endpoint.proxy.facts() if endpoint and endpoint.proxy else None,
        "annotator": ANNOTATOR,
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
        _write_annotations(annotations_out, result.annotations, judge)
    return metrics


# --- rows -----------------------------------------------------------------------------------------


def read_outputs(path: Path) -> list[Row]:
    """Read the outputs of one model as rows {instruction, output, generator, dataset}.

    Raises:
        UserError: a row without text, a repeated instruction, several generators, or only empty outputs.
    """
    rows = []
    for number, row in enumerate(read_json_rows(path), start=1):
        where = f"{path}, row {number}"
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
        raise UserError(f"expected one generator, found {some_of(generators)}", where=str(path))
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


def _recorded(path: Path) -> tuple[dict[Key, float], str]:
    """Read recorded judgments and the name of their judge, without failed calls.

    Raises:
        UserError: another annotator, a preference out of range, contradicting rows, or several judges.
    """
    known: dict[Key, float] = {}
    judges = set()
    for number, row in enumerate(read_json_rows(path), start=1):
        where = f"{path}, row {number}"
        annotator = row.get("annotator", ANNOTATOR)
        if annotator != ANNOTATOR:
            raise UserError(f"expected judgments of {ANNOTATOR}, found {annotator!r}", where=where)
        key = (
            text_of(row, "instruction", where),
            text_of(row, "output_1", where, empty=True),
            text_of(row, "output_2", where, empty=True),
        )
        preference = row.get("preference")
        if preference is None or preference == -1:  # the package's mark of a call that failed
            continue
        if not isinstance(preference, int | float) or not (preference == 0 or 1 <= preference <= 2):
            raise UserError(
                f"expected a number from 1 to 2, found {preference!r:.40}", where=f"{where}, key 'preference'"
            )
        if known.setdefault(key, preference) != preference:
            raise UserError(
                "contradicts an earlier judgment of the same outputs",
                where=where,
                remedy="give one judgment per instruction",
            )
        judges.add(row.get("judge", DEFAULT_MODEL))
    if len(judges) > 1:
        raise UserError(f"mixes judgments of {some_of(sorted(judges))}", where=str(path))
    return known, judges.pop() if judges else DEFAULT_MODEL


def _unjudged(outputs: Sequence[Row], reference: Sequence[Row], recorded: Mapping[Key, float]) -> list[str]:
    """Return the instructions that need a call; identical outputs are a draw without a call."""
    return [
        ours["instruction"]
        for theirs, ours in zip(reference, outputs, strict=True)
        if ours["output"] != theirs["output"] and key_of(theirs, ours) not in recorded
    ]


def _judge_of(
    unjudged: Sequence[str],
    recorded_by: str | None,
    annotations: Path | None,
    recipe: ScoreRecipe | None,
) -> str:
    """Return the name of the judge.

    Raises:
        UserError: judgments are missing, and the recipe does not have the judge of the recorded ones.
    """
    requested = judge_name(recipe.judge) if recipe else None
    judge = recorded_by or requested
    if judge is not None and not unjudged:
        log.info("no call of the judge is needed")
        return judge
    if recipe is None or judge != requested:
        raise UserError(
            f"{len(unjudged)} judgments are missing: {some_of(list(unjudged))}",
            where=str(annotations) if annotations else "--annotations",
            remedy="give judgments of exactly these outputs, or a --recipe with the judge"
            + (f" ({recorded_by}, as for the others)" if recorded_by else ""),
        )
    log.info("%d judgments are needed of %s", len(unjudged), judge)
    return judge_name(recipe.judge)


def figures(result: Result, lc_unavailable: str | None) -> dict[str, Any]:
    """Return AlpacaEval's figures by its own names, and our standard error of the length-controlled win rate."""
    metrics = result.metrics
    if lc_unavailable is None and metrics.get("length_controlled_winrate") is None:
        raise RuntimeError("alpaca_eval gave no length-controlled win rate")
    lengths: dict[str, Any] = {
        "length_controlled_winrate": metrics.get("length_controlled_winrate"),
        "lc_standard_error": metrics.get("lc_standard_error"),
    }
    if lc_unavailable is not None:
        lengths["lc_unavailable"] = lc_unavailable
    return {
        **{key: metrics[key] for key in RATES},
        **lengths,
        **{key: int(metrics[key]) for key in COUNTS},
        "avg_length": int(metrics["avg_length"]),
    }


def _write_annotations(path: Path, annotations: Sequence[Row], judge: str) -> None:
    """Write judgments in AlpacaEval's form, with the name of the judge, which the package omits."""
    with whole_file(path) as part:
        rows = [{**row, "judge": judge} for row in annotations]
        part.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


# --- command line ---------------------------------------------------------------------------------


def main(
    model_outputs: Annotated[Path, typer.Option(help="Outputs of the model, JSON, gzip or not.")],
    reference_outputs: Annotated[Path, typer.Option(help="Outputs of the baseline.")],
    out: Annotated[Path, typer.Option(help="File for the figures (metrics.json).")],
    recipe: Annotated[str | None, typer.Option(help="ScoreRecipe, as JSON or a file: the judge.")] = None,
    annotations: Annotated[Path | None, typer.Option(help="Recorded judgments.")] = None,
    difficulty: Annotated[Path | None, typer.Option(help="Difficulty table, for length control.")] = None,
    annotations_out: Annotated[Path | None, typer.Option(help="File for all judgments.")] = None,
    judge_store: Annotated[
        Path | None, typer.Option(help=f"Store of an endpoint's answers ({STORE} in the folder of --out).")
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="Only log the estimate of the judge's calls.")] = False,
) -> None:
    """Score a model's outputs with AlpacaEval 2."""
    score = functools.partial(
        score_alpaca_eval,
        model_outputs,
        reference_outputs,
        annotations=annotations,
        difficulty=difficulty,
        annotations_out=annotations_out,
    )
    settings = read_recipe(recipe, ScoreRecipe) if recipe else None
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
