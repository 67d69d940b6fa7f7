"""Before the first step log-probs are compared with the class's own, and what may be packed is decided exactly."""

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from benchmarks import models
from benchmarks.models import MODELS, items, model_of, tried
from sams.policy.policy import Policy
from sams.runtime.errors import UserError
from sams.study.settings import Model
from sams.training import layout
from sams.training.agreement import refuse_changing_positions
from sams.training.distribution import Workers
from sams.training.layout import _lost_window, choose_layout
from sams.training.tasks.pairs import PairTask
from sams.training.tuning import tune
from tests.conftest import ROOT

TASK = PairTask(items())
PACKED = ("cohere2", "gemma2", "granite", "minicpm3", "modernbert-decoder", "opt", "phi3", "qwen2")
PADDED = {
    "codegen": "its attention cannot be replaced",
    "doge": "attention of packed rows has no attention_mask",
    "gpt_oss": "attention of packed rows has no s_aux",
    "lfm2": "something else than its attention mixes tokens",
    "llama4_text": "its config has chunked_attention in layer 0",
    "qwen2_moe": "its config has a window of 8, its attention of None",
    "qwen3_next": "something else than its attention mixes tokens",
    "stablelm": "its layers do not pass on the layout of packed rows",
}


@pytest.fixture(autouse=True)
def probes_are_parts_of_the_items(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on CPUs with items of real lengths; tests/training/test_tuning.py has items that are tried whole."""
    monkeypatch.setattr(layout, "PROBED", 8)


def layout_of(model: Any, precision: str = "float32", **settings: Any) -> tuple[str | None, list[str]]:
    workers = Workers(device="cpu", strategy="ddp", precision=precision, threads=1, timeout_minutes=1)
    return choose_layout(Policy(model), TASK, workers, Model(path="any", precision=precision, **settings))


def changed(kind: Any, precision: str) -> Any:
    model = kind(model_of("llama").config).to(getattr(torch, precision))
    model.load_state_dict(model_of("llama").state_dict(), strict=False)
    return model


# --- model types ------------------------------------------------------------------------------------


def assert_near_the_class(kind: str) -> None:
    """In float32 to within its rounding; in bfloat16 about as near as the class itself."""
    full, half = (tried(kind, precision) for precision in ("float32", "bfloat16"))
    expected = ("padded", PADDED[kind]) if kind in PADDED else ("packed", "")
    assert (full.layout, full.why) == (half.layout, half.why) == expected
    assert full.error < 2e-4 and half.error < 1.5 * half.own_error + 0.05


@pytest.mark.parametrize("kind", [kind for kind in (*PACKED, *PADDED) if kind in transformers.CONFIG_MAPPING])
def test_rows_are_packed_only_where_that_is_right_in_both_precisions(kind: str) -> None:
    assert_near_the_class(kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(set(MODELS) - {*PACKED, *PADDED}))
def test_other_types_are_as_documented(kind: str) -> None:
    text = (ROOT / "docs" / "models.md").read_text()
    for precision in ("float32", "bfloat16"):
        result = tried(kind, precision)
        assert f"\n| {kind} | {result.layout} |" in text
        assert result.error < (2e-4 if precision == "float32" else 1.5 * result.own_error + 0.1)


class Counting(transformers.LlamaForCausalLM):
    """Counts positions itself, along the row."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model.register_forward_pre_hook(
            lambda _module, inputs, named: (inputs, {**named, "position_ids": None}), with_kwargs=True
        )


def test_a_class_with_positions_of_its_own_is_not_packed() -> None:
    [cause] = layout_of(changed(Counting, "bfloat16"), "bfloat16")[1]
    assert "its positions are not those of the tokens in their own sequences" in cause


@pytest.mark.parametrize("kind", ["jamba", "qwen3_next"])
def test_a_leak_that_bfloat16_rounds_away_in_fresh_weights_is_found(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "PERTURBATION", 0.0)
    assert tried(kind, "bfloat16").layout == "padded"
    monkeypatch.setattr(layout, "_mixing", lambda *_: None)
    assert tried(kind, "bfloat16").layout == "packed", "no figure shows it"


# --- refused before the first step ------------------------------------------------------------------


class Louder(transformers.LlamaForCausalLM):
    """Changes what its body gets."""

    def forward(self, input_ids: Tensor, **others: Any) -> Any:
        return super().forward(inputs_embeds=1.5 * self.model.embed_tokens(input_ids), **others)


