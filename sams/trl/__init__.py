"""Scheduling in TRL's DPO trainer.

    from sams.trl import ScheduledDPOConfig, ScheduledDPOTrainer

A `ScheduledDPOTrainer` is TRL's `DPOTrainer` whose optimiser steps train on the pairs that a selector chooses from
each global batch (docs/trl.md).
"""

from sams.trl.config import ScheduledDPOConfig
from sams.trl.trainer import ScheduledDPOTrainer

__all__ = ["ScheduledDPOConfig", "ScheduledDPOTrainer"]
