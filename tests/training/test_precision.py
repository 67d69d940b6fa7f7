"""bfloat16 is the type of all computation of a trained policy, from float32 masters that are cast once a step."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from sams.losses.table import build_loss
from sams.policy.model import build_model
from sams.policy.policy import bare
from sams.study.recipes import ReferenceRecipe
from sams.study.settings import Lora, Preference
from sams.training import loading, preference, reference
from sams.training.distribution import Workers, local_part, reshard
from sams.training.passes import accumulate_gradient, score
from sams.training.tasks.preference import PreferenceTask
from sams.training.updates import adamw
from tests import tiny
from tests.training.forks import server
from tests.training.test_runs import here, losses, preference_recipe, weights

PAIRS = 6
TASK = PreferenceTask(
    tiny.pairs(PAIRS, seed=1),
    loss=build_loss("simpo", beta=2.0, settings={"gamma_beta_ratio": 0.5}, sft_weight=0.0),
    reference=None,
)
COMBINATIONS = [
    (strategy, precision, adapted)
    for strategy in ("ddp", "fsdp2")
    for precision, adapted in (("float32", False), ("bfloat16", False), ("bfloat16", True))
]


class Job:
    """A policy with its optimiser, as a training job has them."""

    def __init__(
        self, strategy: str, precision: str, *, lora: Lora | None = None, fused: bool = False
    ) -> None:
        settings = tiny.settings(precision=precision)
        training = Preference(learning_rate=1e-3, lora=lora)
        self.workers = Workers(
            device="cpu", strategy=strategy, precision=precision, threads=1, timeout_minutes=1
        )
        model = build_model(settings, tiny.tokenizer(), seed=0)
        self.policy = loading.wrap(model, settings, self.workers, training)
        self.optimiser = adamw(self.policy, training, self.workers)
        if fused:  # as on a GPU
            for options in (self.optimiser.defaults, *self.optimiser.param_groups):
                options["fused"] = True

    def score(self) -> list[float]:
        values, _ = score(self.policy, TASK, list(range(PAIRS)), self.workers, 2)
        return values["loss"].tolist()

    def step(self) -> list[float]:
        """Score a batch, and train on it in micro-batches of one pair."""
        losses = self.score()
        self.optimiser.zero_grad()
        accumulate_gradient(self.policy, TASK, list(range(PAIRS)), self.workers, 1)
        self.workers.clip(self.policy, 1.0, self.optimiser)
        self.optimiser.step()
        return losses

    def masters(self) -> dict[str, Tensor]:
        reshard(self.policy)
        return {name: local_part(weight.detach()) for name, weight in self.policy.named_parameters()}


def attention_types(policy: nn.Module) -> set[torch.dtype]:
    """The set that will hold the types of the tensors that attention receives."""
    types: set[torch.dtype] = set()
    attend = torch.nn.functional.scaled_dot_product_attention

    def watched(*args: Any, **kwargs: Any) -> Tensor:
        types.update(tensor.dtype for tensor in args)
        return attend(*args, **kwargs)

    bare(policy).model.config._attn_implementation = "sdpa"
    torch.nn.functional.scaled_dot_product_attention = watched
    return types


def report(strategy: str, precision: str, adapted: bool) -> dict[str, Any]:
    """What attention receives, and the losses before each of four steps."""
    attend = torch.nn.functional.scaled_dot_product_attention
    try:
        job = Job(strategy, precision, lora=Lora() if adapted else None, fused=strategy == "fsdp2")
        types = attention_types(job.policy)
        losses = [job.step() for _ in range(4)]
    finally:
        torch.nn.functional.scaled_dot_product_attention = attend
    for name, weight in job.masters().items():
        frozen = adapted and "lora_" not in name
        assert weight.dtype == (torch.bfloat16 if frozen else torch.float32), name
    return {"types": sorted(map(str, types)), "losses": losses}


def main() -> None:
    """In a process group: print the reports of all combinations."""
    reports = [report(*combination) for combination in COMBINATIONS]
    print("reports:", json.dumps(reports), flush=True)


def test_attention_receives_the_compute_type_and_two_processes_equal_one() -> None:
    statuses = server().start("tests.training.test_precision", {}, processes=2)
    assert statuses == [0, 0], server().output()
    lines = [line for line in server().output().splitlines() if line.startswith("reports: ")]
    alone = [report(*combination) for combination in COMBINATIONS]
    for line in lines:
        pairs = zip(alone, json.loads(line.removeprefix("reports: ")), strict=True)
        for combination, (one, two) in zip(COMBINATIONS, pairs, strict=True):
            assert one["types"] == two["types"] == [f"torch.{combination[1]}"], combination
            within = 1e-5 if combination[1] == "float32" else 0.05
            for ours, theirs in zip(one["losses"], two["losses"], strict=True):
                assert theirs == pytest.approx(ours, abs=within), combination
            assert sum(one["losses"][3]) < sum(one["losses"][0]) - (0 if combination[2] else 1)
    assert len(lines) == 2


class Casts(TorchDispatchMode):
    """Counts the elements that are cast from float32 weights to bfloat16."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.addresses = {weight.untyped_storage().data_ptr() for weight in weights.values()}
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and out.dtype == torch.bfloat16:
            self.elements += args[0].numel() * (args[0].untyped_storage().data_ptr() in self.addresses)
        return out