class Noisy(transformers.LlamaForCausalLM):
    """Is random in eval() too."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model.embed_tokens.register_forward_hook(
            lambda _module, _inputs, states: states * (1 + 0.1 * torch.rand(1, dtype=states.dtype))
        )


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Louder, "log-probs of Louder differ by .* nats a token from those of its own forward pass"),
        (Noisy, "two passes of Noisy over the same rows differ by"),
    ],
)
def test_other_logits_and_random_ones_are_refused_by_name(
    kind: Any, message: str, packing: bool, precision: str
) -> None:
    workers = Workers(device="cpu", strategy="ddp", precision=precision, threads=1, timeout_minutes=1)
    settings = Model(path="any", precision=precision, packing=packing)
    sizes: dict[str, Any] = {"micro_batch": 1, "scoring_micro_batch": 1, "items": 0, "scored_items": 1}
    with pytest.raises(UserError, match=message):
        tune(Policy(changed(kind, precision)), TASK, workers, settings, **sizes)


def test_a_model_that_sees_the_tokens_it_predicts_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "bert", {"is_decoder": False})
    with pytest.raises(
        UserError, match="tokens change the log-probs of tokens before them in BertLMHeadModel"
    ):
        layout_of(model_of("bert"))


# --- what does not show in the items that are tried -----------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "layer", "arrived", "lost"),
    [
        ({"sliding_window": 4096}, 0, 4096, False),
        ({"sliding_window": 4096}, 0, None, True),
        ({"sliding_window": None}, 0, None, False),
        ({"sliding_window": 4096, "use_sliding_window": False}, 0, None, False),
        ({"sliding_window": 4096, "layer_types": ["sliding_attention", "full_attention"]}, 0, 4096, False),
        ({"sliding_window": 4096, "layer_types": ["sliding_attention", "full_attention"]}, 0, None, True),
        ({"sliding_window": 4096, "layer_types": ["sliding_attention", "full_attention"]}, 1, None, False),
        ({"sliding_window": 4096, "layer_types": ["sliding_attention", "full_attention"]}, 1, 4096, True),
        ({"attention_chunk_size": 8192, "layer_types": ["chunked_attention"]}, 0, None, True),
        ({"attention_chunk_size": 8192}, 0, None, True),
    ],
)
def test_a_window_is_lost_where_the_attention_gets_another(
    settings: dict[str, Any], layer: int, arrived: int | None, lost: bool
) -> None:
    config = transformers.PretrainedConfig(**settings)
    assert bool(_lost_window(config, layer, arrived)) == lost


ROPE = {"factor": 4.0, "rope_theta": 1e4}


@pytest.mark.parametrize(
    ("rope", "refused"),
    [
        ({"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4} | ROPE, True),
        ({"rope_type": "dynamic"} | ROPE, True),
        ({"rope_type": "yarn"} | ROPE, False),
        ({"rope_type": "default", "rope_theta": 1e4}, False),
    ],
)
def test_positions_that_depend_on_the_longest_sequence_of_a_batch_are_refused(
    rope: dict[str, Any], refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The longest of these sequences has 60 tokens; the original range is 59, then 60."""
    for original in (59, 60):
        scaled = rope | {"original_max_position_embeddings": original}
        if rope["rope_type"] == "dynamic":
            monkeypatch.setitem(
                MODELS, "llama", {"rope_parameters": rope, "max_position_embeddings": original}
            )
        else:
            monkeypatch.setitem(MODELS, "llama", {"rope_parameters": scaled})
        if refused and original == 59:
            with pytest.raises(
                UserError, match=f"60 tokens, and beyond 59 .*{rope['rope_type']}.*set it to 59"
            ):
                layout_of(model_of("llama"))
        else:
            assert layout_of(model_of("llama")) == (layout.SEGMENTS, [])


def test_positions_by_kind_of_layer_are_looked_at_too() -> None:
    config = transformers.PretrainedConfig(max_position_embeddings=128)
    config.rope_parameters = {
        "full_attention": {"rope_type": "dynamic", "factor": 2.0},
        "sliding_attention": {"rope_type": "default"},
    }
    refuse_changing_positions(config, 128)
    with pytest.raises(UserError, match="beyond 128"):
        refuse_changing_positions(config, 129)
