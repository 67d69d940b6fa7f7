"""What MLflow did not take by the end of a job: kept in the results, sent at the next chance.

The next chance is the end of any later job that reaches MLflow, or `sams mlflow`. An entry is a folder with what the
run is known by, its metric log and the id of its run; `mirrored_lines` of the run tells which lines it has already.
"""

import contextlib
import fcntl
import hashlib
import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sams.runtime.files import read_json, whole_folder

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from sams.tracking.mirror import Ending, Identity

logger = logging.getLogger(__name__)

FOLDER = "mlflow_unsent"
RUN, LOG, ID = "run.json", "train.jsonl", "mlflow_run_id"


def _place(results: Path, identity: "Identity") -> Path:
    text = f"{identity.experiment}/{identity.name}/{identity.tags.get('part', '')}"
    return results / FOLDER / hashlib.sha256(text.encode()).hexdigest()[:16]


def keep(
    results: Path,
    identity: "Identity",
    ending: "Ending",
    *,
    run_id: str,
    jsonl: Path | None,
    times: Sequence[int],
    recipe_sent: bool,
) -> None:
    """Keep what is still to be sent of a run; an older entry of the same job is replaced."""
    with whole_folder(_place(results, identity)) as part:
        if jsonl is not None and jsonl.is_file():
            shutil.copyfile(jsonl, part / LOG)
        (part / ID).write_text(run_id, encoding="utf-8")
        told = {
            "identity": identity._asdict(),
            "ending": ending._asdict() | {"artifacts": [str(path) for path in ending.artifacts]},
            "times": list(times),
            "recipe_sent": recipe_sent,
        }
        (part / RUN).write_text(json.dumps(told), encoding="utf-8")


def forget(results: Path, identity: "Identity") -> None:
    """Drop the entry of a job whose run MLflow has in full, or which goes on in the same run."""
    shutil.rmtree(_place(results, identity), ignore_errors=True)


def send(client: "MlflowClient", results: Path) -> int:
    """Send what earlier jobs left; return how many runs are complete with it.

    Raises:
        Exception: whatever MLflow raises; what is left stays for the next time.
    """
    from sams.tracking.mirror import Ending, Identity, Mirror

    sent = 0
    for entry in sorted((results / FOLDER).glob("[0-9a-f]*")):
        with contextlib.suppress(FileNotFoundError, BlockingIOError), (entry / ID).open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # another job may be at it
            told: dict[str, Any] = read_json(entry / RUN)
            ending = told["ending"] | {"artifacts": [Path(path) for path in told["ending"]["artifacts"]]}
            jsonl = entry / LOG if (entry / LOG).is_file() else None
            mirror = Mirror(Identity(**told["identity"]), entry / ID, jsonl, lines=0, resume=True)
            mirror.send_kept(client, Ending(**ending), told["times"], recipe_sent=told["recipe_sent"])
            shutil.rmtree(entry)
            sent += 1
    if sent:
        logger.info("MLflow now has what it did not take of %d earlier runs", sent)
    return sent
