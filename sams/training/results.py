"""Names of the files and folders in the results of a training run."""

EVALUATED = "evaluated"
PAIRS = "pairs.parquet"


def evaluated_at(step: int) -> str:
    """Return the folder of the weights of the evaluation at this step, below the folder of the run."""
    return f"{EVALUATED}/step{step:06d}"
