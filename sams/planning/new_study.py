"""Write a study for a model, preference pairs and GPUs, for `sams init`."""

from __future__ import annotations

import contextlib
import logging
import math
import re
import shlex
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import psutil
import transformers
import yaml

from sams.data import findings, prepare, tokenise
from sams.data.sources import data_set_name
from sams.data.tokens import lengths_of, read_columns
from sams.launch.machine import gpus_here
from sams.launch.preflight import check_model_source
from sams.planning.models import Sizes, sizes_of
from sams.runtime.errors import UserError, first_line
from sams.runtime.files import read_json
from sams.runtime.gpus import GIB, gpu_named
from sams.study.files import DEFAULT, load_study, read_settings
from sams.study.recipes import recipe_json, recipe_of
from sams.study.rehearsal import CLASSES
from sams.study.settings import Model

if TYPE_CHECKING:
    from sams.study.study import Study

Weights = Literal["full", "lora", "qlora"]

# Bytes a weight: float32 masters, gradients and AdamW's moments with a bfloat16 copy; a frozen bfloat16 weight; one
# in four bits, with the layers that stay in bfloat16 (an 8 B model takes 5.7 GB).
BYTES: dict[Weights, float] = {"full": 18.0, "lora": 2.0, "qlora": 0.8}
ON_CPUS: dict[Weights, float] = {"full": 16.0, "lora": 4.0}  # all in float32
ROOM = 0.75
"""Share of the memory that weights and optimiser may take; activations and logits need the rest."""

# Full training of instruct models by DPO: 5e-7 for 7 to 8 B (SamS; SimPO, arXiv 2405.14734), small models bear more.
# Adapters want ten times that rate (Schulman et al. 2025, "LoRA Without Regret"): 5e-6 in the recipes of
# the alignment handbook (Zephyr 7B, QLoRA) and of TRL's dpo.py (Qwen2 0.5B), whose full training has 5e-7.
LARGE, LARGE_RATE, SMALL_RATE = 3e9, 5e-7, 1e-6
ADAPTER_FACTOR = 10
RANK = 16

QUANTILE = 0.99
"""Share of the pairs that the lengths leave uncut."""
MULTIPLE = 64
BATCHES, LEAST_STEPS = (64, 32, 16, 8), 50
TEST_PAIRS = 500


@dataclass(frozen=True)
class Machine:
    """What a study runs on: number of GPUs, name and memory in bytes of each; without GPUs, those of this machine."""

    gpus: int
    name: str
    memory: float

    @classmethod
    def described(cls, gpus: int | None, gpu: str | None) -> Self:
        """Return this machine, or another one with this number and model of GPUs.

        Raises:
            UserError: the model is not known.
        """
        here = _gpus_here()
        if gpu is not None:
            return cls(max(1, gpus or 1), gpu, gpu_named(gpu).memory)
        if gpus == 0 or (not here and gpus is None):
            return cls(0, "the CPUs of this machine", psutil.virtual_memory().total)
        if not here:
            raise UserError(
                "this machine shows no GPU", where="--gpus", remedy="name the model too: --gpu H100"
            )
        return cls(gpus or len(here), *here[0])


@dataclass(frozen=True)
class Lengths:
    """Tokens that leave 99 % of the pairs uncut, of a prompt and of a prompt with its longer response.

    Attributes:
        prompt: limit of the prompt.
        total: limit of prompt and response.
        pairs: number of training pairs that were counted.
        cut: share of the pairs that these limits cut.
    """

    prompt: int
    total: int
    pairs: int
    cut: float


