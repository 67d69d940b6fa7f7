"""Compute figures with the alpaca_eval package on a prepared folder; no other module imports the package.

`sams.scoring.alpaca_eval_run` starts this module as a child process, because the package reads its settings from the
environment when it is imported, and changes settings of the process (logging, scikit-learn).
"""

import json
import logging
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from alpaca_eval import metrics
from alpaca_eval.metrics import glm_winrate

GLM = glm_winrate.GLM_INFO["length_controlled_v1"]


def main(folder: Path) -> None:
    """Compute the figures of the annotations listed in `folder`/job.json and write `folder`/result.json."""
    logging.getLogger().setLevel(logging.ERROR)
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    results = []
    for rows in job["annotations"]:
        annotations = pd.DataFrame(rows)
        annotations["preference"] = annotations["preference"].astype(float)  # a missing one is NaN
        if job["length_control"]:
            # With a path, the package would write into its installation.
            figures = metrics.get_length_controlled_winrate(annotations, save_weights_dir=None)
            if job["bootstrap"]:
                figures["lc_standard_error"] = lc_standard_error(annotations, job["bootstrap"])
        else:
            figures = metrics.get_winrate(annotations)
        # As the package's `evaluate` computes it.
        figures["avg_length"] = int(annotations["output_2"].str.len().mean())
        results.append(figures)
    (folder / "result.json").write_text(json.dumps(_plain(results)), encoding="utf-8")


def lc_standard_error(annotations: pd.DataFrame, samples: int) -> float:
    """Return the standard error of the length-controlled win rate, in percentage points, by bootstrap.

    The package computes none. Each sample draws instructions with replacement, with their judgments and difficulties,
    and refits the model of the package: length differences are standardised again, the rows of the gamed baselines
    stay, and the penalty is the one that cross-validation chose on all data. Instructions without a judgment take no
    part in a fit, and part in the mean of the predictions, as in the package.
    """
    design, test, weights = glm_winrate._get_featurized_data(
        annotations,
        formula=GLM["formula"],
        regularize_to_baseline_lambda=GLM["regularize_to_baseline_lambda"],
    )
    judged = design["preference"].notna()
    full = _fit(design[judged], weights[judged], **GLM["kwargs"])
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
        fitted = pd.concat([gamed, sample])
        judged = fitted["preference"].notna()
        model = _fit(fitted[judged], weights[judged.to_numpy()], n_splits=0, C=full.C_[0])
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
