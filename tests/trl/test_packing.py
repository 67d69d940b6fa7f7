"""Packed rows under TRL's trainer: the values, gradients and steps of padded ones, and where they are not used."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import torch.distributed as dist
import transformers
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from transformers.trainer_callback import PrinterCallback
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.utils import add_fused_lm_head

from benchmarks.models import MODELS, model_of
from sams.policy.attention import SEGMENTS
from sams.policy.blocks import blocks
from sams.policy.policy import Policy
from sams.policy.rows import pad_rows
from sams.runtime.errors import UserError
from sams.training.distribution import local_part
from sams.trl import ScheduledDPOTrainer
from sams.trl.forward import padded
from sams.trl.packed import PER_TOKEN, PackedModel, packed
from sams.trl.packing import choose_forward
from tests.conftest import ROOT
from tests.policy.models import policy_of
from tests.trl import small

EOS = 2
LONGEST = 24
TOKENS = ("log_probs", "entropy", "mean_logits", "is_top1", "log_sum_sq_probs")
EXAMPLES: list[dict[str, Any]] = [
    {"prompt_ids": [1, 5, 6, 7, 8], "chosen_ids": [9, 10, EOS], "rejected_ids": [11, EOS]},
    {"prompt_ids": [1], "chosen_ids": [9, 9, 9, 9, EOS], "rejected_ids": [9, 9, 4, 4, 4, 4, EOS]},  # short
    {"prompt_ids": [1, *range(3, 40)], "chosen_ids": [9, EOS], "rejected_ids": [11, EOS]},  # cut away
    {"prompt_ids": [1, *range(3, 22)], "chosen_ids": [9] * 9, "rejected_ids": [11, EOS]},  # cut to 4
    {"prompt_ids": [1, 5, EOS, 7], "chosen_ids": [], "rejected_ids": [11, 12]},  # empty
    {"prompt_ids": [], "chosen_ids": [9, 10, EOS], "rejected_ids": [9, 11, EOS]},
]


def batch(examples: list[dict[str, Any]] = EXAMPLES, **cut: Any) -> dict[str, Tensor]:
    """A batch of TRL's, padded with the end-of-sequence token, with labels."""
    collate = DataCollatorForPreference(pad_token_id=EOS, max_length=LONGEST, **cut)
    inputs = collate(examples)
    completion = inputs.pop("completion_mask")
    return {**inputs, "labels": inputs["input_ids"].masked_fill(completion == 0, -100)}


def model_with_head(kind: str) -> Any:
    model = policy_of(kind).model
    add_fused_lm_head(model, outputs=TOKENS)
    PackedModel.of(model).attention = SEGMENTS
    return model


def gradient(model: nn.Module) -> Tensor:
    gradients = [part.grad for part in model.parameters() if part.grad is not None]
    return torch.cat([local_part(part).flatten() for part in gradients])


def assert_equal_to_padded_rows(model: Any, inputs: dict[str, Tensor]) -> None:
    own = model.config._attn_implementation
    found, gradients = [], []
    for forward in (padded, packed):
        model.zero_grad()
        outputs, _ = forward(model, {**inputs, "use_cache": False, "fused_lm_head": True})
        torch.manual_seed(0)
        (outputs.log_probs * torch.rand(outputs.log_probs.shape) + outputs.entropy).sum().backward()
        found.append(outputs)
        gradients.append(gradient(model))
        assert model.config._attn_implementation == own
    expected, outputs = found
    assert expected.label_mask.any() and not expected.label_mask.all()
    for name in PER_TOKEN:
        torch.testing.assert_close(getattr(outputs, name), getattr(expected, name), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(outputs.loss, expected.loss)
    assert (gradients[0] - gradients[1]).abs().max() < 1e-4 * gradients[0].abs().max()


@pytest.mark.parametrize("mode", ["keep_start", "keep_end"])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "mistral", "gemma2"])
def test_values_and_gradients_equal_those_of_padded_rows(kind: str, mode: str) -> None:
    assert_equal_to_padded_rows(model_with_head(kind), batch(truncation_mode=mode))


