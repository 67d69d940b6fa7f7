"""Names of the files and folders in the results of a training run."""

EVALUATED = "evaluated"
PAIRS = "pairs.parquet"
WORK = "_selector"
"""Folder of a run with TRL, in its output folder; uploads to the Hub pass over names that begin with `_`."""
TEXTS = "texts.parquet"
"""File in `WORK` with prompt and responses of each recorded pair."""


def evaluated_at(step: int) -> str:
    """Return the folder of the weights of the evaluation at this step, below the folder of the run."""
    return f"{EVALUATED}/step{step:06d}"
