"""A frozen base in 4 bits: what is rounded, how it trains, and what an export merges."""

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sams.policy.model import add_lora, load_model
from sams.policy.policy import Policy, weights_of
from sams.policy.quantised import quantise, rounded
from sams.policy.rows import pad_rows
from sams.runtime.errors import UserError
from sams.study.recipes import ExportRecipe, ReferenceRecipe
from sams.study.settings import Lora, Preference
from sams.training import export, loading, preference, reference
from sams.training.distribution import Workers
from sams.training.export import fill
from tests import tiny
from tests.training.test_runs import here, losses, preference_recipe, weights

ROWS = pad_rows([([1, 5, 6, 7], [[8, 9, 2], [10, 2]]), ([1, 5], [[12, 2], [11, 2]])])
LORA = {"r": 4, "alpha": 8.0, "load_in_4bit": True}


def test_without_the_package_one_line_says_what_to_install(
    prepared: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match=r"lora.load_in_4bit: 4-bit weights need the package bitsandbytes"):
        quantise(load_model(prepared["model"], tiny.settings()), torch.device("cpu"))


def test_weights_are_rounded_to_the_nearest_of_16_values() -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="the extra qlora is not installed")
    torch.manual_seed(0)
    weight = torch.randn(96, 128).bfloat16()
    packed, state = rounded(weight)
    assert packed.numel() == weight.numel() / 2
    ours = bitsandbytes.functional.dequantize_4bit(packed, state)
    theirs = bitsandbytes.functional.dequantize_4bit(
        *bitsandbytes.functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    )
    assert ours.dtype == torch.bfloat16
    errors = [float((found - weight).float().norm() / weight.float().norm()) for found in (ours, theirs)]
    assert errors[0] == pytest.approx(errors[1], rel=1e-3) and errors[0] < 0.11
    layout = (state.absmax.numel() + 4 * state.state2.absmax.numel() + packed.numel()) / weight.numel()
    assert layout == pytest.approx(Lora(load_in_4bit=True).bytes_of_base("bfloat16"), rel=0.01)


def logps(policy: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = policy(ROWS).logps
    return found


def test_adapters_over_4_bits_are_merged_into_the_rounded_base(
    prepared: dict[str, Path], tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes", reason="the extra qlora is not installed")
    model = tiny.settings(precision="bfloat16")
    inputs = {**prepared, "reference": tmp_path / "reference"}
    scored = ReferenceRecipe(model=model, micro_batch_size=16, load_in_4bit=True)
    here(reference, scored, tokens=inputs["tokens"], model=inputs["model"], out=inputs["reference"])
    recipe = preference_recipe(lora=LORA, learning_rate=1e-2, epochs=3, max_steps=12)
    recipe = recipe.model_copy(update={"model": model})
    here(preference, recipe, **inputs, out=tmp_path, checkpoints=tmp_path / "c")
    assert losses(tmp_path)[0] == pytest.approx(0.6931, abs=2e-3)
    assert losses(tmp_path)[-1] < 0.65
    assert all(".lora_" in name for name in weights(tmp_path))

    merged = tmp_path / "model"
    paths = {"tokens": prepared["tokens"], "trained": tmp_path / "trained", "model": prepared["model"]}
    here(export, ExportRecipe(model=model), **paths, out=merged)
    workers = Workers(device="cpu", strategy="ddp", precision="bfloat16", threads=1, timeout_minutes=1)
    training = Preference(lora=Lora.model_validate(LORA))
    policy = loading.load_policy(prepared["model"], model, workers, training=training)
    fill(policy, tmp_path / "trained", frozen=False)
    whole = Policy(load_model(merged, model, dtype=torch.bfloat16))
    assert weights_of(policy)[0] > weights_of(whole)[0], "the base, and adapters"
    trained = logps(policy)
    difference = (logps(whole) - trained).abs().max()
    plain = load_model(prepared["model"], model)
    adapters = add_lora(plain, Lora.model_validate(LORA))
    fill(Policy(plain), tmp_path / "trained", frozen=False)
    onto_the_file = (logps(Policy(adapters.merge_and_unload().bfloat16())) - trained).abs().max()
    assert difference < 0.01 < 0.5 * onto_the_file


def test_4_bits_are_not_sharded(prepared: dict[str, Path]) -> None:
    workers = Workers(device="cpu", strategy="ddp", precision="bfloat16", threads=1, timeout_minutes=1)
    workers.shards = 2
    training = Preference(lora=Lora.model_validate(LORA))
    with pytest.raises(UserError, match="4-bit weights cannot be sharded"):
        loading.load_policy(prepared["model"], tiny.settings(), workers, training=training)