def test_a_model_sharded_by_fsdp2_packs() -> None:
    """Its hooks pass on the row, to checkpointed blocks too."""
    model = model_with_head("llama")
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        for block in blocks(model):
            fully_shard(block)
        fully_shard(model)
        assert_equal_to_padded_rows(model, batch())
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_contexts_equal_those_of_the_study(kind: str) -> None:
    """Of padded and of packed rows; an empty completion has contexts of zeros."""
    model = model_with_head(kind)
    items = [
        (example["prompt_ids"], [example["chosen_ids"], example["rejected_ids"]]) for example in EXAMPLES[:2]
    ]
    policy = Policy(model)
    with torch.no_grad():
        expected = policy(pad_rows(items), with_contexts=True)
        arguments = {**batch(EXAMPLES[:2]), "use_cache": False, "fused_lm_head": True}
        for forward in (padded, packed):
            outputs, contexts = forward(model, arguments, blocks(model))
            torch.testing.assert_close(contexts, expected.contexts, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(outputs.log_probs.sum(dim=1), expected.logps, rtol=1e-5, atol=1e-5)
        (_, contexts), (_, other) = (
            forward(model, {**arguments, **batch()}, blocks(model)) for forward in (packed, padded)
        )
        torch.testing.assert_close(contexts, other, rtol=1e-5, atol=1e-5)
        assert contexts.shape == (12, 2, 32) and not contexts[4].any() and contexts[[0, 1, 3, 7]].any()


# --- in a trainer -----------------------------------------------------------------------------------


def trainer_of(model: Any, folder: Path, **settings: Any) -> ScheduledDPOTrainer:
    """A trainer of a few plain steps against a reference of other weights, or with adapters."""
    values = {
        "packing": "auto",
        "gradient_accumulation_steps": 1,
        "gradient_checkpointing": True,  # TRL's default
        "max_steps": 3,
        "max_length": LONGEST,
        "learning_rate": 0.05,
        "optim": "sgd",
    }
    named = {"peft_config": settings.pop("peft_config", None)}
    if named["peft_config"] is None:
        named["ref_model"] = (
            settings.pop("ref_model", None) or policy_of("llama", initializer_range=0.1).model
        )
    trainer = ScheduledDPOTrainer(
        model=model,
        args=small.config(folder, **values | settings),
        train_dataset=small.pairs(16),
        processing_class=small.tokenizer(),
        **named,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def logged(folder: Path, **settings: Any) -> list[dict[str, float]]:
    """What a run logs of its steps."""
    trainer = trainer_of(policy_of("llama").model, folder, **settings)
    trainer.train()
    assert (trainer.forward is packed) == (settings["packing"] != "false")
    return [entry for entry in trainer.state.log_history if "loss" in entry]


LORA = peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"gradient_checkpointing": False, "loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]},
        {"gradient_checkpointing_kwargs": {"use_reentrant": True}, "ld_alpha": 0.5},
        {"loss_type": ["ipo"], "use_weighting": True, "precompute_ref_log_probs": True},
        {"peft_config": LORA},
        {"bf16": True, "rounding": 0.05},
        {"selector": "top_margin", "gradient_accumulation_steps": 2, "max_steps": 2},
    ],
    ids=lambda settings: ", ".join(settings) or "plain",
)
def test_steps_and_metrics_equal_those_of_padded_rows(tmp_path: Path, settings: dict[str, Any]) -> None:
    settings = dict(settings)
    rounding = settings.pop("rounding", 2e-4)
    rows = [logged(tmp_path, packing=packing, **settings) for packing in ("false", "true")]
    assert len(rows[0]) == settings.get("max_steps", 3)
    for expected, found in zip(*rows, strict=True):
        assert found == pytest.approx(expected, abs=rounding, rel=rounding)


# --- where rows are not packed -----------------------------------------------------------------------


def chosen(trainer: ScheduledDPOTrainer) -> Any:
    return choose_forward(trainer, trainer.data_collator([trainer.train_dataset[row] for row in range(4)]))


@pytest.mark.parametrize(
    ("kind", "changes", "settings", "cause"),
    [
        ("bloom", {}, {}, "BloomForCausalLM computes padded rows, which is slower (its attention cannot"),
        ("mamba", {}, {}, "MambaForCausalLM computes padded rows, which is slower ("),
        ("lfm2", {}, {}, "something else than its attention mixes tokens"),
        ("mixtral", {"output_router_logits": True}, {}, "the loss of its experts' load is of padded rows"),
        ("llama", {}, {"prompt_learning": True}, "prompt learning puts tokens before each row"),
        ("llama", {"attention_dropout": 0.1}, {}, "attention of packed rows has no dropout"),
        ("llama", {}, {"torch_compile": True}, "torch_compile is on"),
        ("llama", {}, {"without_prompts": True}, "the first 64 pairs have no prompt or no response"),
    ],
)
def test_models_and_settings_that_cannot_be_packed_are_padded_with_a_line(
    kind: str,
    changes: dict[str, Any],
    settings: dict[str, Any],
    cause: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(MODELS, kind, MODELS[kind] | changes)
    settings = dict(settings)
    without_prompts, compiled = (settings.pop(key, False) for key in ("without_prompts", "torch_compile"))
    if settings.pop("prompt_learning", False):
        settings["peft_config"] = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    else:
        settings["ref_model"] = model_of(kind)
    model = model_of(kind)
    for part in model.modules():  # `model_of` has switched it off
        if "attention_dropout" in changes and hasattr(part, "attention_dropout"):
            part.attention_dropout = changes["attention_dropout"]
    trainer = trainer_of(model, tmp_path, **settings)
    trainer.args.torch_compile = compiled
    if without_prompts:
        trainer.train_dataset = trainer.train_dataset.map(lambda _: {"prompt_ids": []})
    caplog.set_level("WARNING", logger="sams")
    assert chosen(trainer) is padded
    [line] = [record.getMessage() for record in caplog.records if record.name.startswith("sams")]
    assert cause in line
    caplog.clear()
    trainer.args.packing = "true"
    with pytest.raises(UserError, match="packing"):
        chosen(trainer)
    trainer.args.packing = "false"
    assert chosen(trainer) is padded and not caplog.records


OTHER_HEADS = {"bert", "electra", "gemma3", "modernbert-decoder"}
"""Types whose logits TRL's head does not compute: it skips a transformation, or caps what the class does not."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(MODELS))
def test_each_type_has_the_layout_that_it_has_in_a_study(kind: str, tmp_path: Path) -> None:
    """docs/models.md has the layouts."""
    if kind not in transformers.CONFIG_MAPPING:
        pytest.skip("not in this version of transformers")
    trainer = trainer_of(model_of(kind), tmp_path, ref_model=model_of(kind))
    trainer.aux_loss_enabled = False
    expected = f"\n| {kind} | packed |" in (ROOT / "docs" / "models.md").read_text()
    assert (chosen(trainer) is packed) == (expected and kind not in OTHER_HEADS)
