"""Stage `make_difficulty`: difficulty table of the synthetic world for AlpacaEval's length control.

    python -m sams.scoring.difficulty --recipe recipe.json --questions R/questions/alpaca_eval --out difficulty.csv

The official table (`df_gamed.csv`) belongs to AlpacaEval's 805 instructions. For other instructions a table is made
in the same way, with the judge that scores the models:

1. A concise and a verbose variant of the baseline's answers are judged against the baseline. Their content is
   the same, so that the preference shows the length bias of the judge.
2. Several models of different quality and length are judged against the baseline, and one logistic model is fitted to
   all preferences (Dubois et al. 2024, "Length-Controlled AlpacaEval", section 4),

       logit P(model m preferred on instruction i) = theta_m + phi_m * tanh(std_delta_len) + gamma_i,

   whose gamma_i, centred, are the difficulties.

As a control, both variants are scored with the finished table: the win rate shows the length bias of the judge, and
the length-controlled win rate, ideally 50, how much of it is removed.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import typer
from scipy.optimize import minimize
from scipy.special import expit

from sams.judge.ask import STORE, check_missing
from sams.judge.client import key_withheld
from sams.runtime.errors import UserError
from sams.runtime.files import sha256_of, write_json
from sams.runtime.stage import read_recipe, run
from sams.scoring.alpaca_eval import (
    align,
    annotations_of,
    annotator_name,
    figures,
    judge_outputs,
    read_outputs,
)
from sams.scoring.alpaca_eval_run import compute_figures
from sams.scoring.difficulty_table import TableRow, check_table, instruction_hash, write_table
from sams.scoring.inputs import Row, versions
from sams.study.recipes import ScoreRecipe
from sams.world import examples as world

log = logging.getLogger("difficulty")

# Weight of gamma^2 / 2 in the joint fit, in judgments. Without it, an instruction that all of the few models win or
# lose would have an infinite difficulty.
RIDGE = 1.0
MIN_MODELS = 3
# Below this standard deviation of tanh(std_delta_len), length and quality cannot be separated.
MIN_SPREAD = 0.05

FloatArray = np.ndarray[Any, np.dtype[np.float64]]


def make_difficulty(recipe: ScoreRecipe, questions: Path, out: Path) -> dict[str, Any]:
    """Write the difficulty table for the instructions of a synthetic world.

    Args:
        recipe: the world and the judge.
        questions: folder with the baseline's `alpaca_eval.json`.
        out: file for the table.

    Returns:
        A report: AlpacaEval's figures of the two variants with the finished table (`control`), those of the models
        and their fitted length weights phi (`models`), the average length of the baseline, hashes and versions.

    Raises:
        UserError: no world, a baseline that is not the world's, or data that do not identify the model.
    """
    if recipe.world is None:
        raise UserError(
            "a difficulty table can only be made for the synthetic world",
            where="key 'world'",
            remedy="give AlpacaEval's own table as `benchmarks.alpaca_eval.difficulty`",
        )
    baseline_path = questions / "alpaca_eval.json"
    baseline = read_outputs(baseline_path)
    variants = _aligned(world.baseline_variants(recipe.world), baseline, baseline_path)
    models = _aligned(world.answerers(recipe.world), baseline, baseline_path)
    all_outputs = [*variants.values(), *models.values()]

    judged, judgments = judge_outputs(recipe, baseline, all_outputs, {}, store=out.with_name(STORE))
    assert judged is not None
    for outputs, of_model in zip(all_outputs, judgments, strict=True):
        check_missing(of_model, 0, outputs[0]["generator"])
    annotations = [
        annotations_of(baseline, outputs, of_model, annotator_name(judged.judge, recipe))
        for outputs, of_model in zip(all_outputs, judgments, strict=True)
    ]
    # From 0 to 1 instead of AlpacaEval's 1 to 2; shape (instructions,).
    preferences = [np.array([row["preference"] - 1.0 for row in rows]) for rows in annotations]
    gaps = [std_delta_len(baseline, outputs, str(baseline_path)) for outputs in all_outputs]
    first = len(variants)
    difficulty, length_weights = fit_difficulty(np.array(preferences[first:]), np.array(gaps[first:]))
    rows = [
        TableRow(
            index=index,
            model=outputs[0]["generator"],
            preference=float(preference[index]),
            std_delta_len=float(gap[index]),
            instruction_difficulty=float(difficulty[index]),
            instruction_sha256=instruction_hash(baseline[index]["instruction"]),
        )
        # The verbose variant comes first, as in the official table.
        for outputs, preference, gap in list(zip(all_outputs, preferences, gaps, strict=True))[:first][::-1]
        for index in range(len(baseline))
    ]
    check_table(rows, [row["instruction"] for row in baseline], str(out))

    with TemporaryDirectory(prefix="sams-difficulty-") as folder:
        table = Path(folder) / "difficulty.csv"
        write_table(table, rows)
        control = compute_figures(annotations[:first], table, bootstrap=0)
    write_table(out, rows)
    return {
        "judge": judged.judge,
        "recipe": recipe.model_dump(mode="json"),
        "control": {name: figures(result, None) for name, result in zip(variants, control, strict=True)},
        "models": {
            name: {**figures(result, "not scored here"), "length_weight": float(weight)}
            for name, result, weight in zip(
                models, compute_figures(annotations[first:]), length_weights, strict=True
            )
        },
        "baseline_avg_length": int(np.mean([len(row["output"]) for row in baseline])),
        "versions": versions("alpaca-eval", "scikit-learn", "scipy", "numpy"),
        "inputs": {"baseline": sha256_of(baseline_path)},
    }


def _aligned(made: Mapping[str, Sequence[Row]], baseline: Sequence[Row], where: Path) -> dict[str, list[Row]]:
    """Return outputs of the world in the order of the baseline, whose instructions they must answer."""
    return {
        name: align(list(rows), baseline, f"the world's {name}, against {where}")[0]
        for name, rows in made.items()
    }


def std_delta_len(baseline: Sequence[Row], outputs: Sequence[Row], where: str) -> FloatArray:
    """Return AlpacaEval's length feature, (length of baseline - length of output) / standard deviation.

    Shape: (instructions,).

    Raises:
        UserError: the differences hardly vary, so that length and quality cannot be separated.
    """
    delta = np.array(
        [len(a["output"]) - len(b["output"]) for a, b in zip(baseline, outputs, strict=True)], float
    )
    spread = delta.std(ddof=1)
    gap = delta / spread if spread > 0 else np.zeros_like(delta)
    if np.tanh(gap).std() < MIN_SPREAD:
        raise UserError(
            f"lengths of {outputs[0]['generator']} and the baseline differ by a nearly constant amount",
            where=where,
            remedy="length control requires differences that vary between instructions",
        )
    return gap


def fit_difficulty(preferences: FloatArray, gaps: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Fit the joint logistic model (see the module) by penalised maximum likelihood.

    Args:
        preferences: preference for each model over the baseline, 0 to 1; shape (models, instructions).
        gaps: std_delta_len; same shape.

    Returns:
        Difficulties of mean 0, shape (instructions,), and length coefficients phi, shape (models,).

    Raises:
        UserError: too few models, preferences out of range or all equal, or a fit that does not converge.
    """
    models, instructions = preferences.shape
    if models < MIN_MODELS:
        raise UserError(f"difficulty needs at least {MIN_MODELS} models, found {models}")
    if preferences.min() < 0 or preferences.max() > 1:
        raise UserError("preferences must lie between 0 and 1", remedy="subtract 1 from AlpacaEval's")
    if preferences.std(axis=1).min() < 1e-6:
        raise UserError("all preferences of a model are equal: difficulty and quality cannot be separated")
    lengths = np.tanh(gaps)

    def loss(parameters: FloatArray) -> tuple[float, FloatArray]:
        theta, phi, gamma = np.split(parameters, [models, 2 * models])
        logits = theta[:, None] + phi[:, None] * lengths + gamma
        residual = expit(logits) - preferences
        value = (np.logaddexp(0, logits) - preferences * logits).sum() + RIDGE / 2 * (gamma @ gamma)
        slope = np.concatenate(
            [residual.sum(1), (residual * lengths).sum(1), residual.sum(0) + RIDGE * gamma]
        )
        return float(value), slope

    fit = minimize(
        loss, np.zeros(2 * models + instructions), jac=True, method="L-BFGS-B", options={"maxiter": 2000}
    )
    if not fit.success:
        raise UserError(f"the joint fit of difficulties did not converge: {fit.message}")
    gamma = fit.x[2 * models :]
    return gamma - gamma.mean(), fit.x[models : 2 * models]


def main(
    recipe: Annotated[str, typer.Option(help="ScoreRecipe, as JSON or a file: the world and the judge.")],
    questions: Annotated[Path, typer.Option(help="Folder with alpaca_eval.json.")],
    out: Annotated[Path, typer.Option(help="File for the table (difficulty.csv).")],
    report: Annotated[Path | None, typer.Option(help="File for the report with the control.")] = None,
) -> None:
    """Make the difficulty table that length control needs, and score its control."""
    with key_withheld():
        result = make_difficulty(read_recipe(recipe, ScoreRecipe), questions, out)
    if report is not None:
        write_json(report, result)
    for name, row in result["control"].items():
        log.info(
            "control, %s baseline: win rate %.2f, length-controlled %.2f, length %d (baseline %d)",
            name,
            row["win_rate"],
            row["length_controlled_winrate"],
            row["avg_length"],
            result["baseline_avg_length"],
        )


if __name__ == "__main__":
    run(main)