def new_study(
    out: Path,
    *,
    model: str,
    data: str,
    test: str | None,
    weights: Weights | None,
    machine: Machine,
) -> list[str]:
    """Write a study to `out`; return what was found and chosen, one sentence each.

    Args:
        out: file to write, which must not exist.
        model: hub id or local folder of the start model.
        data: pairs, a file or hub data set.
        test: test pairs; None holds out a share of the prompts.
        weights: what is trained; None takes full training if it fits into the GPUs' memory, else adapters.
        machine: what the study will run on.

    Raises:
        UserError: the model or the data cannot be read, or nothing fits into the memory.
    """
    draft = draft_of(out, model, data, test)
    config = config_of_start(model)
    sizes = sizes_of(config)
    positions = int(config.get("max_position_embeddings") or config.get("n_positions") or 1 << 20)
    if config["model_type"] in CLASSES:
        draft["model"]["model_type"] = config["model_type"]
    chosen, why = choose_weights(weights, sizes, machine)
    lengths, notes = measure(draft, positions)
    text = render(draft, out, chosen, lengths, sizes, machine, share=test is None)
    _study(yaml.safe_load(text))
    out.write_text(text, encoding="utf-8")
    return [
        f"{sizes.total / 1e9:.3g} B weights, {positions:,} positions; {why}",
        f"{lengths.pairs:,} training pairs; {f'{lengths.cut:.1%} of them are' if lengths.cut else 'none is'} longer "
        f"than {lengths.total} tokens (prompt {lengths.prompt})",
        *notes,
    ]


def draft_of(out: Path, model: str, data: str, test: str | None = None) -> dict[str, Any]:
    """Return the keys of a study that name model and data, without sizes that depend on them."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", out.name.removesuffix(".yaml")).strip("-.") or "study"
    return {
        "study": name,
        "setting": setting_of(model),
        "methods": ["sft", "dpo", "dpo-random50", "dpo-sams"],
        "model": {"path": model, "architecture": None, "tokenizer": None},
        "data": {"world": None, "train": data, "test": _share(test), "sft": None},
        "sft": None,
        "pretrain": None,
        "benchmarks": {"alpaca_eval": None, "mt_bench": None},
    }


def setting_of(model: str) -> str:
    """Return a short name of a model: the last part of its hub id or path, in small letters."""
    last = model.rstrip("/").rpartition("/")[2]
    return re.sub(r"[^a-z0-9_.-]+", "-", last.lower()).strip("-.") or "model"


def config_of_start(model: str) -> dict[str, Any]:
    """Return the config of a start model, of its language part.

    Raises:
        UserError: there is none, or it cannot be fetched.
    """
    try:
        with _quiet():
            check_model_source(Model(path=model, architecture=None, tokenizer=None), "--model")
            config = transformers.AutoConfig.from_pretrained(model, trust_remote_code=False)
    except UserError:
        raise
    except Exception as error:  # transformers and its libraries raise any type
        raise UserError(
            f"no config can be read: {first_line(error)}",
            where=f"--model {model}",
            remedy="give a folder with config.json, or a hub id that this machine can reach",
        ) from error
    found: dict[str, Any] = config.get_text_config().to_dict()
    return found


def measure(draft: dict[str, Any], positions: int) -> tuple[Lengths, list[str]]:
    """Tokenise the pairs of a study without cutting any; return their lengths, and what is odd about them."""
    most = min(positions, 1 << 17)
    probe = draft | {"data": draft["data"] | {"max_length": most, "max_prompt_length": most - 1}}
    study = _study(probe)
    with tempfile.TemporaryDirectory() as folder:
        records, tokens = Path(folder) / "data", Path(folder) / "tokens"
        with _quiet():
            prepare.main(recipe_json(recipe_of(study, "prepare_data", seed=study.seeds[0])), records)
            tokenise.main(recipe_json(recipe_of(study, "tokenise")), records, tokens)
        report = read_json(records / "report.json")
        columns = read_columns(tokens / "train")
        prompts, chosen, rejected = (
            lengths_of(columns[name]) for name in ("prompt_ids", "chosen_ids", "rejected_ids")
        )
    totals = prompts + np.maximum(chosen, rejected)
    limits = [
        min(positions, math.ceil(np.quantile(values, QUANTILE, method="higher") / MULTIPLE) * MULTIPLE)
        for values in (prompts, totals)
    ]
    prompt, total = limits
    if prompt >= total:  # a prompt that fills all leaves no token for the answer
        prompt = total - MULTIPLE if total > MULTIPLE else total // 2
    cut = float(((prompts > prompt) | (totals > total)).mean())
    return Lengths(prompt, total, len(prompts), cut), [
        *findings.of_leak(report["leak"]),
        *findings.of_records(report),
    ]


def choose_weights(asked: Weights | None, sizes: Sizes, machine: Machine) -> tuple[Weights, str]:
    """Return what is trained, and why.

    Raises:
        UserError: it does not fit into the memory.
    """
    whole = max(1, machine.gpus) * machine.memory * ROOM
    sizes_of_weights = BYTES if machine.gpus else ON_CPUS

    def needed(weights: Weights) -> float:
        # Adapters are trained by DDP, with the frozen weights in every process; FSDP2 shards full training.
        copies = 1 if weights == "full" else max(1, machine.gpus)
        return sizes_of_weights[weights] * copies * sizes.total

    if asked is not None and asked not in sizes_of_weights:
        raise UserError("4-bit weights need a GPU", where="--qlora", remedy="take --lora")
    possible = [asked] if asked else list(sizes_of_weights)
    fitting = next((weights for weights in possible if needed(weights) <= whole), None)
    room = f"{machine.memory / GIB:.0f} GiB" + (
        f" on each of {machine.gpus} GPUs" if machine.gpus > 1 else ""
    )
    if fitting is None:
        least = possible[-1]
        raise UserError(
            f"{least} training of {sizes.total / 1e9:.3g} B weights takes {needed(least) / GIB:.0f} GiB and "
            f"activations, of {whole / ROOM / GIB:.0f} GiB",
            where=machine.name,
            remedy="take more GPUs (--gpus), another GPU (--gpu H200)"
            + ("" if asked == "qlora" else ", or --qlora"),
        )
    taken = f"{needed(fitting) / GIB:.1f} GiB of weights and optimiser, of {room}"
    what = {
        "full": "all weights are trained",
        "lora": "adapters are trained",
        "qlora": "adapters on 4-bit weights",
    }
    return fitting, f"{what[fitting]} ({taken})"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without warnings and progress bars of libraries, which stay in the logs of the jobs."""
    transformers.logging.disable_progress_bar()
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def _share(test: str | None) -> float | str:
    """Return the share of test prompts that is given as a number, or the source of test pairs."""
    try:
        return 0.1 if test is None else float(test)
    except ValueError:
        return str(test)


