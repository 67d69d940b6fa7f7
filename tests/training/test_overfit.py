"""The trainer can learn anything at all: a handful of pairs by heart, in a fixed number of steps."""

import json
from pathlib import Path

import datasets

from sams.runtime.files import write_manifest
from sams.study.recipes import ReferenceRecipe
from sams.training import reference
from tests import tiny
from tests.training.test_runs import here, run

STEPS = 100


def test_eight_pairs_are_learnt_by_heart(prepared: dict[str, Path], tmp_path: Path) -> None:
    tokens = tiny.write_tokens(tmp_path / "tokens")
    pairs = tiny.pairs(8, seed=1)
    # Every second pair is the lesson of the others turned round: no rule fits all eight.
    for pair in range(0, 8, 2):
        chosen, rejected = pairs["chosen_ids"], pairs["rejected_ids"]
        chosen[pair], rejected[pair] = rejected[pair], chosen[pair]
    datasets.Dataset.from_dict(pairs).save_to_disk(tokens / "train")
    write_manifest(tokens)
    inputs = {"tokens": tokens, "model": prepared["model"]}
    recipe = ReferenceRecipe(model=tiny.settings(), micro_batch_size=8)
    here(reference, recipe, **inputs, out=tmp_path / "reference")
    run(
        inputs | {"reference": tmp_path / "reference"},
        tmp_path / "out",
        selector="all",
        ratio=1.0,
        batch_size=8,
        micro_batch_size=8,
        epochs=STEPS,
        max_steps=STEPS,
        learning_rate=3e-3,
        checkpoint_every=STEPS,
    )
    steps = [json.loads(line) for line in (tmp_path / "out/train.jsonl").read_text().splitlines()]
    assert len(steps) == STEPS
    assert steps[-1]["rewards/accuracies"] == 1.0
    assert steps[-1]["loss"] < 0.05
