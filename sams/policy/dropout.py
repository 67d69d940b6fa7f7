"""Switch off dropout, layer drop and router noise, and keep the rates of the user's config for saving.

Some classes copy a rate into a float of a module, and some read the config in every forward pass: rates are zero in
the config before the model is built, and stay zero there. Policies stay in eval(), since some routers sample experts
in train() at any rate.
"""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

RATE = re.compile("drop|jitter")
"""Rates in configs and modules: hidden_dropout, attn_pdrop, layerdrop, drop_path_rate, router_jitter_noise."""
RESCALED = "rescale_every"
"""RWKV's setting that divides weights in place, in eval() only."""
THRESHOLDS = {"phimoe": {"router_jitter_noise"}}
"""By model type, what has the name of a rate and acts without training too: PhiMoE's leaves out experts by it."""


def without_dropout(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return a copy of a config with all rates at zero."""
    copied = copy.deepcopy(config)
    _set(copied, _zeros(rates_of(copied)))
    return copied


def keep_rates(model: PreTrainedModel, config: PreTrainedConfig) -> PreTrainedModel:
    """Keep the rates of `config` with the model that was built from it without dropout.

    Rates that a class sets itself, independent of the config, are switched off in its modules.
    """
    thresholds = THRESHOLDS.get(model.config.model_type, set())
    for module in model.modules():
        for name, value in vars(module).items():
            if _is_rate(name, value) and name not in thresholds:
                setattr(module, name, 0.0)
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
    # A class for text takes the text config of a larger one.
    own = config if type(config) is type(model.config) else config.get_text_config()
    model.user_rates = rates_of(own)  # type: ignore[assignment]
    return model


def config_to_save(model: PreTrainedModel) -> PreTrainedConfig:
    """Return a copy of a model's config with the rates of the user's config."""
    config = copy.deepcopy(model.config)
    _set(config, getattr(model, "user_rates", {}))
    return config


def save_config(model: PreTrainedModel, out: Path) -> None:
    """Write config.json with the rates of the user's config, after transformers has written its own."""
    config_to_save(model).save_pretrained(out)


def rates_of(config: Any) -> dict[str, Any]:
    """Return the rates of a config that are above zero, those of a config inside it as a dict of its name."""
    found: dict[str, Any] = {}
    thresholds = THRESHOLDS.get(getattr(config, "model_type", ""), set())
    for name, value in _entries(config).items():
        if isinstance(value, PreTrainedConfig | dict):
            if inside := rates_of(value):
                found[name] = inside
        elif _is_rate(name, value) and name not in thresholds:
            found[name] = value
    return found


def _is_rate(name: Any, value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return (0 < value <= 1 and RATE.search(str(name)) is not None) or (name == RESCALED and value > 0)


def _entries(config: Any) -> dict[str, Any]:
    return config if isinstance(config, dict) else vars(config)


def _zeros(rates: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _zeros(value) if isinstance(value, dict) else type(value)(0) for name, value in rates.items()
    }


def _set(config: Any, rates: dict[str, Any]) -> None:
    for name, value in rates.items():
        if isinstance(value, dict):
            _set(_entries(config)[name], value)
        elif isinstance(config, dict):
            config[name] = value
        else:
            setattr(config, name, value)
