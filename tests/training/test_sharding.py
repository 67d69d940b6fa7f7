"""FSDP2: what a process reads of a model, and what nodes that are replicas of one another do."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint import HuggingFaceStorageReader

from sams.policy.model import build_model, load_model
from sams.policy.stored import stored_names, without_weights, write
from sams.runtime.files import read_json
from sams.study.recipes import Job
from tests import tiny
from tests.conftest import ROOT
from tests.training.forks import server
from tests.training.test_runs import finish, losses, preference_recipe, run, weights


def stored(folder: Path, kind: str, **settings: object) -> Path:
    """A model in bfloat16, in several files."""
    model = build_model(tiny.settings(kind, **settings), tiny.tokenizer(), seed=0)
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    return folder


def test_processes_that_read_their_own_shards_hold_what_they_would_of_the_whole(tmp_path: Path) -> None:
    """Tied weights, names that files have and models have not, buffers; bit by bit, gradients too."""
    folders = [f"{kind}={stored(tmp_path / kind, kind)}" for kind in tiny.ARCHITECTURES]
    words = {"folders": " ".join(folders)}
    statuses = server().start("tests.training.sharded_loading", words, processes=2)
    assert statuses == [0, 0], server().output()
    equal = [line for line in server().output().splitlines() if line.startswith("equal: ")]
    assert equal == [f"equal: {kind}" for kind in tiny.ARCHITECTURES]


def test_files_that_lack_a_weight_or_hold_another_size_are_left_to_transformers(tmp_path: Path) -> None:
    build_model(tiny.settings(), tiny.tokenizer(), seed=0).save_pretrained(tmp_path)
    model = without_weights(tmp_path, "sdpa")
    assert stored_names(model, tmp_path) is not None
    file = tmp_path / "model.safetensors"
    whole = load_file(file)
    name = "model.layers.1.mlp.up_proj.weight"
    save_file({key: value for key, value in whole.items() if key != name}, file)
    assert stored_names(model, tmp_path) is None
    save_file({**whole, name: whole[name][1:].clone()}, file)
    assert stored_names(model, tmp_path) is None


@pytest.mark.slow  # four processes
def test_two_nodes_that_are_replicas_of_two_shards_equal_one_process(
    prepared: dict[str, Path], tmp_path: Path
) -> None:
    recipe, out = preference_recipe(), tmp_path / "nodes"
    launch = {"device": "cpu", "strategy": "fsdp2", "shard_over": "node", "timeout_minutes": 2.0}
    paths = {**prepared, "out": out, "checkpoints": tmp_path / "c"}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    nodes = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "2"),
                *("--node-rank", str(node), "--master-addr", "127.0.0.1", "--master-port", str(port)),
                *("-m", "sams.training.preference", "--recipe", recipe.model_dump_json()),
                *(word for name, path in paths.items() for word in (f"--{name}", str(path))),
            ],
            env={**os.environ, "SAMS_JOB": Job.model_validate({"launch": launch}).model_dump_json()},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for node in range(2)
    ]
    for node in nodes:
        finish(node)
    run(prepared, tmp_path / "one")
    assert losses(out) == pytest.approx(losses(tmp_path / "one"), abs=1e-5)
    ours, theirs = weights(out), weights(tmp_path / "one")
    for name, value in theirs.items():
        assert (ours[name] - value).norm() <= 1e-5 * value.norm(), name


@pytest.mark.parametrize("kind", tiny.ARCHITECTURES)
def test_what_is_written_file_by_file_is_what_transformers_writes(tmp_path: Path, kind: str) -> None:
    folder, limit = stored(tmp_path / "start", kind), 30_000
    settings = tiny.settings(kind)
    load_model(folder, settings).to(torch.bfloat16).save_pretrained(tmp_path / "whole", max_shard_size=limit)
    model = without_weights(folder, settings.attention)
    found = stored_names(model, folder)
    assert found is not None
    model.config.use_cache = True
    write(
        model, HuggingFaceStorageReader(str(folder)), found, tmp_path / "ours", torch.bfloat16, folder, limit
    )

    weights = []
    for made in ("whole", "ours"):
        files = sorted((tmp_path / made).glob("*.safetensors"))
        assert len(files) > 1 and all(file.stat().st_size < 2 * limit for file in files)
        weights.append({name: tensor for file in files for name, tensor in load_file(file).items()})
        # Loaded by transformers, nothing is missing.
        loaded, info = transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path / made, output_loading_info=True
        )
        assert not info["missing_keys"] and not info["unexpected_keys"]
        assert loaded.dtype == torch.bfloat16
    whole, ours = weights
    assert whole.keys() == ours.keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in whole.items())
    names = {path.name for path in (tmp_path / "whole").iterdir()}
    assert names == {path.name for path in (tmp_path / "ours").iterdir()}
    for name in ("config.json", "generation_config.json"):
        assert read_json(tmp_path / "ours" / name) == read_json(tmp_path / "whole" / name), name
    theirs, mine = (read_json(tmp_path / made / "model.safetensors.index.json") for made in ("whole", "ours"))
    assert mine["metadata"] == theirs["metadata"] and mine["weight_map"].keys() == theirs["weight_map"].keys()


@pytest.mark.parametrize(
    ("processes", "nodes", "precision"), [(2, 1, "float32"), (2, 1, "bfloat16"), (4, 2, "float32")]
)
def test_gradients_exchanged_in_every_micro_batch_are_those_exchanged_in_the_last(
    processes: int, nodes: int, precision: str
) -> None:
    arguments = {"precision": precision, "nodes": nodes}
    statuses = server().start("tests.training.exchange", arguments, processes=processes)
    assert statuses == [0] * processes, server().output()
    assert "difference" in server().output()
