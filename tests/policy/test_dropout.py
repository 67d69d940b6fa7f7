"""No dropout, layer drop or router noise in any policy; the config that is saved has the user's rates."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from sams.policy.dropout import save_config
from sams.policy.model import build_model, load_model
from sams.policy.policy import Policy
from sams.policy.stored import without_weights
from sams.study.settings import Model
from tests import tiny

SIZES = {"vocab_size": 43, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
LLAMA = {**tiny.SIZES, "num_key_value_heads": 2}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
EXPERTS = {**LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2}
OPT = {"hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
KINDS: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "opt": {**OPT, "word_embed_proj_dim": 32, "max_position_embeddings": 128},
    "starcoder2": {**LLAMA, "sliding_window": None},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "gpt_bigcode": GPT2,
    "gpt2": GPT2,
    "gptj": {**GPT2, "rotary_dim": 4},
    "codegen": {**GPT2, "rotary_dim": 4},
    "biogpt": {**tiny.SIZES, "num_hidden_layers": 4},
    "xglm": {
        "d_model": 32,
        "ffn_dim": 64,
        "num_layers": 4,
        "attention_heads": 4,
        "max_position_embeddings": 128,
    },
    "phimoe": {**EXPERTS, "sliding_window": None},
    "mixtral": EXPERTS,
    "falcon": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
    "mpt": {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 128},
    "gpt_neo": {
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1]],
        "max_position_embeddings": 128,
    },
    "gpt_neox": tiny.SIZES,
    "dbrx": {
        "d_model": 32,
        "n_heads": 4,
        "n_layers": 2,
        "max_seq_len": 128,
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 1e4},
        "ffn_config": {"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 32},
    },
    "seed_oss": {**LLAMA, "head_dim": 8},
    "modernbert-decoder": {**tiny.SIZES, "cls_token_id": 1, "sep_token_id": 2},
}
RATE = 0.3


def is_rate(key: Any) -> bool:
    return any(word in str(key) for word in ("drop", "jitter"))


def with_rates(config: Any) -> Any:
    """All rates of a config, of the configs inside it too, at `RATE`."""
    if not isinstance(config, dict):
        return config
    # transformers takes no fraction for MPT's attn_pdrop.
    return {
        key: (1 if value == 0 and isinstance(value, int) else RATE) if is_rate(key) else with_rates(value)
        for key, value in config.items()
    }


def rates(config: dict[str, Any]) -> dict[str, Any]:
    """All rates of a config, by path."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            found |= {f"{key}.{name}": rate for name, rate in rates(value).items()}
        elif is_rate(key):
            found[key] = value
    return found


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as transformers saves it, whose config has every rate that its class knows."""
    out = tmp_path_factory.mktemp(request.param)
    config = transformers.AutoConfig.for_model(request.param, **SIZES, **KINDS[request.param])
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(out)
    (out / "config.json").write_text(json.dumps(with_rates(config.to_dict())))
    return out


def test_a_model_in_train_equals_transformers_own_in_eval(folder: Path, tmp_path: Path) -> None:
    own = transformers.AutoModelForCausalLM.from_pretrained(folder)
    attention: Any = own.config._attn_implementation
    ids = torch.randint(3, 43, (2, 24), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = own.eval()(ids).logits
        assert not torch.equal(own.train()(ids).logits, expected), "the rates of this config do nothing"
        policy = Policy(load_model(folder, Model(path=str(folder), attention=attention))).train()
        for _ in range(2):
            assert torch.equal(policy.model(ids).logits, expected)
        if (
            own.config.model_type != "phimoe"
        ):  # it samples experts in train(), where a policy's model never is
            assert torch.equal(policy.model.train()(ids).logits, expected)
        shaped = without_weights(folder, attention)
        shaped.load_state_dict(own.state_dict(), assign=True)
        shaped.tie_weights()
        assert torch.equal(Policy(shaped).train().model(ids).logits, expected)
    for number, model in enumerate((policy.model, shaped)):
        save_config(model, tmp_path / str(number))
        saved = transformers.AutoConfig.from_pretrained(tmp_path / str(number)).to_dict()
        assert rates(saved) == rates(own.config.to_dict())
        assert RATE in rates(saved).values()


def test_a_fresh_model_has_no_dropout_and_keeps_its_rates(tmp_path: Path) -> None:
    architecture = {"model_type": "opt", **KINDS["opt"], "dropout": 0.2, "layerdrop": 0.5}
    model = build_model(tiny.settings(architecture=architecture), tiny.tokenizer(), seed=0)
    ids = torch.arange(3, 27)[None]
    model.train()
    assert torch.equal(model(ids).logits, model(ids).logits)
    assert (model.config.dropout, model.config.layerdrop) == (0, 0)
    save_config(model, tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert (saved["dropout"], saved["layerdrop"]) == (0.2, 0.5)


def test_rwkv_keeps_its_weights_in_a_forward_pass(tmp_path: Path) -> None:
    """Its class divides them in eval(), for float16."""
    config = transformers.RwkvConfig(
        **SIZES, hidden_size=32, num_hidden_layers=3, rescale_every=1, attention_hidden_size=32
    )
    own = transformers.AutoModelForCausalLM.from_config(config)
    own.save_pretrained(tmp_path)
    policy = Policy(load_model(tmp_path, Model(path=str(tmp_path), attention="eager")))
    before = {name: weight.clone() for name, weight in policy.model.state_dict().items()}
    ids = torch.arange(3, 11)[None]
    with torch.no_grad():
        logits = policy.model(ids).logits
        torch.testing.assert_close(logits, own.train()(ids).logits)
        own.eval()(ids)
    after = policy.model.state_dict()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    assert not all(torch.equal(own.state_dict()[name], weight) for name, weight in before.items())
    save_config(policy.model, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["rescale_every"] == 1