def render(
    draft: dict[str, Any],
    out: Path,
    weights: Weights,
    lengths: Lengths,
    sizes: Sizes,
    machine: Machine,
    *,
    share: bool,
) -> str:
    """Return the study's text."""
    name = draft["study"]
    rate = LARGE_RATE if sizes.total >= LARGE else SMALL_RATE
    if weights != "full":
        rate *= ADAPTER_FACTOR
    batch = next((size for size in BATCHES if lengths.pairs >= size * LEAST_STEPS), BATCHES[-1])
    unit = 2 * max(1, machine.gpus)  # every process takes part, and half of the batch is whole
    batch = max(unit, batch // unit * unit)
    if lengths.pairs < batch:
        raise UserError(
            f"{lengths.pairs} training pairs are fewer than a batch of {batch}",
            where=f"--data {draft['data']['train']}",
            remedy="give more",
        )
    file = shlex.quote(str(out))
    test: Any = draft["data"]["test"]
    if share:
        test = min(0.1, max(0.02, round(TEST_PAIRS / max(1, lengths.pairs / 0.9), 2)))
    on = f"{machine.gpus} x {machine.name}" if machine.gpus else machine.name
    adapters = {
        "full": "  # Full training. Adapters instead: lora: {r: 16, alpha: 32.0} and ten times the rate.",
        "lora": f"  lora: {{r: {RANK}, alpha: {2 * RANK}.0}}",
        "qlora": f"  lora: {{r: {RANK}, alpha: {2 * RANK}.0, load_in_4bit: true}}  # needs bitsandbytes",
    }[weights]
    sharded = weights == "full" and machine.gpus > 1
    launch = (
        f"launch: {{nproc_per_node: {machine.gpus}, strategy: {'fsdp2' if sharded else 'ddp'}}}"
        if machine.gpus
        else "launch: {device: cpu, nproc_per_node: 1}"
    )
    value = _value
    tasks = {
        f"sams data {file}": "rows as they are trained on: template, mask, lengths",
        f"sams plan --configfile {file}": "hours, memory, disk",
        f"sams run {file}": "trains, prints the table; goes on after Ctrl-C",
        f"sams show --configfile {file}": "the table again",
    }
    kind = draft["model"].get("model_type")
    rehearsed = f"  model_type: {kind}  # for `sams run --rehearse`\n" if kind else ""
    width = max(map(len, tasks))
    commands = "\n".join(f"#   {command:{width}}  {text}" for command, text in tasks.items())
    return f"""\
# DPO, DPO on a random half, and DPO with SamS, on {value(data_set_name(draft["data"]["train"])[0])}.
# Written by `sams init` for {on}: {sizes.total / 1e9:.3g} B weights, {lengths.pairs:,} pairs.
#
{commands}
#
# docs/settings.md lists all keys; those not named here have the values of config/config.yaml.
study: {value(name)}
setting: {value(draft["setting"])}
# `sft` is the start model itself.
methods: [sft, dpo, dpo-random50, dpo-sams]
# Standard errors over seeds: [0, 1, 2], in three times the time.
seeds: [0]

model:
  path: {value(draft["model"]["path"])}
  architecture: null
  tokenizer: null
{rehearsed}  precision: {"bfloat16" if machine.gpus else "float32"}
  activation_checkpointing: auto

data:
  world: null
  train: {value(draft["data"]["train"])}
  # {"Share of the prompts that is held out for testing, or a file." if share else "Test pairs."}
  test: {value(test)}
  sft: null
  # {1 - lengths.cut:.1%} of the training pairs fit.
  max_length: {lengths.total}
  max_prompt_length: {lengths.prompt}

# Training starts from the model as it is. An untuned base model needs SFT first: a section `sft`, and `data.sft`.
sft: null
# The scheduler learns from the chosen responses first.
pretrain: {{batch_size: {batch}, micro_batch_size: auto, scoring_micro_batch_size: auto}}

preference:
  # Pairs a step, over all processes. SamS looks at all of them and trains on half.
  batch_size: {batch}
  micro_batch_size: auto
  scoring_micro_batch_size: auto
  epochs: 1
  beta: 0.1
  # Full training: 5e-7 (7 B) to 1e-6. Adapters: ten times that.
  learning_rate: {rate:.1e}
  schedule: cosine
  warmup_ratio: 0.1
{adapters}
  evaluations: 4

# Judged benchmarks need a judge: docs/judging.md. `own_prompts: FILE` compares answers to your own prompts.
benchmarks: {{alpaca_eval: null, mt_bench: null}}

{launch}
"""


def _gpus_here() -> list[tuple[str, float]]:
    """Return name and memory in bytes of each GPU that this process may use."""
    if not gpus_here():
        return []
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    lines = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout.splitlines()
    fields = [line.rpartition(",") for line in lines]
    return [(name.strip(), float(memory) * 2**20) for name, _, memory in fields][: gpus_here()]


def next_commands(out: Path) -> str:
    """Return the commands that follow."""
    file = shlex.quote(str(out))
    return f"""
Written: {out}. Read it, then:
  sams data {file}
  sams run {file}"""


def _value(value: Any) -> str:
    """Return a value as YAML writes it on a line."""
    return yaml.safe_dump(value, width=10_000, allow_unicode=True).removesuffix("\n...\n").strip()


def _study(draft: dict[str, Any]) -> Study:
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as file:
        yaml.safe_dump(draft, file)
        file.flush()
        return load_study(read_settings([DEFAULT, Path(file.name)]), where="the draft of the study")
