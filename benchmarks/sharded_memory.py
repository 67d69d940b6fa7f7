"""Memory of processes that load a model as FSDP2 shards, and of its export: python -m benchmarks.sharded_memory.

Each measurement has its own processes, on CPUs. Their anonymous memory (weights and other data, without mapped files)
is sampled every 2 ms. In `whole` every process loads the complete model and then shards it; in `shards` each process
reads its own shards.
"""

import json
import subprocess
import sys
import tempfile
import threading
import time
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import torch
import transformers

from sams.runtime.files import write_json

SIZES = {
    "model_type": "llama",
    "hidden_size": 1024,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "intermediate_size": 4096,
    "vocab_size": 32000,
}


class Peak:
    """Anonymous memory of this process above what it had at the start, in MB."""

    def __init__(self) -> None:
        self._start, self.highest, self._ended = anonymous(), 0.0, False
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._ended:
            self.highest = max(self.highest, anonymous() - self._start)
            time.sleep(0.002)

    def end(self) -> float:
        """Stop sampling and return the peak."""
        self._ended = True
        self._thread.join()
        return round(max(self.highest, anonymous() - self._start), 1)


def anonymous() -> float:
    """Return the anonymous memory of this process in MB."""
    text = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in text.splitlines() if line.startswith("RssAnon"))) / 1024


def make(folder: Path, layers: int) -> float:
    """Write a model in bfloat16 and return the size of its weights in float32, in MB."""
    known = {**SIZES, "num_hidden_layers": layers}
    config = transformers.AutoConfig.for_model(known.pop("model_type"), **known)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.to_empty(device="cpu")
    for number, weight in enumerate(model.parameters()):
        weight.data.fill_(number / 100)
    model.save_pretrained(folder, max_shard_size="500MB")
    return sum(parameter.numel() for parameter in model.parameters()) * 4 / 2**20


def load(how: str, folder: Path, trained: Path | None) -> dict[str, Any]:
    """Load a sharded model in one of both ways, and write its weights to `trained` as a training job does."""
    from sams.policy.model import load_model
    from sams.policy.policy import bare
    from sams.study.settings import Model, Preference
    from sams.training import loading
    from sams.training.checkpoints import Checkpoints
    from sams.training.distribution import Workers

    workers = Workers(device="cpu", strategy="fsdp2", precision="float32", threads=1, timeout_minutes=5)
    settings = Model(path=str(folder))
    peak, started = Peak(), time.monotonic()
    if how == "whole":
        policy = loading.wrap(load_model(folder, settings), settings, workers, Preference())
    else:
        policy = loading.load_policy(folder, settings, workers, training=Preference())
    figures = {"peak_mb": peak.end(), "seconds": round(time.monotonic() - started, 1), "world": workers.world}
    if trained is not None:
        checkpoints = Checkpoints(trained.parent / "checkpoints", workers, inputs={}, code={})
        checkpoints.publish(policy, trained, config=bare(policy).model.config)
    parts = workers.all_gather(torch.tensor([figures["peak_mb"]]))
    if workers.is_main:
        print(json.dumps(figures | {"peak_mb": [round(float(part), 1) for part in parts]}), flush=True)
    workers.leave()
    return figures


def export(trained: Path, out: Path, file_size: int) -> None:
    """Export the trained weights of a job."""
    from sams.policy import stored
    from sams.training import export as stage

    stored.write.__defaults__ = (file_size,)
    peak, started = Peak(), time.monotonic()
    stage.export_trained(trained, "sdpa", out, torch.bfloat16)
    print(json.dumps({"peak_mb": peak.end(), "seconds": round(time.monotonic() - started, 1)}), flush=True)


def run(*words: object, processes: int = 0) -> dict[str, Any]:
    """Run a part of this benchmark in new processes and return the figures that they print."""
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(start if processes else []), "-m", "benchmarks.sharded_memory"]
    done = subprocess.run([*command, *map(str, words)], stdout=subprocess.PIPE, text=True, check=True)
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument(
        "--layers",
        type=int,
        default=24,
        help="layers of 16.8 M weights, besides 66 M others",
    )
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--file-mb", type=int, default=200, help="largest file of the export")
    parser.add_argument("--out", type=Path, default=Path("results/bench/sharded_memory.json"))
    parser.add_argument("--part", nargs="*", help="internal: part for one process")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.part:
        how, *paths = chosen.part
        if how == "make":
            print(json.dumps({"float32_mb": round(make(Path(paths[0]), chosen.layers), 1)}), flush=True)
        elif how == "export":
            export(Path(paths[0]), Path(paths[1]), chosen.file_mb * 10**6)
        else:
            load(how, Path(paths[0]), Path(paths[1]) if len(paths) > 1 else None)
        return
    with tempfile.TemporaryDirectory() as folder:
        model, trained = Path(folder) / "model", Path(folder) / "trained"
        measured = {
            "model": run("--layers", chosen.layers, "--part", "make", model),
            "whole": run("--part", "whole", model, processes=chosen.processes),
            "shards": run("--part", "shards", model, trained, processes=chosen.processes),
            "export": run("--file-mb", chosen.file_mb, "--part", "export", trained, Path(folder) / "out"),
        }
    for name, figures in measured.items():
        print(name, figures)
    write_json(chosen.out, measured)


if __name__ == "__main__":
    main()
