"""The groups of settings that a study and its stages' recipes are made of, typed and validated."""

from sams.study.settings.base import Count, Name, Positive, Settings, Share
from sams.study.settings.benchmarks import (
    MT_BENCH_TEMPERATURES,
    AlpacaEval,
    Benchmarks,
    Decoding,
    Judge,
    MtBench,
    OnPolicy,
    OnPolicyDecoding,
    WorldAccuracy,
)
from sams.study.settings.data import Data, Form, World
from sams.study.settings.model import Model
from sams.study.settings.paper import Paper
from sams.study.settings.scheduling import Scheduler
from sams.study.settings.training import Launch, Lora, MicroBatch, Preference, Pretrain, Ratio, Sft, Training

__all__ = [
    "MT_BENCH_TEMPERATURES",
    "AlpacaEval",
    "Benchmarks",
    "Count",
    "Data",
    "Decoding",
    "Form",
    "Judge",
    "Launch",
    "Lora",
    "MicroBatch",
    "Model",
    "MtBench",
    "Name",
    "OnPolicy",
    "OnPolicyDecoding",
    "Paper",
    "Positive",
    "Preference",
    "Pretrain",
    "Ratio",
    "Scheduler",
    "Settings",
    "Sft",
    "Share",
    "Training",
    "World",
    "WorldAccuracy",
]
