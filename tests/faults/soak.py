"""A long training of a very small model in a separate process, which measures itself at every save.

    python -m tests.faults.soak FOLDER STEPS

It is killed once by SIGKILL, half way, and started again. FOLDER/samples.jsonl has, at each save, the step, the
memory that is the process's own (bytes), its open files and threads, and the bytes and checkpoints on disk.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

STEPS_BETWEEN_SAVES = 100
LOG_EVERY = 10
ROUNDS = 50
KILLED = "killed"


def recipe(steps: int) -> Any:
    """SamS on a very small model; its replay pool is full nearly all the time, and its file is rewritten."""
    from sams.study.recipes import PreferenceRecipe
    from sams.study.settings import Model, Preference, Scheduler

    architecture = {
        "model_type": "llama",
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "intermediate_size": 8,
        "max_position_embeddings": 64,
    }
    training = {
        "batch_size": 4,
        "micro_batch_size": 4,
        "epochs": steps,
        "max_steps": steps,
        "evaluations": 4,
        "log_every": LOG_EVERY,
        "checkpoint_every": STEPS_BETWEEN_SAVES,
        "selector": "sams",
        "ratio": 0.5,
        "followed_pairs": 0,
    }
    return PreferenceRecipe(
        seed=0,
        method="soak",
        model=Model.model_validate({"architecture": architecture, "tokenizer": "words"}),
        scheduler=Scheduler(
            replay_rounds=ROUNDS, replay_sample=4, width=16, depth=3, encoder_width=16, connector_width=16
        ),
        training=Preference.model_validate(training),
    )


def prepare(folder: Path, steps: int) -> None:
    """Token ids, a fresh model and its reference log-probs."""
    from sams.study.recipes import ExportRecipe, ReferenceRecipe
    from sams.training import export, reference
    from tests import tiny

    model = recipe(steps).model
    tokens = tiny.write_tokens(folder / "tokens", train=64, test=8)
    export.main(ExportRecipe(model=model).model_dump_json(), folder / "model", tokens)
    asked = ReferenceRecipe(model=model, micro_batch_size=16).model_dump_json()
    reference.main(asked, tokens, folder / "model", folder / "reference")


def train(folder: Path, steps: int) -> None:
    """Train, and sample at every save."""
    from sams.training import preference
    from sams.training.checkpoints import Checkpoints

    save, process = Checkpoints.save, psutil.Process()

    def sampling(self: Checkpoints, policy: Any, optimiser: Any, loop: dict[str, Any]) -> None:
        save(self, policy, optimiser, loop)
        self.wait()
        files = [path for path in self.folder.rglob("*") if path.is_file()]
        sample = {
            "step": loop["step"],
            "time": time.monotonic(),
            "memory": process.memory_full_info().uss,
            "open_files": process.num_fds(),
            "threads": process.num_threads(),
            # The logs grow by a line a step, and are counted apart.
            "disk": sum(path.stat().st_size for path in files if path.suffix != ".jsonl"),
            "checkpoints": len(self.steps()),
        }
        with (folder / "samples.jsonl").open("a") as stream:
            stream.write(json.dumps(sample) + "\n")
        if loop["step"] >= steps // 2 and not (folder / KILLED).exists():
            (folder / KILLED).touch()
            os.kill(os.getpid(), signal.SIGKILL)

    Checkpoints.save = sampling  # type: ignore[method-assign]
    paths = {name: folder / name for name in ("tokens", "model", "reference")}
    preference.main(
        recipe(steps).model_dump_json(),
        **paths,
        out=folder / "s/soak/seed0",
        checkpoints=folder / "checkpoints",
    )


def run(folder: Path, steps: int) -> None:
    """Prepare, train until the kill, and train to the end, each in a separate process."""
    from sams.study.recipes import Job

    job = Job.model_validate({"study": "soak", "setting": "s", "tracking": True, "launch": {"device": "cpu"}})
    environment = os.environ | {
        "SAMS_JOB": job.model_dump_json(),
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
        "OMP_NUM_THREADS": "1",
    }
    for stage, status in (("prepare", 0), ("train", -signal.SIGKILL), ("train", 0)):
        with (folder / "log").open("a") as log:
            command = [sys.executable, "-m", "tests.faults.soak", str(folder), str(steps), stage]
            done = subprocess.run(command, env=environment, stdout=log, stderr=log, check=False)
        assert done.returncode == status, (folder / "log").read_text()[-3000:]


if __name__ == "__main__":
    place, count, *stages = sys.argv[1:]
    if stages:
        {"prepare": prepare, "train": train}[stages[0]](Path(place), int(count))
    else:
        run(Path(place), int(count))
