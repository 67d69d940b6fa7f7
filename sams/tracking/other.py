"""Training runs in Weights & Biases or trackio, which has the same interface: `sams mirror`.

The metric logs are read from the results folder, also while jobs write them: no job waits for a tracker.
"""

import hashlib
import importlib
import json
import time
from pathlib import Path
from typing import Any, Literal

from sams.runtime.errors import UserError
from sams.runtime.files import canonical_json, read_json, write_json
from sams.runtime.jsonl import complete_lines
from sams.runtime.mappings import flatten, numbers

Tracker = Literal["wandb", "trackio"]


def mirror(tracker: Tracker, results: Path, follow: float | None = None) -> int:
    """Send the lines that the tracker does not have yet; return the number of runs with new lines.

    Args:
        tracker: package to send with.
        results: results folder; its `.<tracker>.json` holds the number of lines sent of each run.
        follow: seconds between two looks at the logs, until interrupted; None looks once.

    Raises:
        UserError: the package is not installed.
    """
    try:
        package = importlib.import_module(tracker)
    except ImportError:
        raise UserError(f"{tracker} is not installed", remedy=f"pip install {tracker}") from None
    while True:
        # recipe.json is that of a finished job, run.json that of a job with checkpoints.
        jobs = [*results.glob("*/*/*/seed*/recipe.json"), *results.glob("*/checkpoints/*/*/seed*/*/run.json")]
        extended = sum(send(package, job, results) for job in sorted(jobs))
        if follow is None:
            return extended
        time.sleep(follow)


def send(package: Any, job: Path, results: Path) -> bool:
    """Send the new lines of one job, and its final figures after its end; return whether there were any."""
    logged, final = job.with_name("train.jsonl"), job.with_name("train_metrics.json")
    if not logged.is_file():
        return False
    study, *folders = job.relative_to(results).parts[:-1]
    setting, method, seed = [name for name in folders if name != "checkpoints"][:3]
    content = read_json(job)
    recipe = (content if "recipe" in content else content["inputs"])["recipe"]
    training = recipe["training"] | {"micro_batch_size": None, "scoring_micro_batch_size": None}
    digest = hashlib.sha256(canonical_json(recipe | {"training": training}).encode()).hexdigest()
    name = f"{method}/{seed} {setting} {digest[:6]}"  # other settings are another run

    record = results / f".{package.__name__}.json"
    sent = read_json(record) if record.is_file() else {}
    points = []
    for line in map(json.loads, complete_lines(logged)):
        line["global_step"] = line.pop("step")  # trackio reserves `step`
        points.append((line["pairs_seen"], numbers(line)))
    if final.is_file():
        figures = {f"final/{key}": value for key, value in numbers(read_json(final)).items()}
        points.append((points[-1][0] + 1 if points else 0, figures))
    done = sent.get(f"{study}/{name}", 0)
    if done >= len(points):
        return False
    settings: dict[str, Any] = {"project": f"sams-{study}", "name": name, "config": flatten(recipe)}
    if package.__name__ == "wandb":  # trackio resumes by name
        settings["id"] = hashlib.sha256(f"{study}/{name}".encode()).hexdigest()[:16]
    run = package.init(**settings, resume="allow")
    for pairs_seen, values in points[done:]:
        run.log(values, step=pairs_seen)
    run.finish()
    write_json(record, sent | {f"{study}/{name}": len(points)})
    return True
