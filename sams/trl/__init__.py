"""Scheduling in TRL's DPO trainer.

    from sams.trl import ScheduledDPOConfig, ScheduledDPOTrainer

A `ScheduledDPOTrainer` is TRL's `DPOTrainer` whose optimiser steps train on the pairs that a selector chooses from
each global batch (docs/trl.md).
"""

from importlib.util import find_spec

if find_spec("trl") is None:
    raise ModuleNotFoundError("sams.trl needs TRL: run `pip install 'sams[trl]'`", name="trl")

from sams.trl.config import ScheduledDPOConfig
from sams.trl.trainer import ScheduledDPOTrainer

__all__ = ["ScheduledDPOConfig", "ScheduledDPOTrainer"]
