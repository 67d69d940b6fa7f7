"""What the tests of training jobs start from."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch.distributed as dist

from sams.study.recipes import ExportRecipe, PretrainRecipe, ReferenceRecipe, SftRecipe
from sams.study.settings import Pretrain, Scheduler, Sft
from sams.training import export, pretrain_scheduler, reference, sft
from tests import tiny
from tests.training.test_runs import TRAINING, here


@pytest.fixture(autouse=True)
def no_process_group() -> Iterator[None]:
    """A policy that was trained in bfloat16 in this process leaves none behind."""
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.fixture(scope="session")
def prepared(tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """SFT model, reference log-probs and pretrained scheduler, each made by its own stage."""
    folder = tmp_path_factory.mktemp("prepared")
    model = tiny.settings()
    sft_recipe = SftRecipe(seed=0, model=model, training=Sft.model_validate(TRAINING))
    here(sft, sft_recipe, tokens=tokens, out=folder / "sft", checkpoints=folder / "ck")
    here(
        export, ExportRecipe(model=model), tokens=tokens, trained=folder / "sft/trained", out=folder / "model"
    )
    inputs = {"tokens": tokens, "model": folder / "model"}
    here(reference, ReferenceRecipe(model=model, micro_batch_size=16), **inputs, out=folder / "reference")
    pretraining = Pretrain.model_validate(TRAINING)
    pretrain = PretrainRecipe(seed=0, model=model, scheduler=Scheduler(), training=pretraining)
    here(pretrain_scheduler, pretrain, **inputs, out=folder / "scheduler", checkpoints=folder / "ps")
    return inputs | {"reference": folder / "reference", "scheduler": folder / "scheduler" / "weights"}
