"""Simulate memory and traffic of large policies on many GPUs: python -m benchmarks.scale_simulation.

Each row is a step of the trainer's sharded policy in a fake process group, on tensors without data: the peak of one
process as torch's tracker counts it, and the bytes that its collectives send. Prints the table of docs/scale.md and
writes results/bench/scale_simulation.json row by row. `--quick` extrapolates from models cut to 4 and 8 blocks.
"""

import time
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import torch

from benchmarks.traffic import CountTraffic, Traffic, expected
from sams.planning.memory import RESERVE, SPARE, Passes, Simulation
from sams.planning.models import build
from sams.policy.blocks import blocks
from sams.runtime.files import read_json, write_json
from sams.runtime.gpus import GPUS
from sams.study.architectures import config_of
from sams.study.settings import Model

GIB = 2**30
MODELS = {"8B": "meta-llama/Meta-Llama-3-8B-Instruct", "70B": "meta-llama/Meta-Llama-3-70B-Instruct"}
CASES = [
    # model, processes, replicas, pairs of a micro-batch, micro-batches
    ("8B", 8, 1, 1, 1),
    ("70B", 64, 1, 1, 1),
    ("8B", 8, 1, 1, 4),
    ("8B", 64, 8, 1, 1),
    ("70B", 64, 8, 1, 1),
    ("8B", 64, 1, 1, 1),
    ("8B", 8, 1, 4, 1),
]
MAX_LENGTH = 1024
QUICK = (4, 8)


def simulate(
    name: str, world: int, replicas: int, pairs: int, micro_batches: int, *, quick: bool
) -> dict[str, Any]:
    """Simulate one row of the table."""
    started = time.monotonic()
    model = Model(path=MODELS[name], precision="bfloat16", activation_checkpointing=True)
    config = config_of(model)
    passes = Passes(pairs, 2, micro_batches, True, "full")

    def step(cut: dict[str, int]) -> tuple[float, Traffic]:
        counted = CountTraffic()
        peak = Simulation(config | cut, model, world, True, MAX_LENGTH, replicas).peak(passes, counted)
        return peak, counted.traffic

    if quick:
        (less, few), (more, many) = (step({"num_hidden_layers": layers}) for layers in QUICK)
        further = (config["num_hidden_layers"] - QUICK[0]) / (QUICK[1] - QUICK[0])
        peak = less + further * (more - less)
        sent = {kind: few.sent[kind] + further * (many.sent[kind] - few.sent[kind]) for kind in few.sent}
    else:
        peak, traffic = step({})
        sent = traffic.sent
    # At most two micro-batches are simulated; each gathers the same.
    sent["all_gather"] *= micro_batches / min(2, micro_batches)
    policy = build(config, model.attention)
    total = sum(weight.numel() for weight in policy.parameters())
    inner = sum(weight.numel() for weight in blocks(policy.model).parameters())
    hand = expected(
        inner,
        total - inner,
        processes=world // replicas,
        replicas=replicas,
        compute=torch.bfloat16,
        micro_batches=micro_batches,
    )
    taken = SPARE * peak + RESERVE
    return {
        "model": name,
        "weights": total,
        "processes": world,
        "sharded_over": world // replicas,
        "micro_batches": f"{micro_batches} x {pairs}",
        "state_gib": 16 * total * replicas / world / GIB,
        "peak_gib": peak / GIB,
        "taken_gib": taken / GIB,
        "fits": taken <= GPUS["H100"].memory,
        "sent": sent,
        "sent_by_hand": hand.sent,
        "extrapolated": quick,
        "seconds": round(time.monotonic() - started, 1),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Format the rows as a Markdown table."""
    lines = [
        "| model | processes | sharded over | micro-batches × pairs | weights, gradients, moments | peak | taken "
        "| 80 GB | all-gather | reduce-scatter | all-reduce |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        sent = [row["sent"].get(kind, 0) / 1e9 for kind in ("all_gather", "reduce_scatter", "all_reduce")]
        memory = [f"{row[name]:.1f}" for name in ("state_gib", "peak_gib", "taken_gib")]
        words = [row["model"], row["processes"], row["sharded_over"], row["micro_batches"].replace("x", "×")]
        words += [*memory, "fits" if row["fits"] else "**no**"]
        words += [f"{gigabytes:.1f}" if gigabytes else "–" for gigabytes in sent]
        lines.append("| " + " | ".join(map(str, words)) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=MODELS, help="one of the models")
    parser.add_argument("--quick", action="store_true", help="extrapolate from 4 and 8 blocks")
    parser.add_argument("--out", type=Path, default=Path("results/bench/scale_simulation.json"))
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for case in CASES:
        if chosen.only in (None, case[0]):
            rows.append(simulate(*case, quick=chosen.quick))
            write_json(chosen.out, rows)
            print(rows[-1], flush=True)
    print(table(read_json(chosen.out)))


if __name__ == "__main__":
    main()
