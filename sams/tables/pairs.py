"""The record of a run's pairs as data frames: a row each time that the policy saw a pair, or a row for each pair."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sams.runtime.errors import UserError
from sams.scoring.benchmark import Items
from sams.training.results import PAIRS, TEXTS, WORK

if TYPE_CHECKING:
    import pandas as pd

TEST = "test"


def read_pairs(run: str | Path, columns: Sequence[str] | None = None, **equal: Any) -> "pd.DataFrame":
    """Return what the policy of a run computed of its pairs, in the order of the run.

    A training pair has a row each time that the policy computed it, with its values before the step's update: with a
    selector that scores the batch each time that it was in a batch, else each time that it was trained on. A test (or
    validation) pair has a row for each evaluation, with its values after the step's update.

    Args:
        run: folder of the run, results/<study>/<setting>/<method>/seed<k>.
        columns: columns to read; default: all.
        equal: values that columns of the rows must have: `split="test"`.

    Returns:
        Columns: id; split (train, test or validation); step and epoch, both from 1; margin, the reward of the chosen
        response minus that of the rejected one (`rewards/margins`); selected, whether the pair was trained on in this
        step (NA for test pairs); flipped, whether its label is known to be swapped (NA where not known); chosen_logp
        and rejected_logp, log-probs in nats, summed over tokens; reference_chosen_logp and reference_rejected_logp,
        the same under the reference (NaN for a loss without one); chosen_tokens and rejected_tokens.

    Raises:
        UserError: the run has no such file, or it cannot be read.
    """
    import pandas as pd
    from pyarrow import ArrowException, bool_, parquet

    file = Path(run) / PAIRS
    filters = [(name, "==", value) for name, value in equal.items()] or None
    try:
        table = parquet.read_table(file, columns=None if columns is None else list(columns), filters=filters)
    except FileNotFoundError:
        raise UserError(
            "no record of pairs",
            where=str(file),
            remedy="give the folder of a finished run of a preference method, .../<method>/seed<k>",
        ) from None
    except (ArrowException, OSError) as error:
        raise UserError(f"cannot be read ({error})", where=str(file), remedy="train the run again") from None
    frame: pd.DataFrame = table.to_pandas(types_mapper={bool_(): pd.BooleanDtype()}.get)
    return frame


def by_pair(frames: "Sequence[pd.DataFrame]") -> "pd.DataFrame":
    """Return one row for each training pair, over the runs of one method that differ in their seeds.

    Args:
        frames: records of the runs, as `read_pairs` returns them.

    Returns:
        By id, from the smallest `last` to the largest: first and last, the margins when a pair was first and last
        seen, means over the runs that saw it; seen and selected, how often, in all runs together; flipped; tokens of
        both responses.
    """
    import numpy as np
    import pandas as pd

    runs = []
    for frame in frames:
        train = frame[frame["split"] == "train"]
        pairs, ids = pd.factorize(train["id"])
        first, last = (np.empty(len(ids), dtype=int) for _ in range(2))
        # Where an index is repeated, numpy assigns the last value.
        first[pairs[::-1]], last[pairs] = np.arange(len(pairs))[::-1], np.arange(len(pairs))
        at_last = train.iloc[last]
        found = {
            "first": train["margin"].to_numpy()[first],
            "last": at_last["margin"].to_numpy(),
            "seen": np.bincount(pairs),
            "selected": np.bincount(pairs, weights=train["selected"].to_numpy(dtype=float)).astype(int),
            "flipped": at_last["flipped"].array,
            "tokens": (at_last["chosen_tokens"] + at_last["rejected_tokens"]).to_numpy(),
        }
        runs.append(pd.DataFrame(found, index=pd.Index(ids, name="id")))
    table = runs[0]
    if len(runs) > 1:
        how = {
            "first": "mean",
            "last": "mean",
            "seen": "sum",
            "selected": "sum",
            "flipped": "last",
            "tokens": "mean",
        }
        table = pd.concat(runs).groupby(level="id", sort=False).agg(how)
    return table.sort_values("last", kind="stable")


def accuracies(run: Path) -> Items:
    """Return the accuracy of each test pair at the end of a run: 100, 50 for a tie, or 0; empty without a record."""
    if not (run / PAIRS).is_file():
        return {}
    test = read_pairs(run, ["id", "step", "margin"], split=TEST)
    last = test[test["step"] == test["step"].max()]
    values = 50.0 * ((last["margin"] > 0).astype(float) + (last["margin"] >= 0))
    return dict(zip(last["id"], values, strict=True))


def texts(run: Path, pairs: "pd.DataFrame") -> dict[str, dict[str, Any]]:
    """Return prompt (messages), chosen and rejected response of pairs by id, as a run was trained on them.

    Args:
        run: folder of the run, next to the prepared data of its study; or the output folder of a run with TRL.
        pairs: pairs as `by_pair` returns them; of the data only their rows are kept.

    Raises:
        UserError: the data is not there.
    """
    import pandas as pd
    from pyarrow import array, dataset

    data = run.resolve().parent.parent / "data"
    file = data / run.resolve().name / "train.parquet"  # of a study whose seeds have data of their own
    if not file.is_file():
        file = data / "train.parquet"
    if (run / WORK / TEXTS).is_file():  # of a run with TRL
        file = run / WORK / TEXTS
    if not file.is_file():
        raise UserError(
            "no training pairs beside the run", where=str(file), remedy="restore them, or use `read_pairs`"
        )
    rows = (
        dataset.dataset(file)
        .to_table(filter=dataset.field("id").isin(array(pairs.index, "string")))
        .to_pylist()
    )
    found = {}
    for row in rows:
        flipped = pairs["flipped"][row["id"]]
        if not pd.isna(flipped) and bool(flipped) != bool(row["flipped"]):  # swapped by `flipped_share`
            row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
        found[row["id"]] = row
    return found
