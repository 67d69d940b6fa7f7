"""Run the alpaca_eval package on a prepared folder; no other module imports the package.

`sams.scoring.alpaca_eval_run` starts this module as a child process, because the package reads its settings from the
environment when it is imported, and changes settings of the process (logging, scikit-learn).
"""

import json
import logging
import math
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from alpaca_eval import evaluate
from alpaca_eval.metrics import glm_winrate

POLL_SECONDS = 0.05
GLM = glm_winrate.GLM_INFO["length_controlled_v1"]


def main(folder: Path) -> None:
    """Score the outputs listed in `folder`/job.json and write `folder`/result.json."""
    logging.getLogger().setLevel(logging.ERROR)  # the package logs a line per judge call at INFO
    logging.getLogger().addFilter(_is_no_failed_call)
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    if job["plan_calls"]:
        _plan_calls(job, folder)
    reference = _frame(job["reference"])
    results = []
    for number, outputs in enumerate(job["models"]):
        leaderboard, annotations = evaluate(
            model_outputs=_frame(outputs),
            reference_outputs=reference.copy(),
            annotators_config=job["annotators_config"],
            caching_path=str(folder / f"annotations-{number}.json"),
            annotation_kwargs=job["annotation_kwargs"],
            # With a path, the package would write into its installation.
            output_path=None,
            precomputed_leaderboard=None,
            is_return_instead_of_print=True,
            **_metric(job["length_control"]),
        )
        metrics = leaderboard.iloc[0].to_dict()
        if job["length_control"] and job["bootstrap"]:
            metrics["lc_standard_error"] = lc_standard_error(pd.DataFrame(annotations), job["bootstrap"])
        results.append({"metrics": metrics, "annotations": annotations})
    (folder / "result.json").write_text(json.dumps(_plain(results)), encoding="utf-8")


def _is_no_failed_call(record: logging.LogRecord) -> bool:
    """Drop the traceback of a failed call: the parent reports the number of failed calls and the reasons."""
    return "{'text': '', 'total_tokens': 0}" not in record.getMessage()


def _plan_calls(job: dict[str, Any], folder: Path) -> None:
    """Make each call once, which the judge's proxy refuses and records, and wait until the proxy allows calls.

    The cost of all calls is then known before the first one is paid.
    """
    logging.disable()  # the package logs each refused call
    for number, outputs in enumerate(job["models"]):
        copy = folder / f"plan-{number}.json"
        if (known := folder / f"annotations-{number}.json").exists():
            shutil.copy(known, copy)
        evaluate(
            model_outputs=_frame(outputs),
            reference_outputs=_frame(job["reference"]),
            annotators_config=job["annotators_config"],
            caching_path=str(copy),
            annotation_kwargs=job["annotation_kwargs"],
            output_path=None,
            precomputed_leaderboard=None,
            is_return_instead_of_print=True,
            fn_metric=lambda annotations: {"win_rate": 0.0, "standard_error": 0.0},
            sort_by="win_rate",
        )
    logging.disable(logging.NOTSET)
    (folder / "planned").touch()
    while not (folder / "admitted").exists():
        time.sleep(POLL_SECONDS)


def _frame(rows: list[dict[str, str]]) -> pd.DataFrame:
    return pd.DataFrame(rows, dtype=object)


def _metric(length_control: bool) -> dict[str, Any]:
    if not length_control:
        return {"fn_metric": "get_winrate", "sort_by": "win_rate"}
    return {
        "fn_metric": "get_length_controlled_winrate",
        "sort_by": "length_controlled_winrate",
        "metric_kwargs": {"save_weights_dir": None},
    }


def lc_standard_error(annotations: pd.DataFrame, samples: int) -> float:
    """Return the standard error of the length-controlled win rate, in percentage points, by bootstrap.

    The package computes none. Each sample draws instructions with replacement, with their judgments and difficulties,
    and refits the model of the package: length differences are standardised again, the rows of the gamed baselines
    stay, and the penalty is the one that cross-validation chose on all data.
    """
    design, test, weights = glm_winrate._get_featurized_data(
        annotations,
        formula=GLM["formula"],
        regularize_to_baseline_lambda=GLM["regularize_to_baseline_lambda"],
    )
    full = _fit(design, weights, **GLM["kwargs"])
    count = len(annotations)
    gamed, own = design.iloc[:-count], design.iloc[-count:]
    length_column = next(column for column in design.columns if "std_delta_len" in column)
    deltas = (annotations["output_1"].str.len() - annotations["output_2"].str.len()).to_numpy()
    rng = np.random.default_rng(0)
    rates = []
    for _ in range(samples):
        drawn = rng.integers(count, size=count)
        sample = own.iloc[drawn].copy()
        sample[length_column] = np.tanh(deltas[drawn] / deltas[drawn].std(ddof=1))
        model = _fit(pd.concat([gamed, sample]), weights, n_splits=0, C=full.C_[0])
        rates.append(100 * model.predict_proba(test.iloc[drawn])[:, 1].mean())
    return float(np.std(rates, ddof=1))


def _fit(design: pd.DataFrame, weights: pd.Series, **settings: Any) -> Any:
    return glm_winrate.fit_LogisticRegressionCV(
        design, "preference", is_ytrue_proba=True, sample_weight=weights, **settings
    )


def _plain(value: Any) -> Any:
    """Convert numpy numbers to Python numbers, and NaN to None."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


if __name__ == "__main__":
    main(Path(sys.argv[1]))