def test_weights_are_cast_once_a_step() -> None:
    """Not in every micro-batch of the scoring and of the training pass."""
    job = Job("ddp", "bfloat16")
    job.step()
    masters = job.masters()
    with Casts(masters) as casts:
        job.step()
        assert casts.elements == sum(weight.numel() for weight in masters.values())
        job.score()  # with the new weights
    assert casts.elements == 2 * sum(weight.numel() for weight in masters.values())


def test_a_pass_after_a_step_sees_the_new_weights() -> None:
    job, other = Job("ddp", "bfloat16"), Job("ddp", "bfloat16")
    job.score()
    job.optimiser.zero_grad()
    accumulate_gradient(job.policy, TASK, list(range(PAIRS)), job.workers, PAIRS)
    job.optimiser.step()
    losses = job.score()
    for name, weight in other.masters().items():
        weight.copy_(job.masters()[name])
    assert losses == other.score() != Job("ddp", "bfloat16").score()


def test_gradients_of_micro_batches_are_added_in_float32() -> None:
    whole, parts = Job("ddp", "bfloat16"), Job("ddp", "bfloat16")
    for job, micro_batch in ((whole, PAIRS), (parts, 1)):
        accumulate_gradient(job.policy, TASK, list(range(PAIRS)), job.workers, micro_batch)
        reshard(job.policy)
    gradients = [
        torch.cat([local_part(weight.grad).flatten() for weight in job.policy.parameters()])
        for job in (whole, parts)
    ]
    assert gradients[1].dtype == torch.float32
    assert not torch.equal(gradients[1], gradients[1].bfloat16().float())
    assert (gradients[1] - gradients[0]).norm() < 0.02 * gradients[0].norm()


def test_adapters_are_float32_over_a_base_in_bfloat16() -> None:
    job = Job("ddp", "bfloat16", lora=Lora())
    before = {name: weight.clone() for name, weight in job.masters().items()}
    losses = [job.step() for _ in range(4)]
    assert sum(losses[3]) < sum(losses[0])
    for name, weight in job.masters().items():
        adapter = "lora_" in name
        assert weight.dtype == (torch.float32 if adapter else torch.bfloat16), name
        assert torch.equal(weight, before[name]) != adapter, name


class Names(TorchDispatchMode):
    """Collects the names of all operations."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func._schema.name.removeprefix("aten::"))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_fused_step_clips_the_gradients_itself(precision: str) -> None:
    most = 0.02
    found = []
    for fused in (False, True):
        job = Job("ddp", precision, fused=fused)
        for _ in range(2):
            job.optimiser.zero_grad()
            accumulate_gradient(job.policy, TASK, list(range(PAIRS)), job.workers, PAIRS)
            with Names() as operations:
                norm = job.workers.clip(job.policy, most, job.optimiser)
                job.optimiser.step()
            assert norm > 10 * most
        assert (("_foreach_mul_" in operations.names) or ("mul_" in operations.names)) != fused
        moments = [local_part(state["exp_avg"]) for state in job.optimiser.state.values()]
        found.append([norm, *job.masters().values(), *moments])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-6)


def test_a_job_in_bfloat16_agrees_with_its_reference_and_resumes_bitwise(
    prepared: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny.settings(precision="bfloat16")
    inputs = {**prepared, "reference": tmp_path / "reference"}
    scored = ReferenceRecipe(model=model, micro_batch_size=16)
    here(reference, scored, tokens=inputs["tokens"], model=inputs["model"], out=inputs["reference"])
    recipe = preference_recipe().model_copy(update={"model": model})
    here(preference, recipe, **inputs, out=tmp_path / "whole", checkpoints=tmp_path / "a")
    parts = {**inputs, "out": tmp_path / "parts", "checkpoints": tmp_path / "b"}
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr("sams.training.loop.note_stop_requests", lambda: lambda: True)
        here(preference, recipe, **parts)
    here(preference, recipe, **parts)

    assert losses(tmp_path / "whole")[0] == pytest.approx(0.6931, abs=2e-3)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    resumed, whole = weights(tmp_path / "parts"), weights(tmp_path / "whole")
    start = load_file(prepared["model"] / "model.safetensors")
    assert whole.keys() == {f"policy.model.{name}" for name in start}
    for name, value in whole.items():
        assert value.dtype == torch.float32 and torch.equal(resumed[name], value), name
        assert not torch.equal(value, value.bfloat16().float()), name
